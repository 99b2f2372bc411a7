# SPDX-License-Identifier: Apache-2.0
"""What is signed is what is read, and nothing near it verifies."""

from __future__ import annotations

import json
import string
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lictoken_samples import SAMPLE, Forge

from lictoken import base64url
from lictoken.armour import Label, armour, is_armoured, unarmour
from lictoken.claims import (
    ACTIONS,
    EXHAUSTIONS,
    FAILURE_MODES,
    I64_MAX,
    TIME_MAX_S,
    U32_MAX,
    WINDOWS,
    Condition,
    Entitlement,
    License,
    LicenseScope,
    Limit,
)
from lictoken.errors import Refusal, TokenError
from lictoken.keys import SigningKey
from lictoken.payload import license_to_claims
from lictoken.sign import sign_license
from lictoken.trust import TrustedKey, TrustStore
from lictoken.verify import verify_license

KEY = SigningKey("acme", bytes(range(32)))
TRUST = TrustStore([TrustedKey.of(KEY.public_key, "acme")])
TEXT = sign_license(SAMPLE, KEY).encode()
TOKEN = unarmour(TEXT, Label.LICENSE).encode()

letters = string.ascii_letters + string.digits
ids = st.builds(str.__add__, st.sampled_from(letters), st.text(letters + "._-", max_size=20))
words = st.from_regex(r"[a-z][a-z0-9_]{0,20}", fullmatch=True)
kinds = st.from_regex(r"[a-z][a-z0-9_]{0,20}(:[a-z][a-z0-9_./-]{0,20})?", fullmatch=True)
names = st.text(min_size=1, max_size=30).filter(lambda t: t.isprintable() and t == t.strip())
few_ids = st.lists(ids, max_size=3, unique=True).map(tuple)
times = st.integers(0, TIME_MAX_S)
limits = st.builds(
    Limit, words, st.integers(0, I64_MAX), st.sampled_from(WINDOWS), st.sampled_from(EXHAUSTIONS)
)
conditions = st.lists(
    st.builds(Condition, kinds, st.lists(names, min_size=1, max_size=3, unique=True).map(tuple)),
    max_size=3,
    unique_by=lambda one: one.kind,
).map(lambda found: tuple(sorted(found, key=lambda one: one.kind)))
entitlements = st.builds(
    Entitlement,
    ids,
    st.lists(st.sampled_from(ACTIONS), min_size=1, unique=True).map(tuple),
    st.lists(limits, max_size=3, unique_by=lambda one: (one.meter, one.window)).map(tuple),
    conditions,
)
licenses = st.builds(
    License,
    jti=ids,
    issuer=st.just("acme"),
    subject=names,
    audience=st.just("licagent"),
    number=st.integers(1, U32_MAX),
    generation=st.integers(1, U32_MAX),
    issued_at_s=times,
    not_before_s=st.integers(0, TIME_MAX_S // 2),
    expires_at_s=st.integers(TIME_MAX_S // 2 + 1, TIME_MAX_S),
    scope=st.builds(LicenseScope, ids, st.none() | ids, few_ids, few_ids),
    entitlements=st.lists(
        entitlements, min_size=1, max_size=4, unique_by=lambda one: one.resource
    ).map(tuple),
    selectors=st.lists(
        st.sampled_from(["host", "unix:uid:1", "cgroup:path:/a b", "x:y:z"]), unique=True
    ).map(tuple),
    hosts=few_ids,
    grace_s=st.integers(0, U32_MAX),
    failure_mode=st.sampled_from(FAILURE_MODES),
    kid=st.just(KEY.kid),
)


@given(licenses)
def test_a_license_survives_the_round_trip(license: License) -> None:
    text = sign_license(license, KEY, foreign_conditions=True)
    assert is_armoured(text.encode())
    assert verify_license(text.encode(), TRUST) == license
    assert verify_license(unarmour(text.encode(), Label.LICENSE).encode(), TRUST) == license


@st.composite
def mutations(draw: st.DrawFn, original: bytes) -> bytes:
    data = bytearray(original)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(len(data) - 1, 0)))
        kind = draw(st.sampled_from(["replace", "insert", "delete", "cut", "double", "flip"]))
        match kind:
            case "replace":
                data[at : at + 1] = draw(st.binary(min_size=1, max_size=1))
            case "insert":
                data[at:at] = draw(st.binary(min_size=1, max_size=8))
            case "delete":
                del data[at : at + draw(st.integers(1, 8))]
            case "cut":
                del data[at:]
            case "double":
                data[at:at] = data[at : at + draw(st.integers(1, 70))]
            case _ if data:
                data[at] ^= 1 << draw(st.integers(0, 7))
    return bytes(data)


@settings(max_examples=500)
@given(mutations(TOKEN))
def test_no_mutation_of_a_token_verifies(data: bytes) -> None:
    if data == TOKEN:
        return
    with pytest.raises(TokenError):
        verify_license(data, TRUST)


@settings(max_examples=500)
@given(mutations(TEXT))
def test_no_mutation_of_a_file_says_anything_else(data: bytes) -> None:
    """The armour has two free choices, LF or CRLF and the last line end; the license none."""
    try:
        found = verify_license(data, TRUST)
    except TokenError:
        return
    assert data.replace(b"\r\n", b"\n").rstrip(b"\n") == TEXT.rstrip(b"\n")
    assert found == replace(SAMPLE, kid=KEY.kid)


@settings(max_examples=300)
@given(st.binary(max_size=300))
def test_nothing_but_token_errors(data: bytes) -> None:
    prefix = b"-----BEGIN LICAGENT LICENSE-----\n"
    for attempt in (data, prefix + data, b"e30." + data, TOKEN + data[:1] + b"x"):
        with pytest.raises(TokenError):
            verify_license(attempt, TRUST)


@settings(max_examples=300)
@given(payload=st.binary(max_size=300))
def test_signed_garbage_is_refused(forge: Forge, payload: bytes) -> None:
    for token in (forge(payload), forge(header=payload)):
        with pytest.raises(TokenError):
            verify_license(token, TRUST)


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=10)
    | st.sampled_from(["iss", "acme", "licagent"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["ver", "number", "scope", "org", "entitlements", "resource", "limits"])
            | st.text(max_size=5),
            inner,
            max_size=4,
        )
    ),
    max_leaves=15,
)


@settings(max_examples=300)
@given(name=st.sampled_from(["jti", "sub", "exp", "lic"]), value=json_values)
def test_signed_claims_of_any_shape(forge: Forge, name: str, value: object) -> None:
    claims = {**license_to_claims(SAMPLE), name: value}
    try:
        verify_license(forge(json.dumps(claims).encode()), TRUST)
    except TokenError:
        pass
    else:
        assert name != "lic"


@given(st.binary(max_size=100))
def test_base64url(data: bytes) -> None:
    assert base64url.decode(base64url.encode(data), "it") == data


@given(st.text(letters + "-_", max_size=12))
def test_base64url_has_one_spelling(text: str) -> None:
    try:
        data = base64url.decode(text, "it")
    except TokenError:
        return
    assert base64url.encode(data) == text


@given(st.text(letters + ".-_", min_size=1, max_size=300), st.sampled_from(Label))
def test_armour(token: str, label: Label) -> None:
    text = armour(token, label)
    assert max(map(len, text.splitlines())) <= 64
    for variant in (text, text.rstrip("\n"), text.replace("\n", "\r\n")):
        assert unarmour(variant.encode(), label) == token


@pytest.mark.parametrize(
    ("damage", "refusal"),
    [
        (lambda t: "note\n" + t, Refusal.BAD_ARMOUR),
        (lambda _: "hello, world\n", Refusal.BAD_ENCODING),
        (lambda t: t.replace("LICENSE", "LICENCE"), Refusal.WRONG_PURPOSE),
        (lambda t: t.replace("END LICAGENT LICENSE", "END LICAGENT OTHER"), Refusal.BAD_ARMOUR),
        (lambda t: t.replace("\n", "\n\n", 3), Refusal.BAD_ARMOUR),
        (lambda t: t.replace("LICENSE-----\n", "LICENSE-----\nNote: x\n", 1), Refusal.BAD_ARMOUR),
        (lambda t: t.replace("\n", " \n"), Refusal.BAD_ARMOUR),
        (lambda t: t.replace("\n", "\r\n", 3), Refusal.TRUNCATED),
        (lambda t: t.replace("e", "é", 1), Refusal.BAD_ENCODING),
    ],
)
def test_damaged_armour(damage: object, refusal: Refusal) -> None:
    assert callable(damage)
    with pytest.raises(TokenError) as caught:
        verify_license(damage(TEXT.decode()).encode(), TRUST)
    assert caught.value.refusal is refusal


def test_nothing_is_signed_that_would_be_refused() -> None:
    for bad, refusal in (
        (replace(SAMPLE, number=0), Refusal.BAD_NUMBER),
        (replace(SAMPLE, expires_at_s=SAMPLE.not_before_s), Refusal.BAD_VALUE),
        (replace(SAMPLE, entitlements=()), Refusal.BAD_VALUE),
        (replace(SAMPLE, hosts=tuple(f"h{n}" for n in range(4000))), Refusal.TOO_LARGE),
    ):
        with pytest.raises(TokenError) as caught:
            sign_license(bad, KEY)
        assert caught.value.refusal is refusal
