# SPDX-License-Identifier: Apache-2.0
"""Identities, licenses, keys, requests and settings."""

from __future__ import annotations

from dataclasses import replace

import pytest
from sqlalchemy import text

from licplane.errors import ExitCode, PlaneError
from licplane.store.database import Store
from licplane.store.identities import CERTIFICATE_KEPT_MS
from licplane.store.identity_model import AdminIdentity, Certificate, Credential, JoinToken, Role
from licplane.store.record_model import (
    KeyKind,
    LicenseIssue,
    LicenseRecord,
    LicenseStatement,
    RequestResult,
    SealedKey,
    Setting,
)
from lictoken.claims import U32_MAX

pytest_plugins = ["tests.support.postgres"]

DAY_MS = 24 * 3600 * 1000


def certificate(serial: str, host: str = "h", end: int = 100) -> Certificate:
    return Certificate(
        fingerprint=serial.encode().ljust(32, b"."),
        serial=serial,
        subject=f"licagent://host/{host}",
        key_fingerprint=b"k" * 32,
        not_before_unix_ms=1,
        not_after_unix_ms=end,
        host_id=host,
    )


def test_certificates(store: Store) -> None:
    old, new, other = certificate("01"), certificate("02", end=200), certificate("03", "i")
    with store.recording() as recorder:
        for one in (old, new, other):
            recorder.add_certificate(one)
    with store.reading() as reader:
        assert reader.certificate(old.fingerprint) == old
        assert reader.certificate(bytes(32)) is None
        assert reader.certificates_of("h") == (new, old)
    with store.transaction() as transaction:
        assert transaction.revoke_certificate(old.fingerprint, 50)
        assert not transaction.revoke_certificate(old.fingerprint, 60)
        assert not transaction.revoke_certificate(bytes(32), 60)
        assert transaction.revoke_certificates("h", 70) == 1
        assert transaction.revoke_certificates("h", 80) == 0
    with store.reading() as reader:
        ends = [one.revoked_at_unix_ms for one in reader.certificates_of("h")]
        assert ends == [70, 50]
        assert reader.certificate(other.fingerprint) == other


def test_a_serial_is_given_once(store: Store) -> None:
    one = certificate("01")
    with store.recording() as recorder:
        recorder.add_certificate(one)
    with pytest.raises(PlaneError) as refused, store.recording() as recorder:
        recorder.add_certificate(replace(one, fingerprint=bytes(32)))
    assert refused.value.code is ExitCode.REFUSED


def token(**changes: object) -> JoinToken:
    made = JoinToken("t", b"s" * 32, {"org": "acme"}, 2, 100, "local:root", 1)
    return replace(made, **changes)  # type: ignore[arg-type]


def test_a_join_token_lets_in_as_many_as_it_says(store: Store) -> None:
    with store.transaction() as transaction:
        transaction.put_join_token(token())
        assert [transaction.use_join_token("t", 5) for _ in range(3)] == [True, True, False]
        assert not transaction.use_join_token("u", 5)
        assert transaction.join_token("t") == token(uses=2)
        assert transaction.join_tokens() == (token(uses=2),)
        assert transaction.delete_join_token("t")
        assert not transaction.delete_join_token("t")
        assert transaction.join_token("t") is None


def test_a_join_token_ends(store: Store) -> None:
    with store.transaction() as transaction:
        transaction.put_join_token(token())
        assert transaction.use_join_token("t", 99)
        assert not transaction.use_join_token("t", 100)


def admin(name: str, print_: bytes, credential: Credential = Credential.TOKEN) -> AdminIdentity:
    return AdminIdentity(name, Role.ISSUER, credential, print_, "local:root", 1, 100)


def test_administrators(store: Store) -> None:
    held = certificate("0a", "")
    by_token = admin("ann", b"t" * 32)
    by_certificate = admin("ann", held.fingerprint, Credential.CERTIFICATE)
    other = admin("bob", b"b" * 32)
    with store.transaction() as transaction:
        transaction.add_certificate(held)
        for one in (other, by_token, by_certificate):
            transaction.put_admin(one)
        assert transaction.admin(by_token.fingerprint) == by_token
        assert transaction.admin(bytes(32)) is None
        assert {one.name for one in transaction.admins()[:2]} == {"ann"}
        assert transaction.revoke_admin("ann", 50) == 2
        assert transaction.revoke_admin("ann", 60) == 0
    with store.reading() as reader:
        assert reader.admin(by_token.fingerprint) == replace(by_token, revoked_at_unix_ms=50)
        assert reader.admin(other.fingerprint) == other
        revoked = reader.certificate(held.fingerprint)
        assert revoked is not None
        assert revoked.revoked_at_unix_ms == 50


def test_a_digest_is_spent_once_until_it_is_purged(store: Store) -> None:
    with store.recording() as recorder:
        assert recorder.spend(bytes(32), 100)
        assert not recorder.spend(bytes(32), 200)
        assert recorder.spend(b"x" * 32, 100)
    with store.recording() as recorder:
        assert recorder.purge(100, requests_before_unix_ms=0) == 0
        assert not recorder.spend(bytes(32), 100)
        assert recorder.purge(101, requests_before_unix_ms=0) == 2
        assert recorder.spend(bytes(32), 300)


def result(actor: str = "ann", name: str = "r1", at: int = 10) -> RequestResult:
    return RequestResult(actor, name, b"d" * 32, b"\x00answer", at)


def test_results_of_requests_are_each_actors_own(store: Store) -> None:
    with store.transaction() as transaction:
        transaction.put_request_result(result())
        transaction.put_request_result(result("bob", at=20))
    with store.reading() as reader:
        assert reader.request_result("ann", "r1") == result()
        assert reader.request_result("eve", "r1") is None
        assert reader.request_result("ann", "r2") is None
    with store.recording() as recorder:
        assert recorder.purge(0, requests_before_unix_ms=20) == 1
    with store.reading() as reader:
        assert reader.request_result("ann", "r1") is None
        assert reader.request_result("bob", "r1") == result("bob", at=20)


def test_rows_of_certificates_outlive_them(store: Store) -> None:
    with store.recording() as recorder:
        recorder.add_certificate(certificate("01", end=DAY_MS))
        assert recorder.purge(DAY_MS + CERTIFICATE_KEPT_MS, requests_before_unix_ms=0) == 0
        assert recorder.purge(DAY_MS + CERTIFICATE_KEPT_MS + 1, requests_before_unix_ms=0) == 1


def license(jti: str, number: int) -> LicenseRecord:
    return LicenseRecord(
        jti,
        number,
        2,
        (LicenseIssue("kid", '{"a":1}', "TOKEN 1"), LicenseIssue("kid", '{"a":2}', "TOKEN 2")),
        (LicenseStatement("rev-1", "acme", "kid", 5, "revoke", 2, "lost", "TOKEN 3"),),
    )


def test_licenses(store: Store) -> None:
    with store.transaction() as transaction:
        for at, jti in enumerate(("b", "a", "c")):
            transaction.put_license(license(jti, at + 1))
    with store.reading() as reader:
        assert reader.license("a") == license("a", 2)
        assert reader.license("d") is None
        assert reader.license_ids() == ["a", "b", "c"]
        assert reader.licenses() == tuple(license(*one) for one in (("a", 2), ("b", 1), ("c", 3)))
        assert [one.jti for one in reader.licenses(after="a", limit=1)] == ["b"]
    shorter = replace(license("a", 2), issues=license("a", 2).issues[:1], statements=())
    with store.transaction() as transaction:
        transaction.put_license(shorter)
        assert transaction.license("a") == shorter
    with pytest.raises(PlaneError) as refused, store.transaction() as transaction:
        transaction.put_license(license("z", 1))
    assert refused.value.code is ExitCode.REFUSED


def test_numbers_are_taken_once(store: Store) -> None:
    with store.transaction() as transaction:
        assert [transaction.take_number(), transaction.take_number()] == [1, 2]
    with store.transaction(dry_run=True) as transaction:
        assert transaction.take_number() == 3
    with store.transaction() as transaction:
        assert transaction.take_number() == 3
        transaction.start_numbers(U32_MAX)
        transaction.start_numbers(7)
        assert transaction.take_number() == U32_MAX
    refused = pytest.raises(PlaneError, match="no license number left")
    with refused, store.transaction() as transaction:
        transaction.take_number()


def test_keys(store: Store) -> None:
    first = SealedKey("b", KeyKind.ISSUER, "acme", '{"secret": 1}', 1)
    second = SealedKey("a", KeyKind.ISSUER, "acme", "{}", 2)
    authority = SealedKey("c", KeyKind.AUTHORITY, "", "{}", 1)
    with store.transaction() as transaction:
        for key in (second, first, authority):
            transaction.put_key(key)
        assert transaction.keys(KeyKind.ISSUER) == (first, second)
        assert transaction.keys(KeyKind.AUTHORITY) == (authority,)
        assert transaction.key("b") == first
        assert transaction.delete_key("b")
        assert not transaction.delete_key("b")
        assert transaction.key("b") is None


def test_settings(store: Store) -> None:
    with store.transaction() as transaction:
        assert transaction.setting("a") is None
        transaction.put_setting("a", b"\0")
        transaction.put_setting("a", b"\1")
        transaction.put_setting("b", b"")
        assert transaction.setting("a") == b"\1"
        assert transaction.settings() == (Setting("a", b"\1"), Setting("b", b""))
        assert transaction.delete_setting("a")
        assert not transaction.delete_setting("a")


def test_a_reader_sees_one_moment(store: Store) -> None:
    with store.reading() as reader:
        assert reader.setting("a") is None
        with store.transaction() as transaction:
            transaction.put_setting("a", b"1")
        assert reader.setting("a") is None
    with store.reading() as reader:
        assert reader.setting("a") == b"1"


def test_a_reader_cannot_write(store: Store) -> None:
    for _ in range(2):
        with store.transaction() as transaction:
            transaction.put_setting("a", b"")
        with pytest.raises(PlaneError, match=r"read-?only"), store.reading() as reader:
            reader._connection.execute(text("DELETE FROM settings"))
    with store.reading() as reader:
        assert reader.setting("a") == b""


def test_what_hosts_send_does_not_wait_for_changes_on_postgresql(postgres_url: str) -> None:
    with Store.open(postgres_url) as store:
        store.upgrade()
        with store.transaction() as transaction, store.recording() as recorder:
            transaction.put_setting("a", b"1")
            assert recorder.spend(bytes(32), 1)
