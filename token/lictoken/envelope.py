# SPDX-License-Identifier: Apache-2.0
"""JWS compact, signed and opened: everything up to the claims.

The order matters. Size first, then the header's own words, then the key, then the signature;
the payload is not parsed before its signature holds.
"""

from __future__ import annotations

from typing import Final

from joserfc import jws
from joserfc.errors import JoseError

from lictoken import base64url
from lictoken.armour import Label, armour, is_armoured, unarmour
from lictoken.errors import Refusal, TokenError, shown
from lictoken.fields import suggestion
from lictoken.keys import ALGORITHM, Purpose, SigningKey, check_kid, okp_public
from lictoken.limits import TOKEN_MAX_BYTES, check_size
from lictoken.strictjson import dump, parse_object
from lictoken.trust import KeyStatus, TrustedKey, TrustStore

_HEADER: Final = ("alg", "typ", "kid")
_KEY_HEADERS: Final = frozenset({"jwk", "jku", "x5u", "x5c", "x5t", "x5t#S256"})
_SIGNATURE_CHARACTERS: Final = 86  # 64 bytes, RFC 8032 section 5.1.6
_REGISTRY: Final = jws.JWSRegistry(algorithms=[ALGORITHM])


def label_of(purpose: Purpose) -> Label:
    """The armour's label for a purpose."""
    return Label(purpose.value.upper())


def sign(claims: dict[str, object], purpose: Purpose, key: SigningKey) -> str:
    """Sign `claims`; the text of the file to write. Raises TOO_LARGE for what nobody would read."""
    token = jws.serialize_compact(
        {"alg": ALGORITHM, "typ": purpose.typ, "kid": key.kid},
        dump(claims),
        key.okp(),
        algorithms=[ALGORITHM],
    )
    text = armour(token, label_of(purpose))
    check_size(text.encode(), TOKEN_MAX_BYTES, f"the {purpose.value}")
    return text


def open_token(
    data: bytes, trust: TrustStore, purpose: Purpose
) -> tuple[dict[str, object], TrustedKey]:
    """The claims of an armoured or bare token whose signature holds, and the key that made it.

    Raises TokenError, and nothing else, whatever `data` holds.
    """
    check_size(data, TOKEN_MAX_BYTES, f"the {purpose.value}")
    token = unarmour(data, label_of(purpose)) if is_armoured(data) else _bare(data)
    header_text, payload_text, _ = _split(token)
    header = parse_object(base64url.decode(header_text, "the header"), "the header")
    _check_header(header, purpose)
    key = _trusted(check_kid(header.get("kid")), trust, purpose)
    payload = base64url.decode(payload_text, "the payload")
    _check_signature(token, key)
    return parse_object(payload, "the payload"), key


def _bare(data: bytes) -> str:
    if not data:
        raise TokenError(Refusal.TRUNCATED, "the file is empty")
    if b"-----BEGIN" in data:
        raise TokenError(Refusal.BAD_ARMOUR, "something stands before the BEGIN line")
    try:
        return data.decode("ascii")
    except UnicodeDecodeError as error:
        raise TokenError(Refusal.BAD_ENCODING, f"byte {error.start} is not ASCII") from error


def _split(token: str) -> tuple[str, str, str]:
    parts = token.split(".")
    if len(parts) < 3:
        for part in parts:
            base64url.check_alphabet(part, "the token")
        raise TokenError(Refusal.TRUNCATED, f"the token has {len(parts)} of 3 parts")
    if len(parts) > 3:
        raise TokenError(Refusal.TRAILING_DATA, f"the token has {len(parts)} parts, not 3")
    header, payload, signature = parts
    if len(signature) > _SIGNATURE_CHARACTERS:
        raise TokenError(Refusal.TRAILING_DATA, "something follows the signature")
    base64url.decode(signature[: len(signature) // 4 * 4], "the signature")
    if len(signature) < _SIGNATURE_CHARACTERS:
        raise TokenError(
            Refusal.TRUNCATED,
            f"the signature has {len(signature)} of {_SIGNATURE_CHARACTERS} characters",
        )
    base64url.decode(signature, "the signature")
    return header, payload, signature


def _check_header(header: dict[str, object], purpose: Purpose) -> None:
    algorithm = header.get("alg")
    if algorithm != ALGORITHM:
        raise TokenError(
            Refusal.WRONG_ALGORITHM, f"alg is {shown(algorithm)}, only {ALGORITHM} is accepted"
        )
    carried = _KEY_HEADERS.intersection(header)
    if carried:
        raise TokenError(
            Refusal.KEY_IN_HEADER,
            f"the header brings a key of its own in {shown(min(carried))}",
        )
    if "crit" in header:
        raise TokenError(
            Refusal.UNKNOWN_CRITICAL, f"crit is {shown(header['crit'])}, none is understood"
        )
    for name in header:
        if name not in _HEADER:
            raise TokenError(
                Refusal.UNKNOWN_HEADER,
                f"the header's {shown(name)} is unknown{suggestion(name, _HEADER)}",
            )
    if header.get("typ") != purpose.typ:
        raise TokenError(
            Refusal.WRONG_PURPOSE, f"typ is {shown(header.get('typ'))}, not {purpose.typ}"
        )


def _trusted(kid: str, trust: TrustStore, purpose: Purpose) -> TrustedKey:
    key = trust.get(kid)
    if key is None:
        raise TokenError(
            Refusal.UNKNOWN_KEY, f"the key {kid} is not among the {len(trust)} trusted keys"
        )
    if key.status is not KeyStatus.ACTIVE:
        since = f" since {key.retired_at}" if key.retired_at else ""
        raise TokenError(Refusal.RETIRED_KEY, f"the key {kid} is retired{since}")
    if purpose not in key.purposes:
        raise TokenError(Refusal.KEY_PURPOSE, f"the key {kid} is not trusted for a {purpose.value}")
    return key


def _check_signature(token: str, key: TrustedKey) -> None:
    try:
        jws.deserialize_compact(token, okp_public(key.public_key), registry=_REGISTRY)
    except (JoseError, ValueError) as error:
        raise TokenError(
            Refusal.BAD_SIGNATURE, f"the signature does not hold for the key {key.kid}"
        ) from error
