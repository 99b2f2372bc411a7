# SPDX-License-Identifier: Apache-2.0
"""Messages of the control plane signed by an issuer's key: leases, snapshots, heads.

Unlike licenses they are bytes of a protocol, never files to hand on, so they are no JWS: the
signature is plain Ed25519 (RFC 8032) over `licagent-<purpose>-v1`, a NUL and the payload. The
purpose is inside what is signed: a lease never counts as a snapshot, whatever its bytes are.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import (
    Ed25519PrivateKey,
    Ed25519PublicKey,
)

from lictoken.errors import Refusal, TokenError
from lictoken.keys import Purpose, SigningKey, check_kid
from lictoken.trust import KeyStatus, TrustedKey, TrustStore


class SealPurpose(StrEnum):
    """What a sealed message is. One of a purpose never verifies as one of another."""

    SNAPSHOT = "snapshot"
    LEASE = "lease"
    ASSIGNMENT = "assignment"
    CATALOG_HEAD = "catalog-head"
    AUDIT_HEAD = "audit-head"
    AUTHORITIES = "authorities"


@dataclass(frozen=True, slots=True)
class Seal:
    """A payload and its signature; licapi.control.v1.Sealed has the same fields."""

    payload: bytes
    kid: str
    signature: bytes


def seal(purpose: SealPurpose, payload: bytes, key: SigningKey) -> Seal:
    """Sign `payload` for `purpose`."""
    private = Ed25519PrivateKey.from_private_bytes(key.secret)
    return Seal(payload, key.kid, private.sign(_signed(purpose, payload)))


class Sealer:
    """Signs many payloads with one key: the key and its kid are worked out once."""

    def __init__(self, key: SigningKey) -> None:
        self._private = Ed25519PrivateKey.from_private_bytes(key.secret)
        self.kid: Final = key.kid
        self.issuer: Final = key.issuer

    def seal(self, purpose: SealPurpose, payload: bytes) -> Seal:
        """Sign `payload` for `purpose`."""
        return Seal(payload, self.kid, self._private.sign(_signed(purpose, payload)))


def unseal(purpose: SealPurpose, sealed: Seal, trust: TrustStore) -> bytes:
    """The payload, once its signature is found to be that of an active key for control messages.

    Raises:
        TokenError: UNKNOWN_KEY, RETIRED_KEY, KEY_PURPOSE or BAD_SIGNATURE. Parse the payload
            only after this has returned.
    """
    key = _trusted(sealed.kid, trust)
    try:
        Ed25519PublicKey.from_public_bytes(key.public_key).verify(
            sealed.signature, _signed(purpose, sealed.payload)
        )
    except InvalidSignature as error:
        raise TokenError(
            Refusal.BAD_SIGNATURE, f"the {purpose.value} is not signed by {sealed.kid}"
        ) from error
    return sealed.payload


def _trusted(kid: str, trust: TrustStore) -> TrustedKey:
    key = trust.get(check_kid(kid))
    if key is None:
        raise TokenError(Refusal.UNKNOWN_KEY, f"nobody trusts the key {kid} here")
    if key.status is not KeyStatus.ACTIVE:
        raise TokenError(Refusal.RETIRED_KEY, f"the key {kid} is retired")
    if Purpose.CONTROL not in key.purposes:
        raise TokenError(Refusal.KEY_PURPOSE, f"the key {kid} does not sign control messages")
    return key


def _signed(purpose: SealPurpose, payload: bytes) -> bytes:
    return b"licagent-" + purpose.value.encode() + b"-v1\0" + payload
