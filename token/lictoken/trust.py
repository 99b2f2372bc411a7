# SPDX-License-Identifier: Apache-2.0
"""The trust file: which keys count, for which issuer and purpose.

A JWKS (RFC 7517) of Ed25519 public keys. Each key carries one member of ours:

    "licagent": {"issuer": "acme", "status": "active", "purposes": ["license", "revocation"],
                 "created_at": "2026-01-02T03:04:05Z"}
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Final, cast

from lictoken import base64url
from lictoken.errors import Refusal, TokenError, shown
from lictoken.fields import Fields, check_choice
from lictoken.keys import ALGORITHM, ALL_PURPOSES, KEY_BYTES, Purpose, public_jwk, thumbprint
from lictoken.limits import TRUST_MAX_BYTES, check_size, read_bounded
from lictoken.strictjson import parse_object

_TIME: Final = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", re.ASCII)
_PRIVATE: Final = frozenset({"d", "p", "q", "dp", "dq", "qi", "oth", "k", "priv"})


class KeyStatus(StrEnum):
    """Whether tokens signed by a key are still accepted."""

    ACTIVE = "active"
    RETIRED = "retired"


@dataclass(frozen=True, slots=True)
class TrustedKey:
    """A public key and what it counts for."""

    kid: str
    public_key: bytes  # 32 bytes
    issuer: str
    status: KeyStatus = KeyStatus.ACTIVE
    purposes: tuple[Purpose, ...] = ALL_PURPOSES
    created_at: str | None = None  # RFC 3339, UTC; for people
    retired_at: str | None = None  # RFC 3339, UTC; for people

    @classmethod
    def of(cls, public_key: bytes, issuer: str, *, created_at: str | None = None) -> TrustedKey:
        """An active key for every purpose."""
        return cls(thumbprint(public_key), public_key, issuer, created_at=created_at)

    def retired(self, retired_at: str | None = None) -> TrustedKey:
        """The same key, no longer accepted for anything that is loaded from now on."""
        return replace(self, status=KeyStatus.RETIRED, retired_at=retired_at)

    def to_jwk(self) -> dict[str, object]:
        """The key's entry in the trust file."""
        ours: dict[str, object] = {
            "issuer": self.issuer,
            "status": self.status.value,
            "purposes": [purpose.value for purpose in self.purposes],
        }
        if self.created_at is not None:
            ours["created_at"] = self.created_at
        if self.retired_at is not None:
            ours["retired_at"] = self.retired_at
        return {
            **public_jwk(self.public_key),
            "alg": ALGORITHM,
            "use": "sig",
            "kid": self.kid,
            "licagent": ours,
        }


class TrustStore:
    """Trusted keys by kid. Immutable; `with_key` makes a changed copy."""

    def __init__(self, keys: Iterable[TrustedKey] = ()) -> None:
        self._keys = {key.kid: key for key in keys}

    def __iter__(self) -> Iterator[TrustedKey]:
        return iter(self._keys.values())

    def __len__(self) -> int:
        return len(self._keys)

    def get(self, kid: str) -> TrustedKey | None:
        """The key, retired or not, or None when nobody trusts it."""
        return self._keys.get(kid)

    def with_key(self, key: TrustedKey) -> TrustStore:
        """A store that also holds `key`, in place of the one with its kid."""
        return TrustStore({**self._keys, key.kid: key}.values())

    @classmethod
    def load(cls, path: Path) -> TrustStore:
        """Read a trust file. Raises TokenError, whose detail names the file."""
        data = read_bounded(path, TRUST_MAX_BYTES)
        try:
            return cls.from_bytes(data)
        except TokenError as error:
            raise TokenError(error.refusal, f"{path}: {error.detail}") from error

    @classmethod
    def from_bytes(cls, data: bytes) -> TrustStore:
        """Parse a trust file. One bad key refuses the whole file: half a trust is a surprise."""
        check_size(data, TRUST_MAX_BYTES, "the trust file")
        try:
            entries = Fields(parse_object(data, "the trust file"), "", ("keys",)).items("keys")
            keys = [_key(entry, f"keys[{at}]") for at, entry in enumerate(entries)]
        except TokenError as error:
            if error.refusal is Refusal.BAD_TRUST:
                raise
            raise TokenError(
                Refusal.BAD_TRUST, f"the trust file is refused: {error.detail}"
            ) from error
        store = cls(keys)
        if len(store) != len(keys):
            raise TokenError(Refusal.BAD_TRUST, "the trust file holds a key twice")
        return store

    def to_bytes(self) -> bytes:
        """The text of the trust file."""
        text = json.dumps({"keys": [key.to_jwk() for key in self]}, indent=2)
        return text.encode() + b"\n"


def _key(entry: object, place: str) -> TrustedKey:
    if not isinstance(entry, dict):
        raise TokenError(Refusal.BAD_TRUST, f"{place} is not an object")
    members = cast("dict[str, object]", entry)
    secret = _PRIVATE.intersection(members)
    if secret:
        raise TokenError(
            Refusal.BAD_TRUST,
            f"{place} holds the private member {shown(min(secret))}: that key is no longer secret",
        )
    # RFC 7517 lets a JWK have members of others (x5t, key_ops...); they mean nothing here.
    jwk = Fields(members, place, tuple(members))
    jwk.choice("kty", ("OKP",))
    jwk.choice("crv", ("Ed25519",))
    jwk.choice("alg", (ALGORITHM,), default=ALGORITHM)
    jwk.choice("use", ("sig",), default="sig")
    public_key = base64url.decode(jwk.text("x"), f"{place}.x")
    if len(public_key) != KEY_BYTES:
        raise TokenError(Refusal.BAD_TRUST, f"{place}.x has {len(public_key)} bytes, not 32")
    try:
        kid = thumbprint(public_key)
    except ValueError as error:
        raise TokenError(Refusal.BAD_TRUST, f"{place}.x is no Ed25519 key") from error
    if jwk.get("kid") != kid:
        raise TokenError(
            Refusal.BAD_TRUST, f"{place}.kid is {shown(jwk.get('kid'))}, not its thumbprint {kid}"
        )
    ours = Fields(
        jwk.get("licagent"),
        f"{place}.licagent",
        ("issuer", "status", "purposes", "created_at", "retired_at"),
    )
    purposes = tuple(
        Purpose(check_choice(item, f"{place}.licagent.purposes[{at}]", ALL_PURPOSES))
        for at, item in enumerate(ours.items("purposes"))
    )
    return TrustedKey(
        kid=kid,
        public_key=public_key,
        issuer=ours.text("issuer"),
        status=KeyStatus(ours.choice("status", tuple(KeyStatus))),
        purposes=purposes,
        created_at=ours.optional_text("created_at", _TIME),
        retired_at=ours.optional_text("retired_at", _TIME),
    )
