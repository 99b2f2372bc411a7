# SPDX-License-Identifier: Apache-2.0
"""`licplane token`, `host` and `shadow` on hosts that joined."""

from __future__ import annotations

import base64
import json
import stat
from pathlib import Path
from typing import Any

import pytest

from licplane.cli.place import Place
from licplane.cli.starting import prepare
from licplane.errors import ExitCode
from licplane.service.requests import ShadowReport
from lictoken import base64url


def hosts(run: Any) -> dict[str, dict[str, Any]]:
    found = json.loads(run("host", "list", "--json").stdout)
    assert found["schema_version"] == 1
    return {one["hostname"]: one for one in found["hosts"]}


def test_a_join_token_is_one_text_that_is_shown_once(run: Any, fleet: Any) -> None:
    result = run("token", "create", "--label", "org=acme", "--uses", "3", "--expires", "+12h")
    join = result.stdout.strip()
    assert join.startswith("licjoin1.")
    assert "for 3 hosts" in result.stderr
    inside = json.loads(base64url.decode(join.removeprefix("licjoin1."), "the token"))
    assert inside["public"] == "plane.example:8444"
    assert inside["control"] == "plane.example:8443"
    assert inside["ca"]
    listed = run("token", "list", "--json").stdout
    [one] = json.loads(listed)["tokens"]
    assert (one["uses"], one["uses_max"], one["labels"]) == (0, 3, {"org": "acme"})
    for text in (listed, run("token", "list").stdout, run("audit", "list", "--json").stdout):
        assert inside["secret"] not in text
    run("token", "delete", one["id"])
    assert json.loads(run("token", "list", "--json").stdout)["tokens"] == []
    run("token", "delete", one["id"], code=ExitCode.NOT_FOUND)


def test_no_token_before_a_server_said_where_it_is(run: Any, kid: str, state: Path) -> None:
    prepare(Place(state=state), issuer="acme", words=None, unencrypted=True)
    refused = run("token", "create", code=ExitCode.NOT_FOUND)
    assert "licplane serve" in refused.stderr
    assert refused.stdout == ""


def test_a_token_in_a_file_is_private(run: Any, fleet: Any, tmp_path: Path) -> None:
    out = tmp_path / "join"
    result = run("token", "create", "--out", str(out))
    assert result.stdout == ""
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    assert out.read_text().startswith("licjoin1.")
    run("token", "create", "--out", str(tmp_path / "no" / "join"), code=ExitCode.NOT_FOUND)
    assert len(json.loads(run("token", "list", "--json").stdout)["tokens"]) == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--label", "org"), "NAME=VALUE"),
        (("--label", "org="), "no value"),
        (("--label", "org=a", "--label", "org=b"), "twice"),
        (("--label", "Org=a"), "small letters"),
        (("--expires", "soon"), "no duration"),
        (("--uses", "0"), "0"),
    ],
)
def test_bad_tokens_are_refused(run: Any, fleet: Any, arguments: Any, words: str) -> None:
    assert words in run("token", "create", *arguments, code=ExitCode.USAGE).stderr
    assert json.loads(run("token", "list", "--json").stdout)["tokens"] == []


def test_list_show_and_label(run: Any, fleet: Any) -> None:
    assert "licplane token create" in run("host", "list").stderr
    one = fleet.join("db-1", org="acme", environment="prod")
    fleet.join("web-10", org="acme", environment="test")
    assert set(hosts(run)) == {"db-1", "web-10"}
    table = run("host", "list", "--label", "environment=prod").stdout.splitlines()
    assert [line.split()[0] for line in table] == ["HOST", "db-1"]
    shown = run("host", "show", "db-1").stdout
    for word in (one, "active", "environment=prod,org=acme"):
        assert word in shown
    run("host", "label", "db-1", "region=eu-2", "environment=")
    found = json.loads(run("host", "show", one, "--json").stdout)["host"]
    assert found["labels"] == {"org": "acme", "region": "eu-2"}
    again = run("host", "label", "db-1", "region=eu-2")
    assert "No change" in again.stderr
    stale = run("host", "label", "db-1", "region=eu-3", "--etag", "x", code=ExitCode.REFUSED)
    assert stale.stdout == ""
    run("host", "show", "nobody", code=ExitCode.NOT_FOUND)


@pytest.mark.parametrize(
    ("command", "status"),
    [("drain", "draining"), ("evict", "evicted"), ("ban", "banned")],
)
def test_the_end_of_a_membership(run: Any, fleet: Any, command: str, status: str) -> None:
    fleet.join("db-1", org="acme")
    dry = run("host", command, "db-1", "--dry-run")
    assert "nothing was done" in dry.stderr
    assert hosts(run)["db-1"]["status"] == "active"
    run("host", command, "db-1", "--reason", "sold")
    assert hosts(run)["db-1"]["status"] == status
    entries = json.loads(run("audit", "list", "--json").stdout)["entries"]
    assert entries[-1]["reason"] == "sold"
    assert entries[-1]["actor"].startswith("local:")


def test_split_evicts_and_hands_out_a_token_for_two(run: Any, fleet: Any) -> None:
    host_id = fleet.join("db-1", org="acme", region="eu-1")
    result = run("host", "split", "db-1", "--reason", "the image was started twice")
    assert "licagent enroll --again JOIN" in result.stderr
    assert "licagent enroll --new JOIN" in result.stderr
    assert result.stdout.strip().splitlines()[-1].startswith("licjoin1.")
    found = json.loads(run("host", "show", host_id, "--json").stdout)["host"]
    assert found["status"] == "evicted"
    tokens = json.loads(run("token", "list", "--json").stdout)["tokens"]
    assert {"org": "acme", "region": "eu-1"} in [
        one["labels"] for one in tokens if one["uses_max"] == 2
    ]


def test_admit_by_files(run: Any, fleet: Any, tmp_path: Path, csr: bytes) -> None:
    request = {
        "schema_version": 1,
        "kind": "licagent-enrolment-request",
        "csr": base64url.encode(csr),
        "machine": {"hostname": "island", "machine_id": "1" * 32, "boot_id": "b"},
        "nonce": base64.urlsafe_b64encode(bytes(16)).decode().rstrip("="),
    }
    file, out = tmp_path / "request.json", tmp_path / "bundle.json"
    file.write_text(json.dumps(request))
    arguments = ("host", "admit", str(file), "--label", "org=acme", "--out", str(out))
    made = json.loads(run(*arguments, "--json").stdout)
    bundle = json.loads(out.read_text())
    assert bundle["host_id"] == made["host_id"]
    assert bundle["certificate_chain"]
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    assert hosts(run)["island"]["labels"] == {"org": "acme"}
    for text in ("", "[]", '{"schema_version": 1}', json.dumps({**request, "csr": "!"})):
        file.write_text(text)
        assert "licagent enroll --request" in run(*arguments, code=ExitCode.REFUSED).stderr


def test_what_a_change_would_cut(run: Any, fleet: Any, documents: Path) -> None:
    host_id = fleet.join("db-1", org="acme")
    run("apply", "-f", str(documents))
    fleet.report(host_id, live=[("acme-orders", "orders-db", "systemd:unit:orders.service", 2)])
    dry = run("license", "revoke", "acme-orders", "--dry-run")
    assert "would cut 2 live sockets on 1 host:" in dry.stderr
    for word in ("db-1", "acme-orders", "orders-db", "systemd:unit:orders.service"):
        assert word in dry.stdout
    [cut] = json.loads(run("license", "revoke", "acme-orders", "--dry-run", "--json").stdout)[
        "impact"
    ]
    assert (cut["hostname"], cut["sockets"]) == ("db-1", 2)
    shown = json.loads(run("license", "show", "acme-orders", "--json").stdout)["license"]
    assert shown["state"] == "active"
    host = run("host", "show", "db-1").stdout
    assert "2 sockets to orders-db under acme-orders by systemd:unit:orders.service" in host
    assert "1 of 1 attached" in host
    report = json.loads(run("host", "show", "db-1", "--json").stdout)["host"]["report"]
    assert report["state"]["mode"] == "enforce"


def test_shadow_usage_and_the_binding_for_it(run: Any, fleet: Any, documents: Path) -> None:
    assert "Nobody" in run("shadow").stderr
    host_id = fleet.join("db-1", org="acme")
    run("apply", "-f", str(documents))
    used = ShadowReport(
        "orders-db", "systemd:unit:report.service", "/usr/bin/psql\x1b[31m", "report", 7, 1, 2
    )
    fleet.report(host_id, shadow=(used,))
    [one] = json.loads(run("shadow", "--json").stdout)["usage"]
    assert (one["resource"], one["count"], one["hosts"]) == ("orders-db", 7, 1)
    table = run("shadow").stdout
    assert "systemd:unit:report.service" in table
    assert "\x1b" not in table
    toml = documents / "more.toml"
    toml.write_text(run("shadow", "--bindings").stdout)
    assert "create binding" in run("apply", "-f", str(documents)).stdout
    assert json.loads(run("shadow", "--resource", "other", "--json").stdout)["usage"] == []
