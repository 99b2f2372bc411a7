# SPDX-License-Identifier: Apache-2.0
"""Join tokens, administrators, roles, the audit log, enrolment by files."""

from __future__ import annotations

import json

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from sqlalchemy import text
from tests.unit.licplane.service.world import (
    ROOT,
    World,
    binding,
    csr,
    license,
    new_key,
    parse_join,
    resource,
)

from licapi.control.v1 import sync_pb2
from licplane.errors import ExitCode, PlaneError, Unauthenticated
from licplane.service.access import PERMISSIONS, Permission
from licplane.service.requests import Change, Document, Machine, PageRequest, Progress
from licplane.service.usage.query import UsageQuery
from licplane.service.usage.values import ReadRecords
from licplane.service.values import Actor, HostStatus, Role, View
from lictoken import base64url
from lictoken.digest import digest_of
from lictoken.sealed import Seal, SealPurpose, unseal
from lictoken.trust import TrustStore

pytest_plugins = ["tests.support.postgres"]


def test_a_join_token_is_answered_again_and_kept_by_nobody(both: World) -> None:
    def create() -> str:
        return both.plane.create_join_token(
            ROOT, Change(request_id="t1"), labels={"org": "acme"}, uses_max=3, ttl_s=60
        ).join

    first = create()
    assert create() == first
    found = parse_join(first)
    assert (found["public"], found["control"]) == ("plane.test:8444", "plane.test:8443")
    x509.load_der_x509_certificate(base64url.decode(found["ca"], "ca"))
    with both.store.reading() as reader:
        kept = reader.join_token(found["id"])
        answer = reader.request_result(ROOT.name, "t1")
    assert kept is not None
    assert answer is not None
    secret = found["secret"].encode()
    assert secret not in kept.secret_hash
    assert secret not in answer.result
    assert secret.decode() not in str(both.plane.list_audit(ROOT, 0, 100))
    dry = both.plane.create_join_token(ROOT, Change(dry_run=True), labels={}, uses_max=1, ttl_s=60)
    assert dry.join == ""
    assert len(both.plane.list_join_tokens(ROOT)) == 1
    assert both.plane.delete_join_token(ROOT, Change(), found["id"]).changed
    with pytest.raises(PlaneError, match="no join token"):
        both.plane.delete_join_token(ROOT, Change(), found["id"])


@pytest.mark.parametrize(
    ("uses", "ttl_s"), [(0, 60), (-1, 60), (10**9, 60), (1, 0), (1, 31 * 86400)]
)
def test_bounds_of_join_tokens(world: World, uses: int, ttl_s: int) -> None:
    with pytest.raises(PlaneError) as error:
        world.plane.create_join_token(ROOT, Change(), labels={}, uses_max=uses, ttl_s=ttl_s)
    assert error.value.code is ExitCode.USAGE


def test_administrators_by_certificate(both: World) -> None:
    made = both.plane.create_admin(
        ROOT, Change(), name="ann", role=Role.ISSUER, means="certificate", ttl_s=3600
    )
    certificates = x509.load_pem_x509_certificates(made.pem.encode())
    assert made.pem.startswith("-----BEGIN PRIVATE KEY-----")
    leaf, root = certificates
    leaf.verify_directly_issued_by(root)
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.UniformResourceIdentifier) == ["licagent://admin/ann"]
    fingerprint = leaf.fingerprint(hashes.SHA256()).hex()
    found = both.plane.authenticate(fingerprint.upper())
    assert (found.name, found.role, found.host_id) == ("ann", Role.ISSUER, "")
    assert both.plane.revoke_admin(ROOT, Change(), "ann").changed
    assert not both.plane.revoke_admin(ROOT, Change(), "ann").changed
    with pytest.raises(Unauthenticated):
        both.plane.authenticate(fingerprint)


def test_administrators_by_token(both: World) -> None:
    made = both.plane.create_admin(
        ROOT, Change(), name="bob", role=Role.AUDITOR, means="token", ttl_s=3600
    )
    assert both.plane.authenticate_token(made.token).role is Role.AUDITOR
    for wrong in ("", "x", made.token + "x", made.token[:-1], "licadmin1.", "\ud800", "l" * 10**7):
        with pytest.raises(Unauthenticated):
            both.plane.authenticate_token(wrong)
    assert [(one.name, one.means, one.revoked) for one in both.plane.list_admins(ROOT)] == [
        ("bob", "token", False)
    ]
    both.clock.pass_s(3601)
    with pytest.raises(Unauthenticated):
        both.plane.authenticate_token(made.token)


@pytest.mark.parametrize("fingerprint", ["", "x", "0" * 64, "0" * 63, "../" * 20, "\0" * 64])
def test_certificates_of_nobody(world: World, fingerprint: str) -> None:
    with pytest.raises(Unauthenticated):
        world.plane.authenticate(fingerprint)


def test_an_administrator_is_no_host_and_gets_a_name(world: World) -> None:
    for name in ("", "a b", "../x", "x" * 65, "a\0"):
        with pytest.raises(PlaneError):
            world.plane.create_admin(ROOT, Change(), name=name, role=Role.ADMIN, means="token")
    with pytest.raises(PlaneError, match="for hosts"):
        world.plane.create_admin(ROOT, Change(), name="a", role=Role.HOST, means="token")
    with pytest.raises(PlaneError, match="certificate, token"):
        world.plane.create_admin(ROOT, Change(), name="a", role=Role.ADMIN, means="password")


def test_roles(world: World) -> None:
    """Each role may do what its permissions say, and nothing else."""
    plane, change, page = world.plane, Change(dry_run=True), PageRequest()
    world.apply(license())
    host = world.host()
    calls = {
        Permission.READ_HOSTS: lambda who: plane.list_hosts(who, {}, page),
        Permission.CHANGE_HOSTS: lambda who: plane.update_host(
            who, change, host.id, labels={"a": "b"}
        ),
        Permission.READ_TOKENS: plane.list_join_tokens,
        Permission.CHANGE_TOKENS: lambda who: plane.create_join_token(
            who, change, labels={}, uses_max=1, ttl_s=60
        ),
        Permission.READ_CATALOG: lambda who: plane.list_objects(who, "", page),
        Permission.CHANGE_CATALOG: lambda who: plane.set_license_state(
            who, change, "acme-db", "revoke"
        ),
        Permission.READ_AUDIT: lambda who: plane.list_audit(who, 0, 1),
        Permission.READ_ADMINS: plane.list_admins,
        Permission.CHANGE_ADMINS: lambda who: plane.create_admin(
            who, change, name="x", role=Role.ADMIN, means="token"
        ),
        Permission.CHANGE_KEYS: lambda who: plane.retire_key(
            who, change, next(iter(TrustStore.from_bytes(plane.trust()))).kid
        ),
        Permission.READ_USAGE: lambda who: plane.money.usage(who, UsageQuery()),
        Permission.CHANGE_BILLING: lambda who: plane.money.set_retention(
            who, change, {"records_days": 9}
        ),
    }
    assert set(calls) == set(Permission)
    for role in Role:
        actor = Actor("somebody", role)
        for permission, call in calls.items():
            if permission in PERMISSIONS[role]:
                call(actor)
                continue
            with pytest.raises(PlaneError) as error:
                call(actor)
            assert error.value.code is ExitCode.PERMISSION
            assert "Ask somebody with the role" in str(error.value)
    assert PERMISSIONS[Role.HOST] == frozenset()
    assert Permission.CHANGE_CATALOG not in PERMISSIONS[Role.AUDITOR]
    assert Permission.CHANGE_HOSTS not in PERMISSIONS[Role.ISSUER]
    everything = (
        lambda who: plane.get_host(who, host.id),
        lambda who: plane.apply(who, change, [binding()]),
        lambda who: plane.delete_join_token(who, change, "x"),
        lambda who: plane.shadow_usage(who, page),
        plane.verify_audit,
        plane.audit_head,
        lambda who: plane.money.explain(who, 1, None),
        lambda who: plane.money.verify(who, lambda _first, _records: ReadRecords((), (), 0, 0)),
        lambda who: plane.money.documents(who, ""),
        lambda who: plane.money.apply(who, change, [Document("plan", "x", "")], delete=True),
        lambda who: plane.money.periods(who, ""),
        lambda who: plane.money.bill(who, "x", ""),
        lambda who: plane.money.close(who, change, "x", "2026-10"),
        lambda who: plane.money.correct(who, change, "x/2026-10"),
        lambda who: plane.money.budgets(who, ""),
        lambda who: plane.money.deliveries(who, "", ""),
        plane.money.retention,
        lambda who: plane.money.report(who, 0, 0, "", "json"),
        lambda who: plane.money.export_events(who, 0, 0, page),
        lambda who: plane.money.export_focus(who, "x", ""),
        lambda who: plane.revoke_admin(who, change, "x"),
        lambda who: plane.renew_license(who, change, "acme-db", expires_at_s=4_200_000_000),
        lambda who: plane.create_key(who, change, issuer="x", passphrase="long enough"),
    )
    for call in everything:
        with pytest.raises(PlaneError) as error:
            call(Actor(f"host:{host.id}", Role.HOST))
        assert error.value.code is ExitCode.PERMISSION


def tamper(world: World, statement: str, **values: object) -> None:
    with world.store._engine.begin() as connection:
        connection.execute(text(statement), values)


def test_every_change_is_in_the_log(both: World) -> None:
    both.apply(resource(), license(), change={"reason": "new", "request_id": "q1"})
    host = both.host()
    both.plane.update_host(ROOT, Change(), host.id, labels={}, status=HostStatus.BANNED)
    both.plane.set_license_state(ROOT, Change(reason="fraud"), "acme-db", "revoke")
    entries = both.plane.list_audit(ROOT, 0, 100)
    assert [one.action for one in entries] == [
        "key.create",
        "authority.create",
        "license.issue",
        "catalog.apply",
        "token.create",
        "host.enroll",
        "host.banned",
        "license.revoke",
    ]
    applied = entries[3]
    assert (applied.reason, applied.request_id, applied.actor) == ("new", "q1", "local:root")
    assert json.loads(applied.detail_json)["create"] == ["resource/db"]
    assert entries[5].actor.startswith("join-token:")
    check = both.plane.verify_audit(ROOT)
    assert (check.intact, check.entries) == (True, len(entries))
    assert [one.sequence for one in both.plane.list_audit(ROOT, 5, 2)] == [6, 7]


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE audit SET reason = 'x' WHERE sequence = 3",
        "DELETE FROM audit WHERE sequence = 3",
        "DELETE FROM audit WHERE sequence = (SELECT max(sequence) FROM audit)",
        "UPDATE audit SET actor = 'nobody' WHERE sequence = (SELECT max(sequence) FROM audit)",
    ],
)
def test_a_log_that_was_altered(both: World, statement: str) -> None:
    both.apply(resource(), license())
    tamper(both, statement)
    check = both.plane.verify_audit(ROOT)
    assert not check.intact
    assert check.problems


def test_a_head_kept_elsewhere_finds_a_cut_log(world: World) -> None:
    """Somebody cuts the log and all its newer heads: only a head kept elsewhere shows it."""
    world.apply(resource())
    with world.store.reading() as reader:
        before = reader.head()
    cut = before.audit_sequence
    world.apply(license())
    kept = world.plane.audit_head(ROOT)
    assert world.plane.verify_audit(ROOT, kept).intact
    tamper(world, "DELETE FROM audit WHERE sequence > :at", at=cut)
    tamper(world, "DELETE FROM audit_heads WHERE sequence > :at", at=cut)
    check = world.plane.verify_audit(ROOT, kept)
    assert not check.intact
    for data in (b"", b"{}", b"x" * 100_000, kept.replace(b'"kid"', b'"kod"')):
        with pytest.raises(PlaneError) as error:
            world.plane.verify_audit(ROOT, data)
        assert error.value.code is ExitCode.USAGE


@pytest.mark.parametrize(
    "change",
    [
        Change(request_id="x" * 65),
        Change(request_id="a\0"),
        Change(reason="x" * 10_000_000),
        Change(reason="a\nb"),
        Change(reason=" spaced "),
        Change(etag="\x1b"),
    ],
)
def test_hostile_changes(world: World, change: Change) -> None:
    with pytest.raises(PlaneError) as error:
        world.plane.apply(ROOT, change, [resource()])
    assert error.value.code is ExitCode.USAGE
    assert len(str(error.value)) < 1000


def test_a_host_enrolled_by_files(both: World) -> None:
    both.apply(resource(), binding(), license(), license("theirs", scope={"org": "other"}))
    key = new_key()
    made = both.plane.admit_offline(
        ROOT,
        Change(reason="no network"),
        csr=csr(key),
        machine=Machine("vault", "d" * 32, "boot-1"),
        labels={"org": "acme"},
        certificate_ttl_s=30 * 86_400,
        lease_ttl_s=30 * 86_400,
        nonce=b"n" * 16,
    )
    bundle = json.loads(made.bundle)
    trust = TrustStore.from_bytes(base64url.decode(bundle["trust"], "trust"))

    def opened(name: str, purpose: SealPurpose) -> bytes:
        one = bundle[name]
        return unseal(
            purpose,
            Seal(
                base64url.decode(one["payload"], "payload"),
                one["kid"],
                base64url.decode(one["signature"], "signature"),
            ),
            trust,
        )

    manifest = sync_pb2.SnapshotManifest.FromString(opened("manifest", SealPurpose.SNAPSHOT))
    objects = [
        (one["kind"], one["name"], base64url.decode(one["payload"], "payload"))
        for one in bundle["objects"]
    ]
    assert manifest.digest == digest_of(objects)
    assert {name for _, name, _ in objects} == {"db", "b", "acme-db", "trust"}
    lease = sync_pb2.LeaseBundle.FromString(opened("lease", SealPurpose.LEASE))
    assert (lease.host_id, lease.boot_id, lease.nonce) == (made.host_id, "", b"n" * 16)
    assert lease.ttl_ms == 30 * 86_400_000
    assert [one.license for one in lease.leases] == ["acme-db"]
    leaf = x509.load_der_x509_certificate(base64url.decode(bundle["certificate_chain"][0], "c"))
    fingerprint = leaf.fingerprint(hashes.SHA256()).hex()
    assert both.plane.authenticate(fingerprint).host_id == made.host_id
    # Asked again for the same key it is the same host, with new leases.
    again = both.plane.admit_offline(
        ROOT,
        Change(),
        csr=csr(key),
        machine=Machine("vault", "d" * 32, "boot-1"),
        labels={"org": "acme"},
        certificate_ttl_s=3600,
        lease_ttl_s=3600,
    )
    assert again.host_id == made.host_id
    assert both.actions().count("host.admit") == 2
    both.plane.update_host(ROOT, Change(), made.host_id, labels={}, status=HostStatus.BANNED)
    with pytest.raises(PlaneError, match="banned"):
        both.plane.admit_offline(
            ROOT,
            Change(),
            csr=csr(new_key()),
            machine=Machine("vault", "d" * 32),
            labels={},
            certificate_ttl_s=3600,
            lease_ttl_s=3600,
        )


def test_server_credentials(world: World) -> None:
    made = world.plane.server_credentials(["plane.test", "127.0.0.1", "::1"])
    (leaf,) = x509.load_pem_x509_certificates(made.certificate_chain_pem)
    (root,) = x509.load_pem_x509_certificates(made.ca_pem)
    leaf.verify_directly_issued_by(root)
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["plane.test"]
    assert [str(one) for one in names.get_values_for_type(x509.IPAddress)] == ["127.0.0.1", "::1"]
    usage = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [x509.oid.ExtendedKeyUsageOID.SERVER_AUTH]
    with pytest.raises(Unauthenticated):  # a server's certificate is nobody's
        world.plane.authenticate(leaf.fingerprint(hashes.SHA256()).hex())
    with pytest.raises(PlaneError):
        world.plane.server_credentials([])


def test_housekeeping(both: World) -> None:
    both.apply(license(), change={"request_id": "old"})
    both.clock.pass_s(8 * 86_400)
    both.plane.housekeeping()
    with both.store.reading() as reader:
        assert reader.request_result(ROOT.name, "old") is None
    assert both.plane.verify_head().intact


def test_numbers_beyond_the_database(both: World) -> None:
    host = both.host()
    for huge in (2**63, 2**64 - 1, -1):
        assert both.plane.list_audit(ROOT, huge, huge) is not None
        both.plane.record_progress([Progress(host.id, huge)])
        assert both.plane.get_host(ROOT, host.id).acked_revision >= 0
        assert both.plane.list_hosts(ROOT, {}, PageRequest(huge)).items
        assert both.plane.view_changes(View("acme"), huge).reset
