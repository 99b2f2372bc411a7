# SPDX-License-Identifier: Apache-2.0
"""Time, generations, and what the issuer said since."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lictoken_samples import SAMPLE, Forge

from lictoken.claims import U32_MAX
from lictoken.errors import Refusal, TokenError
from lictoken.keys import SigningKey
from lictoken.revocation import (
    Revocation,
    RevocationAction,
    sign_revocation,
    verify_revocation,
)
from lictoken.sign import sign_license
from lictoken.trust import TrustedKey, TrustStore
from lictoken.validity import (
    Standing,
    check_generation,
    check_standing,
    check_time,
    rfc3339,
    standing,
)
from lictoken.verify import verify_license

STATEMENT = Revocation(
    jti="rev-1",
    issuer="acme",
    audience="licagent",
    issued_at_s=1_760_000_100,
    license=SAMPLE.jti,
    action=RevocationAction.REVOKE,
    generation=SAMPLE.generation + 1,
    reason="contract ended",
)


def reason_of(check: object, *arguments: object) -> Refusal | None:
    assert callable(check)
    try:
        check(*arguments)
    except TokenError as error:
        return error.refusal
    return None


def test_time_bounds_are_half_open() -> None:
    start, end = SAMPLE.not_before_s, SAMPLE.expires_at_s
    assert reason_of(check_time, SAMPLE, start - 1) is Refusal.NOT_YET_VALID
    assert reason_of(check_time, SAMPLE, start) is None
    assert reason_of(check_time, SAMPLE, end - 1) is None
    assert reason_of(check_time, SAMPLE, end) is Refusal.EXPIRED


def test_replayed_generation() -> None:
    assert reason_of(check_generation, SAMPLE, 0) is None
    assert reason_of(check_generation, SAMPLE, SAMPLE.generation) is None
    assert reason_of(check_generation, SAMPLE, SAMPLE.generation + 1) is Refusal.REPLAYED


def test_a_statement_survives_the_round_trip(key: SigningKey, trust: TrustStore) -> None:
    for action in RevocationAction:
        said = replace(STATEMENT, action=action)
        text = sign_revocation(said, key)
        assert text.startswith("-----BEGIN LICAGENT REVOCATION-----\n")
        assert verify_revocation(text.encode(), trust) == replace(said, kid=key.kid)


def test_a_revocation_is_no_license(key: SigningKey, trust: TrustStore) -> None:
    with pytest.raises(TokenError) as caught:
        verify_license(sign_revocation(STATEMENT, key).encode(), trust)
    assert caught.value.refusal is Refusal.WRONG_PURPOSE


def test_a_license_with_the_type_of_a_revocation(forge: Forge, trust: TrustStore) -> None:
    """Even a key that signs anything cannot make one token count as both."""
    with pytest.raises(TokenError) as caught:
        verify_revocation(forge(typ="licagent-revocation+jwt"), trust)
    assert caught.value.refusal is Refusal.UNKNOWN_FIELD


@pytest.mark.parametrize(
    ("rev", "refusal"),
    [
        ({"action": "destroy"}, Refusal.BAD_VALUE),
        ({"action": ["revoke"]}, Refusal.BAD_VALUE),
        ({"generation": 0}, Refusal.BAD_NUMBER),
        ({"generation": U32_MAX + 1}, Refusal.BAD_NUMBER),
        ({"generation": True}, Refusal.BAD_VALUE),
        ({"license": "../x"}, Refusal.BAD_VALUE),
        ({"reason": "a\x1b[2J"}, Refusal.BAD_VALUE),
        ({"extra": 1}, Refusal.UNKNOWN_FIELD),
    ],
)
def test_bad_statements(
    forge: Forge, trust: TrustStore, rev: dict[str, object], refusal: Refusal
) -> None:
    good = {"license": "a", "action": "revoke", "generation": 1, "reason": "x"}
    claims = {"iss": "acme", "aud": "licagent", "iat": 1, "jti": "r", "rev": {**good, **rev}}
    with pytest.raises(TokenError) as caught:
        verify_revocation(forge(claims, typ="licagent-revocation+jwt"), trust)
    assert caught.value.refusal is refusal


def test_a_statement_of_a_retired_key(key: SigningKey, trusted: TrustedKey) -> None:
    text = sign_revocation(STATEMENT, key).encode()
    with pytest.raises(TokenError) as caught:
        verify_revocation(text, TrustStore([trusted.retired()]))
    assert caught.value.refusal is Refusal.RETIRED_KEY


def test_standing() -> None:
    suspend = replace(STATEMENT, action=RevocationAction.SUSPEND, generation=4)
    reinstate = replace(STATEMENT, action=RevocationAction.REINSTATE, generation=5)
    revoke = replace(STATEMENT, generation=6)
    for said, expected in (
        ([], Standing.ACTIVE),
        ([suspend], Standing.SUSPENDED),
        ([suspend, reinstate], Standing.ACTIVE),
        ([suspend, reinstate, revoke], Standing.REVOKED),
        ([revoke, replace(reinstate, generation=7)], Standing.REVOKED),
        ([suspend, replace(reinstate, generation=4)], Standing.SUSPENDED),
        ([replace(revoke, license="other")], Standing.ACTIVE),
        ([replace(revoke, issuer="evil")], Standing.ACTIVE),
        ([replace(revoke, generation=SAMPLE.generation)], Standing.REVOKED),
        ([replace(revoke, generation=SAMPLE.generation - 1)], Standing.ACTIVE),
    ):
        for order in itertools.permutations(said):
            assert standing(SAMPLE, order) is expected
    assert standing(replace(SAMPLE, generation=7), [suspend, revoke]) is Standing.ACTIVE
    assert reason_of(check_standing, SAMPLE, [revoke]) is Refusal.REVOKED
    assert reason_of(check_standing, SAMPLE, [suspend]) is Refusal.SUSPENDED
    assert reason_of(check_standing, SAMPLE, []) is None


@given(
    st.lists(
        st.builds(
            replace,
            st.just(STATEMENT),
            action=st.sampled_from(RevocationAction),
            generation=st.integers(1, 8),
        ),
        max_size=6,
    ),
    st.randoms(),
)
def test_the_order_of_arrival_never_matters(said: list[Revocation], random: object) -> None:
    shuffled = list(said)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert standing(SAMPLE, shuffled) is standing(SAMPLE, said)
    assert standing(SAMPLE, said + said) is standing(SAMPLE, said)


def test_a_renewed_license_outlives_what_was_said_before(
    key: SigningKey, trust: TrustStore
) -> None:
    renewed = verify_license(sign_license(replace(SAMPLE, generation=5), key).encode(), trust)
    assert standing(renewed, [STATEMENT]) is Standing.ACTIVE


def test_rfc3339() -> None:
    assert rfc3339(0) == "1970-01-01T00:00:00Z"
    assert rfc3339((2**63 - 1) // 10**9) == "2262-04-11T23:47:16Z"
