# SPDX-License-Identifier: Apache-2.0
"""Keys, thumbprints and the trust file."""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from lictoken.errors import Refusal, TokenError
from lictoken.keys import Purpose, SigningKey, thumbprint
from lictoken.trust import KeyStatus, TrustedKey, TrustStore


def test_thumbprint_is_that_of_rfc_8037_appendix_a3() -> None:
    public = base64.urlsafe_b64decode("11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo=")
    assert thumbprint(public) == "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k"


def test_thumbprint_is_the_hash_of_the_required_members(key: SigningKey) -> None:
    x = base64.urlsafe_b64encode(key.public_key).rstrip(b"=").decode()
    text = f'{{"crv":"Ed25519","kty":"OKP","x":"{x}"}}'
    digest = hashlib.sha256(text.encode()).digest()
    assert key.kid == base64.urlsafe_b64encode(digest).rstrip(b"=").decode()


def test_a_key_never_shows_its_secret(key: SigningKey) -> None:
    assert repr(key.secret) not in repr(key)
    assert repr(key) == "SigningKey(issuer='acme')"


def test_created_keys_differ() -> None:
    assert SigningKey.create("acme").kid != SigningKey.create("acme").kid


def test_the_trust_file_survives_the_round_trip(trusted: TrustedKey, tmp_path: Path) -> None:
    other = TrustedKey.of(SigningKey.create("beta").public_key, "beta", created_at=TIME)
    store = TrustStore([trusted, other.retired(TIME)])
    path = tmp_path / "trust.jwks"
    path.write_bytes(store.to_bytes())
    found = TrustStore.load(path)
    assert list(found) == list(store)
    retired = found.get(other.kid)
    assert retired is not None
    assert (retired.status, retired.retired_at) == (KeyStatus.RETIRED, TIME)
    assert len(found.with_key(other)) == 2
    assert found.get("x") is None


TIME = "2026-01-02T03:04:05Z"


def jwk(trusted: TrustedKey, **changes: object) -> dict[str, Any]:
    ours = changes.pop("licagent", {})
    entry: dict[str, Any] = {**trusted.to_jwk(), **changes}
    if isinstance(ours, dict):
        entry["licagent"] = {**entry["licagent"], **ours}
    else:
        entry["licagent"] = ours
    return {name: value for name, value in entry.items() if value is not ...}


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"kty": "EC"}, "kty"),
        ({"crv": "Ed448"}, "crv"),
        ({"alg": "EdDSA"}, "alg"),
        ({"use": "enc"}, "use"),
        ({"x": "AAAA"}, "3 bytes"),
        ({"x": "A" * 43 + "="}, "base64url"),
        ({"x": "A" * 42 + "B"}, "canonical"),
        ({"x": ...}, "x is missing"),
        ({"kid": "a" * 43}, "thumbprint"),
        ({"kid": ...}, "kid"),
        ({"d": "AAAA"}, "no longer secret"),
        ({"licagent": ...}, "licagent is missing"),
        ({"licagent": {"issuer": ""}}, "issuer"),
        ({"licagent": {"status": "revoked"}}, "status"),
        ({"licagent": {"status": "retird"}}, "did you mean retired?"),
        ({"licagent": {"purposes": ["lease"]}}, "purposes[0]"),
        ({"licagent": {"purposes": "license"}}, "not a list"),
        ({"licagent": {"purpose": ["license"]}}, "did you mean purposes?"),
        ({"licagent": {"retired_at": "yesterday"}}, "retired_at"),
        ({"licagent": []}, "not an object"),
    ],
)
def test_a_bad_key_refuses_the_whole_trust_file(
    trusted: TrustedKey, changes: dict[str, object], word: str
) -> None:
    good = TrustedKey.of(SigningKey.create("acme").public_key, "acme").to_jwk()
    text = json.dumps({"keys": [good, jwk(trusted, **changes)]})
    with pytest.raises(TokenError) as caught:
        TrustStore.from_bytes(text.encode())
    assert caught.value.refusal is Refusal.BAD_TRUST
    assert "keys[1]" in caught.value.detail
    assert word in caught.value.detail


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"[]",
        b"{}",
        b'{"keys":{}}',
        b'{"keys":[1]}',
        b'{"keys":[],"keys":[]}',
        b'{"keys":[],"more":1}',
        b"\xff",
        b'{"keys":' + b"[" * 5000,
        b" " * (1024 * 1024 + 1),
    ],
)
def test_a_bad_trust_file(text: bytes) -> None:
    with pytest.raises(TokenError) as caught:
        TrustStore.from_bytes(text)
    assert caught.value.refusal in (Refusal.BAD_TRUST, Refusal.TOO_LARGE)


def test_a_key_given_twice(trusted: TrustedKey) -> None:
    """Once active and once retired: which would count?"""
    text = json.dumps({"keys": [trusted.to_jwk(), trusted.retired().to_jwk()]})
    with pytest.raises(TokenError, match="twice"):
        TrustStore.from_bytes(text.encode())


def test_members_of_others_in_a_jwk_are_left_alone(trusted: TrustedKey) -> None:
    text = json.dumps({"keys": [jwk(trusted, key_ops=["verify"], x5t="abc")]})
    assert len(TrustStore.from_bytes(text.encode())) == 1


def test_errors_name_the_file(tmp_path: Path) -> None:
    path = tmp_path / "trust.jwks"
    with pytest.raises(TokenError, match=str(path)):
        TrustStore.load(path)
    path.write_text("{")
    with pytest.raises(TokenError, match=str(path)) as caught:
        TrustStore.load(path)
    assert caught.value.refusal is Refusal.BAD_TRUST


def test_purposes_have_types_of_their_own() -> None:
    assert len({purpose.typ for purpose in Purpose}) == len(Purpose)
