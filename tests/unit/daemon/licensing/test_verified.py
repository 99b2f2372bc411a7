# SPDX-License-Identifier: Apache-2.0
"""A license's text is verified once by the same keys, and again by others."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from licagent.daemon.licensing import license_set
from licagent.daemon.licensing.license_set import LicenseSet
from licagent.domain.clock import Reading, TrustedClock
from licagent.host.posture import boottime_ns
from licagent.store.licenses import LicenseRecords
from licagent.store.statedir import StateDir
from lictoken.claims import Entitlement, License, LicenseScope
from lictoken.errors import TokenError
from lictoken.keys import SigningKey
from lictoken.sign import sign_license
from lictoken.trust import TrustedKey, TrustStore

KEY = SigningKey("acme", bytes(range(32)))
OTHER = SigningKey("acme", bytes(range(1, 33)))
NOW_S = 1_770_000_000


def trusting(*keys: SigningKey) -> TrustStore:
    return TrustStore(TrustedKey.of(key.public_key, key.issuer) for key in keys)


def token(jti: str, number: int, key: SigningKey = KEY, generation: int = 1) -> bytes:
    found = License(
        jti=jti,
        issuer="acme",
        subject="tests",
        audience="licagent",
        number=number,
        generation=generation,
        issued_at_s=NOW_S - 10,
        not_before_s=NOW_S - 10,
        expires_at_s=NOW_S + 100_000,
        scope=LicenseScope("acme"),
        entitlements=(Entitlement("db"),),
    )
    return sign_license(found, key).encode()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "licenses").mkdir()
    (tmp_path / "trust.jwks").write_bytes(trusting(KEY).to_bytes())
    return tmp_path


@pytest.fixture
def licenses(folder: Path) -> Iterator[LicenseSet]:
    clock = TrustedClock(Reading(NOW_S * 10**9, boottime_ns(), "this-boot", synchronized=True))
    with StateDir(folder / "state") as state:
        found = LicenseSet(folder / "licenses", folder / "trust.jwks", LicenseRecords(state), clock)
        found.load()
        yield found


@pytest.fixture
def verified(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The texts whose signatures were looked at."""
    found: list[bytes] = []
    verify = license_set.verify_license

    def noted(text: bytes, trust: TrustStore) -> License:
        found.append(text)
        return verify(text, trust)

    monkeypatch.setattr(license_set, "verify_license", noted)
    return found


def test_what_has_not_changed_is_verified_once(
    folder: Path, licenses: LicenseSet, verified: list[bytes]
) -> None:
    filed, managed = token("filed", 1), token("managed", 2)
    (folder / "licenses" / "filed.lic").write_bytes(filed)
    licenses.set_managed({"managed": managed})
    licenses.load()
    licenses.load()
    licenses.store(token("stored", 3))
    licenses.load()
    assert verified == [managed, filed, token("stored", 3)]
    assert set(licenses.held) == {"filed", "managed", "stored"}


def test_a_byte_more_is_another_text(
    folder: Path, licenses: LicenseSet, verified: list[bytes]
) -> None:
    path = folder / "licenses" / "filed.lic"
    path.write_bytes(token("filed", 1))
    licenses.load()
    head, dot, signature = token("filed", 1).rpartition(b".")
    path.write_bytes(head + dot + signature[::-1])
    licenses.load()
    assert len(verified) == 2
    assert licenses.held == {}
    assert [each.file for each in licenses.refused] == ["filed.lic"]


@pytest.mark.parametrize("status", ["retired", "gone"])
def test_a_key_that_counts_no_more_ends_what_it_signed(
    folder: Path, licenses: LicenseSet, status: str
) -> None:
    (folder / "licenses" / "filed.lic").write_bytes(token("filed", 1))
    licenses.load()
    licenses.set_managed({"managed": token("managed", 2)})
    (key,) = trusting(KEY)
    left = (key.retired(), *trusting(OTHER)) if status == "retired" else trusting(OTHER)
    (folder / "trust.jwks").write_bytes(TrustStore(left).to_bytes())
    licenses.load()
    assert licenses.held == {}
    assert len(licenses.refused) == 2


def test_what_another_key_had_verified_is_not_taken_for_verified(
    folder: Path, licenses: LicenseSet
) -> None:
    """The key comes and goes between two readings of the files."""
    licenses.set_managed_trust(trusting(OTHER))
    licenses.store(token("stored", 3, OTHER))
    licenses.set_managed_trust(TrustStore())
    licenses.load()
    assert licenses.held == {}
    with pytest.raises(TokenError):
        licenses.store(token("stored", 3, OTHER))


def test_texts_that_were_replaced_are_forgotten(licenses: LicenseSet) -> None:
    for generation in range(1, 50):
        licenses.set_managed({"managed": token("managed", 2, generation=generation)})
    assert licenses.held["managed"].license.generation == 49
    assert len(licenses._verified) <= 2
