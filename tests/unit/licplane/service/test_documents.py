# SPDX-License-Identifier: Apache-2.0
"""What documents may say, and what is said about those that may not."""

from __future__ import annotations

import json

import pytest
from tests.unit.licplane.service.world import binding, license, resource

from licplane.errors import ExitCode, PlaneError
from licplane.service.declared import read_documents
from licplane.service.requests import Document


def refused(*documents: Document) -> str:
    with pytest.raises(PlaneError) as error:
        read_documents(documents, 1_800_000_000)
    assert error.value.code is ExitCode.USAGE
    return str(error.value)


def network(**fields: object) -> Document:
    return resource(destinations=[{"cidr": "10.0.0.0/8", **fields}])


@pytest.mark.parametrize(
    ("document", "words"),
    [
        (resource(mod="enforce"), ("mod", "did you mean mode?")),
        (resource(mode="enforced"), ("did you mean enforce?",)),
        (resource(kind="networks"), ("did you mean network?",)),
        (resource(ports=["80"]), ("move ports into each of the destinations",)),
        (resource(destinations=[]), ("covers nothing",)),
        (resource(destinations={"cidr": "any"}), ("must be a list, not a table",)),
        (resource(destinations=["10.0.0.0/8"]), ("destinations[0]", "must be a table")),
        (network(cidr="10.0.5.1/24"), ("host bits set", "10.0.5.0/24", "10.0.5.1/32 alone")),
        (network(cidr="db.example.com"), ("names are not resolved",)),
        (network(cidr="10.0.0.0/33"), ("0 to 32 bits",)),
        (network(cidr="10.0.0.0/255.0.0.0"), ("number of network bits",)),
        (network(cidr="fe80::1%eth0"), ("no zone",)),
        (network(cidr="0.0.0.0"), ("reaches the host itself",)),
        (network(cidr="::ffff:0.0.0.0"), ("reaches the host itself",)),
        (network(cird="any"), ("did you mean cidr?",)),
        (network(ports=["0"]), ("ports are 1 to 65535",)),
        (network(ports=["90-80"]), ("did you mean 80-90?",)),
        (network(ports=["http"]), ("no port",)),
        (network(ports=[True]), ("must be a port", "true or false")),
        (network(ports=["80"], protocol="icmp"), ("icmp has no ports",)),
        (network(protocol="tpc"), ("did you mean tcp?",)),
        (resource(kind="compute", destinations=None), ("cannot be enforced",)),
        (resource("a b"), ("'a b' cannot be a name",)),
        (resource(scope={"org": "a", "reigons": []}), ("reigons", "did you mean regions?")),
        (resource(scope={"project": "p"}), ("needs org",)),
        (resource(scope={"org": ""}), ("must not be empty",)),
        (resource(scope={"org": "a", "regions": ["x", "x"]}), ("stands there twice",)),
        (resource(scope={"org": "a", "regions": ["x\n"]}), ("does not match",)),
        (resource(kind="service", ports=[], destinations=None), ("names no port",)),
        (resource(description="\x1b[31m"), ("no printable text",)),
        (binding(selectors=[]), ("names nobody",)),
        (binding(selectors=["unix:uuid:5"]), ("did you mean unix:uid?",)),
        (binding(selectors=["unix:uid:root"]), ("no id",)),
        (binding(selectors=["unix:uid:4294967295"]), ("no id",)),
        (binding(selectors=["unix:user:1000"]), ("unix:uid:",)),
        (binding(selectors=["unix:path:usr/bin/x"]), ("no absolute path",)),
        (binding(selectors=["unix:path:/usr/../bin"]), ("did you mean /bin?",)),
        (binding(selectors=["unix:path:/a\0b"]), ("no printable path",)),
        (binding(selectors=["unix:sha256:abc"]), ("64 hexadecimal digits",)),
        (binding(selectors=["systemd:unit:etl"]), ("did you mean etl.service?",)),
        (binding(selectors=["systemd:unit:a.slice"]), ("systemd:slice:a.slice",)),
        (binding(selectors=["systemd:unit:a@.service"]), ("template",)),
        (binding(selectors=["systemd:unit:a.target"]), ("no unit with processes",)),
        (binding(selectors=["cgroup:path:/sys/fs/cgroup/x"]), ("write cgroup:path:/x",)),
        (binding(selectors=["cgroup:path:/"]), ('write "host"',)),
        (binding(selectors=["container:id:xyz"]), ("12 to 64",)),
        (binding(selectors=["unix:uid:5", "unix:uid:6"]), ("write two bindings",)),
        (binding(selectors=["host:"]), ("is no selector",)),
        (binding(selectors="host"), ("must be a list, not a text",)),
        (binding(resources=[]), ("leave it out",)),
        (binding(license="../../etc"), ("cannot be a name",)),
        (binding(licence="x"), ("did you mean license?",)),
        (license(expires="tomorrow"), ("is no time", "2026-12-31T00:00:00Z")),
        (license(expires="+90d"), ("is no time",)),
        (license(expires="2300-01-01T00:00:00Z"), ("1970..2262",)),
        (license(expires="2026-13-01T00:00:00Z"), ("is no time",)),
        (license(expires=None), ("expires", "is missing")),
        (license(scope=None), ("scope", "is missing")),
        (license(scope={"project": "p"}), ("org is missing",)),
        (license(scope={"org": "a", "region": "x"}), ("did you mean regions?",)),
        (license(entitlements=[]), ("would grant nothing",)),
        (
            license(entitlements=[{"resource": "db", "action": ["bind"]}]),
            ("did you mean actions?",),
        ),
        (license(entitlements=[{"resource": "db", "actions": ["conect"]}]), ("connect",)),
        (license(entitlements=[{"resource": "db"}, {"resource": "db"}]), ("twice",)),
        (license(entitlements="db"), ("must be a list",)),
        (license(grace="soon"), ("no duration",)),
        (license(grace=-1), ("negative",)),
        (license(grace=True), ("must be a whole number",)),
        (license(failure_mode="opened"), ("did you mean open?",)),
        (license(selectors=["uid:5"]), ("is no selector",)),
        (license(not_before="2200-01-01T00:00:00Z"), ("not after nbf",)),
        (license(nmae="x"), ("is unknown",)),
    ],
)
def test_mistakes_are_named(document: Document, words: tuple[str, ...]) -> None:
    said = refused(document)
    for word in words:
        assert word in said
    assert f"{document.kind} " in said


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "null",
        "{",
        '{"name": "a", "name": "b"}',
        '{"n": NaN}',
        '{"n": 1.5}',
        '{"n": -1}',
        '{"n": 99999999999999999999999}',
        "[" * 100_000,
        '{"a":' * 50 + "1" + "}" * 50,
        '{"name": "' + "x" * 10_000_000 + '"}',
        '{"name": "\ud800"}',
        '{"name": "\\ud800", "license": "\\u0000", "selectors": ["host"]}',
        '{"name": "a\\u202eb", "license": "l", "selectors": ["host"]}',
        '{"name": 5, "license": {}, "selectors": {"a": 1}}',
        '{"name": "\'; DROP TABLE objects; --", "license": "l", "selectors": ["host"]}',
    ],
)
def test_hostile_texts(text: str) -> None:
    for kind in ("resource", "binding", "license"):
        said = refused(Document(kind, "", text))
        assert len(said) < 4000
        assert said.isprintable()


def test_names_that_are_none() -> None:
    for name in ("../../etc/passwd", "a\0b", "x" * 129, "ü", "a b", "'; --", "-rf"):
        said = refused(Document("binding", name, binding().json))
        assert said.isprintable()
    assert "called" in refused(Document("binding", "other", binding().json))
    assert "did you mean" in refused(Document("biding", "b", "{}")).lower()
    assert "twice" in refused(binding(), binding())
    assert "only in case" in refused(resource("db"), resource("DB"))


def test_many_mistakes_are_counted() -> None:
    said = refused(*(binding(f"b{at}", selectors=["x"]) for at in range(100)))
    assert "100 problems" in said
    assert "and 80 more" in said


def test_what_is_accepted() -> None:
    documents = [
        resource("any", destinations=[{"cidr": "any"}, {"cidr": "2001:db8::/32", "ports": [443]}]),
        resource("web", kind="service", destinations=None, ports=["80", "8000-8010"]),
        resource("disk", kind="storage", mode="observe", destinations=None, paths=["/srv"]),
        resource("cpu", kind="compute", mode="observe", destinations=None),
        binding(
            selectors=[
                "host",
                "unix:uid:0",
                "unix:user:web_1$",
                "unix:group:backup",
                "unix:path:/usr/bin/curl",
                "unix:sha256:" + "a" * 64,
                "systemd:unit:etl@1.service",
                "systemd:slice:batch.slice",
                "cgroup:path:/batch/etl",
                "container:id:4f1c00112233",
            ],
            resources=["web"],
            scope={"org": "acme", "environments": ["prod"], "regions": ["eu-1"]},
        ),
        license(
            not_before="2026-01-01T00:00:00+01:00",
            hosts=["db-*"],
            selectors=["host"],
            grace="15m",
            failure_mode="open",
            issuer="acme",
            entitlements=[
                {
                    "resource": "db",
                    "actions": ["connect", "bind"],
                    "limits": [{"meter": "seats", "limit": 5, "window": "instant"}],
                    "conditions": {"label:tier": ["gold"]},
                }
            ],
        ),
    ]
    kept = [
        Document(
            one.kind,
            one.name,
            json.dumps({k: v for k, v in json.loads(one.json).items() if v is not None}),
        )
        for one in documents
    ]
    declared = read_documents(kept, 1_800_000_000)
    assert len(declared.names) == len(documents)
    wanted = declared.licenses["acme-db"]
    assert wanted.license.not_before_s == 1_767_222_000
    assert wanted.license.grace_s == 900
