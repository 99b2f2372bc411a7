# SPDX-License-Identifier: Apache-2.0
"""Every attack on a token is refused, by its name.

Tokens here carry a valid signature of a trusted key unless the attack is about that, so a
check that is left out lets the token through.
"""

from __future__ import annotations

import copy
import hashlib
import hmac
import json
import os
from pathlib import Path
from typing import Any

import pytest
from lictoken_samples import SAMPLE, Forge

from lictoken import base64url
from lictoken.armour import Label, armour
from lictoken.claims import License
from lictoken.errors import NEXT_STEPS, Refusal, TokenError
from lictoken.keys import Purpose, SigningKey
from lictoken.limits import TOKEN_MAX_BYTES
from lictoken.payload import license_to_claims
from lictoken.revocation import verify_revocation
from lictoken.sign import sign_license
from lictoken.strictjson import dump
from lictoken.trust import TrustedKey, TrustStore
from lictoken.verify import read_license_file, verify_license

CLAIMS = license_to_claims(SAMPLE)


def refused(data: bytes, trust: TrustStore, refusal: Refusal, *words: str) -> None:
    with pytest.raises(TokenError) as caught:
        verify_license(data, trust)
    assert caught.value.refusal is refusal, caught.value
    for word in words:
        assert word in caught.value.detail


def changed(**paths: object) -> dict[str, Any]:
    """CLAIMS with `a__b__0=value` put at a.b[0]; `...` removes."""
    claims: dict[str, Any] = copy.deepcopy(CLAIMS)
    for path, value in paths.items():
        *way, last = [int(step) if step.isdigit() else step for step in path.split("__")]
        place: Any = claims
        for step in way:
            place = place[step]
        if value is ...:
            del place[last]
        else:
            place[last] = value
    return claims


def test_what_the_forger_makes_is_accepted_when_nothing_is_wrong(
    forge: Forge, trust: TrustStore, key: SigningKey
) -> None:
    found = verify_license(forge(), trust)
    assert (found.jti, found.kid, found.generation) == (SAMPLE.jti, key.kid, 3)


# ------------------------------------------------------------------------------- algorithm


@pytest.mark.parametrize("name", ["none", "None", "NONE", ""])
def test_alg_none(forge: Forge, trust: TrustStore, name: str) -> None:
    token = forge(alg=name)
    refused(token, trust, Refusal.WRONG_ALGORITHM)
    refused(token.rpartition(b".")[0] + b".", trust, Refusal.TRUNCATED)


def test_hs256_with_the_public_key(key: SigningKey, trusted: TrustedKey, trust: TrustStore) -> None:
    header = {"alg": "HS256", "typ": Purpose.LICENSE.typ, "kid": key.kid}
    signed = f"{base64url.encode(dump(header))}.{base64url.encode(dump(CLAIMS))}"
    for secret in (key.public_key, json.dumps(trusted.to_jwk()).encode()):
        mac = hmac.digest(secret, signed.encode(), hashlib.sha256)
        # As long as an Ed25519 signature, so that the length is not what saves us.
        token = f"{signed}.{base64url.encode(mac + mac)}".encode()
        refused(token, trust, Refusal.WRONG_ALGORITHM, "HS256")


@pytest.mark.parametrize("name", ["EdDSA", "ES256", "RS256", "HS512", "Ed448", "ed25519", None, 1])
def test_another_alg(forge: Forge, trust: TrustStore, name: object) -> None:
    refused(forge(alg=name), trust, Refusal.WRONG_ALGORITHM)


def test_no_alg(forge: Forge, key: SigningKey, trust: TrustStore) -> None:
    header = {"typ": Purpose.LICENSE.typ, "kid": key.kid}
    refused(forge(header=header), trust, Refusal.WRONG_ALGORITHM)


# ------------------------------------------------------------------------------------- key


def test_unknown_key(trust: TrustStore) -> None:
    stranger = SigningKey.create("acme")
    token = sign_license(SAMPLE, stranger).encode()
    refused(token, trust, Refusal.UNKNOWN_KEY, stranger.kid)


@pytest.mark.parametrize(
    "kid",
    [
        "../../../../dev/null",
        "/etc/licagent/trust.jwks",
        "' OR 1=1 --" + "x" * 32,
        "x" * 42,
        "x" * 44,
        "a" * 42 + "/",
        "a" * 42 + "\n",
        "",
        None,
        5,
        ["a"],
        {"a": 1},
    ],
)
def test_kid_that_is_no_thumbprint(forge: Forge, trust: TrustStore, kid: object) -> None:
    refused(forge(kid=kid), trust, Refusal.BAD_KEY_ID)


def test_no_kid(forge: Forge, trust: TrustStore) -> None:
    header = {"alg": "Ed25519", "typ": Purpose.LICENSE.typ}
    refused(forge(header=header), trust, Refusal.BAD_KEY_ID)


def test_retired_key(forge: Forge, trusted: TrustedKey) -> None:
    store = TrustStore([trusted.retired("2026-01-02T03:04:05Z")])
    refused(forge(), store, Refusal.RETIRED_KEY, "2026-01-02T03:04:05Z")


def test_key_that_is_trusted_for_something_else(forge: Forge, key: SigningKey) -> None:
    jwk = TrustedKey.of(key.public_key, "acme").to_jwk()
    jwk["licagent"] = {"issuer": "acme", "status": "active", "purposes": ["revocation"]}
    store = TrustStore.from_bytes(dump({"keys": [jwk]}))
    refused(forge(), store, Refusal.KEY_PURPOSE)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("jwk", {"kty": "OKP", "crv": "Ed25519", "x": "AA"}),
        ("jku", "https://evil.example/jwks"),
        ("x5u", "https://evil.example/cert"),
        ("x5c", ["MIIB"]),
        ("x5t", "AA"),
        ("x5t#S256", "AA"),
        ("jwk", None),
    ],
)
def test_header_that_brings_a_key(
    forge: Forge, trust: TrustStore, name: str, value: object
) -> None:
    refused(forge(**{name: value}), trust, Refusal.KEY_IN_HEADER, name)


@pytest.mark.parametrize("crit", [["exp"], ["b64"], [], "b64", None, [1]])
def test_crit(forge: Forge, trust: TrustStore, crit: object) -> None:
    refused(forge(crit=crit), trust, Refusal.UNKNOWN_CRITICAL)


@pytest.mark.parametrize("name", ["b64", "cty", "zip", "enc", "KID", "p2c"])
def test_unknown_header(forge: Forge, trust: TrustStore, name: str) -> None:
    refused(forge(**{name: True}), trust, Refusal.UNKNOWN_HEADER, name)


def test_signature_of_something_else(forge: Forge, trust: TrustStore) -> None:
    mine = forge().split(b".")
    other = forge(changed(lic__number=8)).split(b".")
    refused(b".".join([*mine[:2], other[2]]), trust, Refusal.BAD_SIGNATURE)


def test_a_broken_signature_is_found_before_the_payload_is_read(
    forge: Forge, trust: TrustStore
) -> None:
    header, _, signature = forge().split(b".")
    garbage = base64url.encode(b'{"a":1,"a":').encode()
    refused(b".".join([header, garbage, signature]), trust, Refusal.BAD_SIGNATURE)


# ------------------------------------------------------------------ purpose, issuer, audience


@pytest.mark.parametrize(
    "typ",
    ["licagent-revocation+jwt", "licagent-lease+jwt", "JWT", "LICAGENT-LICENSE+JWT", None, ""],
)
def test_wrong_purpose(forge: Forge, trust: TrustStore, typ: object) -> None:
    refused(forge(typ=typ), trust, Refusal.WRONG_PURPOSE)


def test_a_license_is_no_revocation(forge: Forge, trust: TrustStore) -> None:
    token = forge()
    for data in (token, armour(token.decode(), Label.LICENSE).encode()):
        with pytest.raises(TokenError) as caught:
            verify_revocation(data, trust)
        assert caught.value.refusal is Refusal.WRONG_PURPOSE


def test_a_license_in_the_armour_of_a_revocation(forge: Forge, trust: TrustStore) -> None:
    data = armour(forge().decode(), Label.REVOCATION).encode()
    refused(data, trust, Refusal.WRONG_PURPOSE)
    with pytest.raises(TokenError) as caught:
        verify_revocation(data, trust)
    assert caught.value.refusal is Refusal.WRONG_PURPOSE


@pytest.mark.parametrize("iss", ["evil", "Acme", "acme ", "", None, ["acme"]])
def test_wrong_issuer(forge: Forge, trust: TrustStore, iss: object) -> None:
    refused(forge(changed(iss=iss)), trust, Refusal.WRONG_ISSUER)


@pytest.mark.parametrize("aud", ["other", "Licagent", "", None, ["licagent"], ["licagent", "x"]])
def test_wrong_audience(forge: Forge, trust: TrustStore, aud: object) -> None:
    refused(forge(changed(aud=aud)), trust, Refusal.WRONG_AUDIENCE)


def test_the_audience_is_the_callers(forge: Forge, trust: TrustStore) -> None:
    token = forge(changed(aud="other"))
    assert verify_license(token, trust, audience="other").audience == "other"


# ------------------------------------------------------------------------------- the bytes


def test_truncated_anywhere(forge: Forge, trust: TrustStore) -> None:
    token = forge()
    start_of_signature = token.rindex(b".") + 1
    for length in range(len(token)):
        with pytest.raises(TokenError) as caught:
            verify_license(token[:length], trust)
        assert caught.value.refusal is Refusal.TRUNCATED, (length, start_of_signature)


def test_truncated_armour(forge: Forge, trust: TrustStore) -> None:
    data = armour(forge().decode(), Label.LICENSE).encode()
    end = data.index(b"-----END")
    for length in range(len(b"-----BEGIN LICAGENT LICENSE-----\n"), end + 5):
        refused(data[:length], trust, Refusal.TRUNCATED)
    refused(data[:20], trust, Refusal.BAD_ARMOUR)


@pytest.mark.parametrize("tail", [b"A", b"=", b"\n", b" ", b"\0", b".", b".e30", b"\n\n", b"\xff"])
def test_trailing_bytes(forge: Forge, trust: TrustStore, tail: bytes) -> None:
    with pytest.raises(TokenError) as caught:
        verify_license(forge() + tail, trust)
    allowed = {Refusal.BAD_ENCODING} if tail == b"\xff" else {Refusal.TRAILING_DATA}
    assert caught.value.refusal in allowed


@pytest.mark.parametrize(
    "tail", ["x", "\n", " ", "-", "\nx\n", "\n-----BEGIN LICAGENT LICENSE-----"]
)
def test_trailing_bytes_after_armour(forge: Forge, trust: TrustStore, tail: str) -> None:
    text = armour(forge().decode(), Label.LICENSE)
    refused((text + tail).encode(), trust, Refusal.TRAILING_DATA)
    refused((text[:-1] + "x").encode(), trust, Refusal.TRAILING_DATA)


def test_two_licenses_in_one_file(forge: Forge, trust: TrustStore) -> None:
    text = armour(forge().decode(), Label.LICENSE)
    refused((text + text).encode(), trust, Refusal.TRAILING_DATA)


@pytest.mark.parametrize("part", [0, 1, 2])
@pytest.mark.parametrize("insert", [b"=", b"+", b"/", b" ", b"\n", b"%", b"\0", b"*"])
def test_bad_base64url(forge: Forge, trust: TrustStore, part: int, insert: bytes) -> None:
    parts = forge().split(b".")
    parts[part] = parts[part][:4] + insert + parts[part][5:]
    # The signature is judged after the key, the payload's letters before it.
    refused(b".".join(parts), trust, Refusal.BAD_ENCODING)


def test_padding_is_refused(forge: Forge, trust: TrustStore) -> None:
    header, payload, signature = forge().split(b".")
    padded = header + b"=" * (-len(header) % 4 or 4)
    refused(b".".join([padded, payload, signature]), trust, Refusal.BAD_ENCODING)


def test_base64url_of_impossible_length(forge: Forge, trust: TrustStore) -> None:
    header, payload, signature = forge().split(b".")
    cut = payload[: len(payload) // 4 * 4 - 3]
    refused(b".".join([header, cut, signature]), trust, Refusal.BAD_ENCODING)


def test_a_second_spelling_of_the_same_signature(forge: Forge, trust: TrustStore) -> None:
    """The last of 86 characters carries 2 bits of signature and 4 that decoding drops."""
    token = forge()
    alphabet = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    last = alphabet.index(token[-1:])
    for spelling in range(last + 1, last + 16):
        twin = token[:-1] + alphabet[spelling : spelling + 1]
        refused(twin, trust, Refusal.BAD_ENCODING, "canonical")


@pytest.mark.parametrize(
    "text", [b"\xff", b"\xc0\xaf", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\x80", b"\xe2\x82"]
)
def test_bad_utf8(forge: Forge, trust: TrustStore, text: bytes) -> None:
    payload = dump(CLAIMS).replace(b"Acme Ltd", b"Acme" + text)
    refused(forge(payload), trust, Refusal.BAD_UTF8)
    header = dump({"alg": "Ed25519", "typ": "x", "kid": "y"}).replace(b"x", text)
    refused(forge(header=header), trust, Refusal.BAD_UTF8)


@pytest.mark.parametrize(
    "subject",
    ["\\ud800", "\\u0000", "a\\nb", "\\u001b[2J", "\\u202e", " a", "a ", "", "x" * 513],
)
def test_text_that_would_fool_a_reader(forge: Forge, trust: TrustStore, subject: str) -> None:
    payload = dump(CLAIMS).replace(b"Acme Ltd", subject.encode())
    refused(forge(payload), trust, Refusal.BAD_VALUE, "sub")


@pytest.mark.parametrize(
    "payload",
    [
        *(b"", b"{", b"{}x", b"[]", b"null", b"1", b'"a"', b"{'a':1}", b"\xef\xbb\xbf{}"),
        *(b'{"a":01}', b'{"a":"\n"}', b'{"a":1,}', b"{} {}", b"\0"),
    ],
)
def test_bad_json(forge: Forge, trust: TrustStore, payload: bytes) -> None:
    refused(forge(payload), trust, Refusal.BAD_JSON)
    refused(forge(header=payload), trust, Refusal.BAD_JSON)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"sub":', b'"sub":"Other","sub":'),
        (b'"sub":', b'"s\\u0075b":"Other","sub":'),
        (b'"number":7', b'"number":7,"number":7'),
        (b'"org":', b'"org":"x","org":'),
    ],
)
def test_duplicate_key_in_the_payload(
    forge: Forge, trust: TrustStore, old: bytes, new: bytes
) -> None:
    payload = dump(CLAIMS)
    assert old in payload
    refused(forge(payload.replace(old, new)), trust, Refusal.DUPLICATE_KEY)


def test_duplicate_key_in_the_header(forge: Forge, key: SigningKey, trust: TrustStore) -> None:
    header = dump({"alg": "Ed25519", "typ": Purpose.LICENSE.typ, "kid": key.kid})
    twice = header.replace(b'{"alg"', b'{"alg":"none","alg"')
    refused(forge(header=twice), trust, Refusal.DUPLICATE_KEY, "alg")


# ------------------------------------------------------------------------------- numbers


@pytest.mark.parametrize(
    "number",
    [
        *("NaN", "Infinity", "-Infinity", "-1", "-0", "1.0", "0.5", "1e3", "1E400"),
        *("9" * 19, "9" * 5000, str(2**63), str(2**64), str(2**128)),
    ],
)
@pytest.mark.parametrize("place", ['"exp":1790000000', '"number":7', '"limit":1000000000'])
def test_numbers_that_are_none(forge: Forge, trust: TrustStore, place: str, number: str) -> None:
    payload = dump(CLAIMS).decode()
    assert place in payload
    bad = payload.replace(place, f"{place.partition(':')[0]}:{number}")
    refused(forge(bad.encode()), trust, Refusal.BAD_NUMBER)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("lic__number", 0),
        ("lic__number", 2**32),
        ("lic__generation", 0),
        ("lic__generation", 2**32),
        ("lic__grace", 2**32),
        ("exp", 2**63 - 1),
        ("exp", (2**63 - 1) // 10**9 + 1),
        ("nbf", 2**63 - 1),
        ("iat", 2**62),
    ],
)
def test_numbers_out_of_range(forge: Forge, trust: TrustStore, path: str, value: int) -> None:
    name = path.replace("__", ".")
    refused(forge(changed(**{path: value})), trust, Refusal.BAD_NUMBER, name, str(value))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("lic__number", 1),
        ("lic__number", 2**32 - 1),
        ("lic__generation", 2**32 - 1),
        ("lic__grace", 0),
        ("lic__grace", 2**32 - 1),
        ("exp", (2**63 - 1) // 10**9),
        ("iat", 0),
        ("lic__entitlements__0__limits__0__limit", 0),
        ("lic__entitlements__0__limits__0__limit", 2**63 - 1),
    ],
)
def test_numbers_at_their_bounds(forge: Forge, trust: TrustStore, path: str, value: int) -> None:
    assert isinstance(verify_license(forge(changed(**{path: value})), trust), License)


@pytest.mark.parametrize("value", [True, False, "7", None, [], {}])
@pytest.mark.parametrize(
    "path", ["lic__number", "lic__generation", "exp", "nbf", "iat", "lic__grace"]
)
def test_values_that_are_no_numbers(
    forge: Forge, trust: TrustStore, path: str, value: object
) -> None:
    refused(forge(changed(**{path: value})), trust, Refusal.BAD_VALUE, path.replace("__", "."))


# ----------------------------------------------------------------------- size and nesting


@pytest.mark.parametrize(("opening", "closing"), [(b"[", b"]"), (b'{"a":', b"}")])
@pytest.mark.parametrize("depth", [9, 1500])
def test_deep_nesting(
    forge: Forge, trust: TrustStore, opening: bytes, closing: bytes, depth: int
) -> None:
    payload = opening * depth + b"1" + closing * depth
    refused(forge(payload), trust, Refusal.TOO_DEEP)
    refused(forge(header=payload), trust, Refusal.TOO_DEEP)
    refused(forge(opening * depth), trust, Refusal.TOO_DEEP)


def test_brackets_inside_texts_are_no_nesting(forge: Forge, trust: TrustStore) -> None:
    subject = '[{"\\' * 20
    assert verify_license(forge(changed(sub=subject)), trust).subject == subject


def test_one_byte_too_much(forge: Forge, trust: TrustStore) -> None:
    refused(b"A" * (TOKEN_MAX_BYTES + 1), trust, Refusal.TOO_LARGE)
    refused(b"A" * TOKEN_MAX_BYTES, trust, Refusal.TRUNCATED)


def test_a_signed_license_beyond_the_cap(forge: Forge, trust: TrustStore) -> None:
    many = [f"host-{number}" for number in range(2000)]
    refused(forge(changed(lic__hosts=many)), trust, Refusal.TOO_LARGE)


def test_one_gibibyte_of_input_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    huge = tmp_path / "huge.lic"
    with huge.open("wb") as file:
        file.truncate(2**30)
    with pytest.raises(TokenError) as caught:
        read_license_file(huge)
    assert caught.value.refusal is Refusal.TOO_LARGE
    assert str(2**30) in caught.value.detail
    # Also where the size is not known beforehand (a file that grows after fstat).
    real = os.fstat

    def lie(descriptor: int) -> os.stat_result:
        fields = list(real(descriptor))
        fields[6] = 0
        return os.stat_result(fields)

    monkeypatch.setattr(os, "fstat", lie)
    with pytest.raises(TokenError) as caught:
        read_license_file(huge)
    assert caught.value.refusal is Refusal.TOO_LARGE
    assert f"{TOKEN_MAX_BYTES + 1} bytes" in caught.value.detail


def test_one_gibibyte_in_memory(trust: TrustStore) -> None:
    # A view of 1 GiB of zero pages: the size is judged, the bytes are not touched.
    refused(bytes(2**30), trust, Refusal.TOO_LARGE)


def test_things_that_are_no_files(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo.lic"
    os.mkfifo(fifo)  # nobody writes: a plain open would wait for ever
    for path in (fifo, tmp_path, tmp_path / "absent", Path("/dev/zero"), tmp_path / "a\0b"):
        with pytest.raises(TokenError) as caught:
            read_license_file(path)
        assert caught.value.refusal is Refusal.UNREADABLE


# ------------------------------------------------------------------------------- structure


@pytest.mark.parametrize(
    ("path", "near"),
    [
        ("lic__entitlement", "entitlements"),
        ("lic__failure_mod", "failure_mode"),
        ("lic__scope__organisation", ""),
        ("lic__scope__region", "regions"),
        ("lic__entitlements__0__limit", "limits"),
        ("lic__entitlements__0__limits__0__windw", "window"),
        ("expp", "exp"),
        ("scope", ""),
    ],
)
def test_unknown_field(forge: Forge, trust: TrustStore, path: str, near: str) -> None:
    name = path.rpartition("__")[2]
    hint = f"did you mean {near}?" if near else ""
    refused(forge(changed(**{path: 1})), trust, Refusal.UNKNOWN_FIELD, name, hint)


@pytest.mark.parametrize(
    "path",
    [
        *("iss", "sub", "aud", "jti", "iat", "nbf", "exp", "lic", "lic__ver", "lic__number"),
        *("lic__generation", "lic__scope", "lic__scope__org", "lic__entitlements"),
        *("lic__entitlements__0__resource", "lic__entitlements__0__actions"),
        *("lic__entitlements__0__limits__0__meter", "lic__entitlements__0__limits__0__limit"),
        "lic__entitlements__0__limits__0__window",
    ],
)
def test_missing_field(forge: Forge, trust: TrustStore, path: str) -> None:
    special = {"iss": Refusal.WRONG_ISSUER, "aud": Refusal.WRONG_AUDIENCE}
    token = forge(changed(**{path: ...}))
    with pytest.raises(TokenError) as caught:
        verify_license(token, trust)
    assert caught.value.refusal in (Refusal.MISSING_FIELD, special.get(path))
    assert path.rpartition("__")[2] in caught.value.detail


@pytest.mark.parametrize("version", [0, 2, "1", True, None])
def test_another_version(forge: Forge, trust: TrustStore, version: object) -> None:
    refused(forge(changed(lic__ver=version)), trust, Refusal.UNSUPPORTED_VERSION)
    # A later format says so even when its members are unknown here.
    refused(forge(changed(lic={"ver": 2, "new": 1})), trust, Refusal.UNSUPPORTED_VERSION)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("lic", []),
        ("lic__scope", "acme"),
        ("lic__entitlements", []),
        ("lic__entitlements", {}),
        ("lic__entitlements__0", "orders-db"),
        ("lic__entitlements__0__resource", "../etc"),
        ("lic__entitlements__0__resource", "web"),  # twice
        ("lic__entitlements__0__actions", []),
        ("lic__entitlements__0__actions", ["connect", "connect"]),
        ("lic__entitlements__0__actions", ["conect"]),
        ("lic__entitlements__0__actions", "connect"),
        ("lic__entitlements__0__conditions", {"region": []}),
        ("lic__entitlements__0__conditions", {"Region!": ["a"]}),
        ("lic__entitlements__0__conditions", ["region"]),
        ("lic__entitlements__0__limits__0__meter", "Bytes"),
        ("lic__entitlements__0__limits__0__window", "fortnight"),
        ("lic__entitlements__0__limits__0__on_exhaustion", "explode"),
        ("lic__selectors", ["unix"]),
        ("lic__selectors", ["host", "host"]),
        ("lic__selectors", "host"),
        ("lic__hosts", ["db-[0-9]"]),
        ("lic__hosts", [1]),
        ("lic__failure_mode", "ajar"),
        ("lic__scope__regions", [""]),
        ("jti", "../x"),
        ("jti", ".hidden"),
        ("jti", "x" * 129),
        ("exp", CLAIMS["nbf"]),
        ("sub", 1),
    ],
)
def test_bad_value(forge: Forge, trust: TrustStore, path: str, value: object) -> None:
    refused(forge(changed(**{path: value})), trust, Refusal.BAD_VALUE)


def test_an_unknown_kind_of_condition_is_kept_for_the_agent_to_refuse(
    forge: Forge, trust: TrustStore
) -> None:
    token = forge(changed(lic__entitlements__0__conditions={"moon_phase": ["full"]}))
    found = verify_license(token, trust)
    assert [one.kind for one in found.entitlements[0].conditions] == ["moon_phase"]


def test_every_refusal_says_what_to_do_next() -> None:
    assert set(NEXT_STEPS) == set(Refusal)
    error = TokenError(Refusal.EXPIRED, "acme ended")
    assert str(error) == "acme ended [expired]. Ask the issuer to renew it."
