# SPDX-License-Identifier: Apache-2.0
"""The chain of a host's usage records: its hash, and what is signed. Formats of licapi.control.v1.

Each record's hash holds all before it, and the host's key signs the hash after each batch. So
neither side can alter, leave out or add a record later without the other one seeing it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

FIRST_HASH: Final = bytes(32)
"""The chain before sequence 1 of an epoch."""
HASH_BYTES: Final = 32
KEY_BYTES: Final = 32

_BATCH: Final = b"licagent-usage-v1\0"
_GAP: Final = b"licagent-usage-gap-v1\0"


def chained(previous_hash: bytes, first: int, records: Sequence[bytes]) -> bytes:
    """The chain after `records`, of which the first has sequence `first`."""
    found = previous_hash
    sha256 = hashlib.sha256
    for sequence, record in enumerate(records, first):
        found = sha256(found + sequence.to_bytes(8, "big") + record).digest()
    return found


def batch_words(
    *, host_id: str, boot_id: str, epoch: int, first: int, last: int, chain_hash: bytes
) -> bytes:
    """What the signature of a batch is over. `host_id` is "" before the host was enrolled."""
    return b"".join(
        (
            _BATCH,
            host_id.encode() + b"\0",
            boot_id.encode() + b"\0",
            *(number.to_bytes(8, "big") for number in (epoch, first, last)),
            chain_hash,
        )
    )


def gap_words(
    *, host_id: str, epoch: int, first: int, last: int, next_previous_hash: bytes, reason: str
) -> bytes:
    """What the signature of a gap is over."""
    return b"".join(
        (
            _GAP,
            host_id.encode() + b"\0",
            *(number.to_bytes(8, "big") for number in (epoch, first, last)),
            next_previous_hash,
            reason.encode(),
        )
    )


def is_signed(public_key: bytes, signature: bytes, words: bytes) -> bool:
    """Whether the key's owner signed these words."""
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(signature, words)
    except (InvalidSignature, ValueError):
        return False
    return True
