# SPDX-License-Identifier: Apache-2.0
"""Ed25519 keys and their RFC 7638 thumbprints."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import (
    Ed25519PrivateKey,
    Ed25519PublicKey,
)
from joserfc.jwk import OKPKey

from lictoken import base64url
from lictoken.errors import Refusal, TokenError, shown

ALGORITHM: Final = "Ed25519"
"""The only JWS algorithm (RFC 9864 name)."""

KEY_BYTES: Final = 32
"""Length of an Ed25519 key, private or public (RFC 8032, section 5.1.5)."""

_KID: Final = re.compile(r"[A-Za-z0-9_-]{43}", re.ASCII)


class Purpose(StrEnum):
    """What a token is for, and what a key may sign. A token of one never counts as another."""

    LICENSE = "license"
    REVOCATION = "revocation"
    CONTROL = "control"  # sealed messages (lictoken.sealed), which are no JWS

    @property
    def typ(self) -> str:
        """The JWS header's `typ`."""
        return f"licagent-{self.value}+jwt"


ALL_PURPOSES: Final = tuple(Purpose)


def check_kid(kid: object) -> str:
    """`kid` as a thumbprint: 43 characters of base64url, so never a path. Else BAD_KEY_ID."""
    if not isinstance(kid, str) or not _KID.fullmatch(kid):
        raise TokenError(Refusal.BAD_KEY_ID, f"kid is {shown(kid)}, not an RFC 7638 thumbprint")
    return kid


def public_jwk(public_key: bytes) -> dict[str, str]:
    """The required members of the key's JWK (RFC 8037, section 2)."""
    return {"crv": "Ed25519", "kty": "OKP", "x": base64url.encode(public_key)}


def okp_public(public_key: bytes) -> OKPKey:
    """The key as joserfc takes it. Raises ValueError when it is not 32 bytes."""
    Ed25519PublicKey.from_public_bytes(public_key)
    return OKPKey.import_key(dict(public_jwk(public_key)))


def thumbprint(public_key: bytes) -> str:
    """The RFC 7638 SHA-256 thumbprint of a public key: its `kid`."""
    return okp_public(public_key).thumbprint()


@dataclass(frozen=True, slots=True)
class SigningKey:
    """An issuer's private key. Its repr never shows the secret."""

    issuer: str
    secret: bytes = field(repr=False)  # the 32-byte seed

    @classmethod
    def create(cls, issuer: str) -> SigningKey:
        """A new key from the system's random source."""
        try:
            private = Ed25519PrivateKey.generate()
        except UnsupportedAlgorithm as error:  # a FIPS build of OpenSSL
            raise RuntimeError("this OpenSSL does not offer Ed25519") from error
        return cls(issuer=issuer, secret=private.private_bytes_raw())

    @property
    def public_key(self) -> bytes:
        """The 32 bytes of the public key."""
        return Ed25519PrivateKey.from_private_bytes(self.secret).public_key().public_bytes_raw()

    @property
    def kid(self) -> str:
        """The key's thumbprint."""
        return thumbprint(self.public_key)

    def okp(self) -> OKPKey:
        """The key as joserfc takes it."""
        return OKPKey.import_key(
            {**public_jwk(self.public_key), "d": base64url.encode(self.secret)}
        )
