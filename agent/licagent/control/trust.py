# SPDX-License-Identifier: Apache-2.0
"""Whose signatures count on this host's link, and how that changes.

Keys come with the enrolment, and later with an object of the catalog. The catalog's snapshot is
signed, so new keys are believed on the word of a key that was believed already, and never on
that of a server, a proxy or a database.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from licagent.domain.catalog import NackReason, Refused, SignedBytes
from lictoken.errors import TokenError
from lictoken.keys import Purpose
from lictoken.sealed import Seal, SealPurpose, unseal
from lictoken.trust import KeyStatus, TrustStore

_KEYS_MAX: Final = 64


def trust_of(data: bytes) -> TrustStore:
    """Read a JWKS. Raises Refused(SIGNATURE) where nobody in it may sign for this link."""
    try:
        found = TrustStore.from_bytes(data)
    except TokenError as error:
        raise Refused(NackReason.SIGNATURE, f"the issuers' keys: {error.detail}") from error
    if not any(key.status is KeyStatus.ACTIVE and Purpose.CONTROL in key.purposes for key in found):
        raise Refused(
            NackReason.SIGNATURE,
            "the issuers' keys name none that signs control messages: with them, this host could "
            "never be told anything again",
        )
    return found


def opened(purpose: SealPurpose, sealed: SignedBytes, trust: TrustStore) -> bytes:
    """The payload of a sealed message. Raises Refused(SIGNATURE)."""
    try:
        return unseal(purpose, Seal(sealed.payload, sealed.kid, sealed.signature), trust)
    except TokenError as error:
        raise Refused(NackReason.SIGNATURE, error.detail) from error


def rotated(old: TrustStore, new: TrustStore) -> TrustStore:
    """`new`, with keys of `old` that it does not name kept as retired.

    They sign nothing from now on; but what they signed before, and what lies on the disk, is
    still known to have been theirs.
    """
    kept = [key.retired() for key in old if new.get(key.kid) is None]
    return TrustStore([*new, *kept][:_KEYS_MAX])


def as_then(trust: TrustStore) -> TrustStore:
    """For what was accepted before and is read again from the disk: retired keys count.

    A snapshot may be the very one that retires the key it is signed with.
    """
    return TrustStore(replace(key, status=KeyStatus.ACTIVE) for key in trust)
