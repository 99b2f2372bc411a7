# SPDX-License-Identifier: Apache-2.0
"""Numbers and generations of licenses, and what becomes of those that were ended."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from licplane.errors import ExitCode, PlaneError
from licplane.issuer import issuing
from licplane.issuer.issuing import Terms
from licplane.issuer.registry import OpenRegistry, Registry
from licplane.store.database import Store
from lictoken.claims import Entitlement, LicenseScope
from lictoken.errors import TokenError
from lictoken.keys import SigningKey
from lictoken.revocation import RevocationAction
from lictoken.validity import Standing

KEY = SigningKey("acme", bytes(range(32)))
NOW_S = 1_800_000_000


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    folder = tmp_path / "state"
    folder.mkdir(mode=0o700)
    with Store.in_folder(folder) as opened:
        yield opened


def terms(jti: str = "a", **fields: object) -> Terms:
    base: dict[str, object] = {
        "jti": jti,
        "subject": "Acme",
        "not_before_s": NOW_S,
        "expires_at_s": NOW_S + 60,
        "scope": LicenseScope("acme"),
        "entitlements": (Entitlement("db", ("connect",)),),
    }
    return Terms(**{**base, **fields})  # type: ignore[arg-type]


def test_numbers_and_generations(store: Store) -> None:
    with store.transaction() as transaction:
        registry = OpenRegistry(transaction)
        first = issuing.issue(registry, KEY, terms("a"), NOW_S).license
        other = issuing.issue(registry, KEY, terms("b"), NOW_S).license
        again = issuing.issue(registry, KEY, terms("a"), NOW_S).license
        assert (first.number, other.number, again.number) == (1, 2, 1)
        assert (first.generation, other.generation, again.generation) == (1, 1, 2)
    with store.reading() as reader:
        record = Registry(reader).get("a")
        assert [one.license.generation for one in record.issues] == [1, 2]
        assert record.latest == again
        assert [one.jti for one in Registry(reader)] == ["a", "b"]
        assert Registry(reader).page("a", 5)[0].jti == "b"


def test_refused_terms_cost_no_number(store: Store) -> None:
    with store.transaction() as transaction:
        registry = OpenRegistry(transaction)
        with pytest.raises(TokenError):
            issuing.issue(registry, KEY, terms(expires_at_s=NOW_S), NOW_S)
        assert issuing.issue(registry, KEY, terms(), NOW_S).license.number == 1


def test_what_was_ended_stays_so(store: Store) -> None:
    def say(action: RevocationAction) -> None:
        issuing.state(registry, KEY, "a", action, reason="because", now_s=NOW_S)

    with store.transaction() as transaction:
        registry = OpenRegistry(transaction)
        issuing.issue(registry, KEY, terms(), NOW_S)
        say(RevocationAction.SUSPEND)
        assert registry.get("a").standing is Standing.SUSPENDED
        with pytest.raises(PlaneError, match="suspended"):
            issuing.issue(registry, KEY, terms(), NOW_S)
        say(RevocationAction.REINSTATE)
        say(RevocationAction.REVOKE)
        with pytest.raises(PlaneError, match="revoked"):
            issuing.issue(registry, KEY, terms(), NOW_S)
        with pytest.raises(PlaneError, match="final"):
            say(RevocationAction.REINSTATE)
        anew = issuing.issue(registry, KEY, terms(), NOW_S, after_revocation=True)
        assert anew.license.generation == 5
        assert registry.get("a").standing is Standing.ACTIVE


def test_only_its_own_issuer_speaks_of_a_license(store: Store) -> None:
    other = SigningKey("other", bytes(32))
    with store.transaction() as transaction:
        registry = OpenRegistry(transaction)
        issuing.issue(registry, KEY, terms(), NOW_S)
        with pytest.raises(PlaneError, match="issued by acme"):
            issuing.issue(registry, other, terms(), NOW_S)
        with pytest.raises(PlaneError, match="issued by acme"):
            issuing.state(
                registry, other, "a", RevocationAction.REVOKE, reason="because", now_s=NOW_S
            )


@pytest.mark.parametrize("name", ["b", "../../etc", "a\0", "' OR 1=1", "x" * 10_000])
def test_names_of_nothing(store: Store, name: str) -> None:
    with store.transaction() as transaction:
        issuing.issue(OpenRegistry(transaction), KEY, terms("a-license"), NOW_S)
    with store.reading() as reader, pytest.raises(PlaneError) as error:
        Registry(reader).get(name)
    assert error.value.code is ExitCode.NOT_FOUND
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 300


def test_renewal(store: Store) -> None:
    with store.transaction() as transaction:
        registry = OpenRegistry(transaction)
        issuing.issue(registry, KEY, terms(grace_s=7), NOW_S)
        renewed = issuing.renew(registry, KEY, "a", expires_at_s=NOW_S + 90, now_s=NOW_S + 1)
        assert (renewed.license.generation, renewed.license.grace_s) == (2, 7)
        with pytest.raises(PlaneError, match="not last longer"):
            issuing.renew(registry, KEY, "a", expires_at_s=NOW_S + 90, now_s=NOW_S)
