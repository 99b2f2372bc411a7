# SPDX-License-Identifier: Apache-2.0
"""The chain of usage records: its hash, and what is signed; see UsageBatch in the protocol."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from typing import Final, Self

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import (
    Ed25519PrivateKey,
    Ed25519PublicKey,
)
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

_BATCH: Final = b"licagent-usage-v1\0"
_SEQUENCE: Final = struct.Struct("8s")
_GAP: Final = b"licagent-usage-gap-v1\0"


def chain_hash(previous: bytes, first: int, records: Sequence[bytes]) -> bytes:
    """The chain after `records`, of which the first has the sequence `first`."""
    sha256 = hashlib.sha256
    running = previous
    count = len(records)
    sequences = struct.pack(f">{count}Q", *range(first, first + count))
    for (sequence,), record in zip(_SEQUENCE.iter_unpack(sequences), records, strict=True):
        running = sha256(running + sequence + record).digest()
    return running


def batch_message(
    *, host_id: str, boot_id: str, epoch: int, first: int, last: int, chain: bytes
) -> bytes:
    """What is signed of a batch."""
    return (
        _BATCH + host_id.encode() + b"\0" + boot_id.encode() + b"\0" + _u64(epoch, first, last)
    ) + chain


def gap_message(
    *, host_id: str, epoch: int, first: int, last: int, next_previous_hash: bytes, reason: str
) -> bytes:
    """What is signed of a gap."""
    head = _GAP + host_id.encode() + b"\0" + _u64(epoch, first, last)
    return head + next_previous_hash + reason.encode()


def is_signed(public_key: bytes, signature: bytes, message: bytes) -> bool:
    """Whether the signature is the key's, over the message."""
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True


class EpochKey:
    """An epoch's key. It never leaves the host."""

    def __init__(self, seed: bytes) -> None:
        """`seed` is Ed25519's private key, 32 bytes; ValueError for another length."""
        self._key = Ed25519PrivateKey.from_private_bytes(seed)
        self.public_key = self._key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)

    @classmethod
    def make(cls) -> Self:
        """A new one."""
        key = Ed25519PrivateKey.generate()
        return cls(key.private_bytes(Encoding.Raw, PrivateFormat.Raw, NoEncryption()))

    @property
    def seed(self) -> bytes:
        """What `__init__` takes: keep it secret."""
        return self._key.private_bytes(Encoding.Raw, PrivateFormat.Raw, NoEncryption())

    def sign(self, message: bytes) -> bytes:
        """64 bytes."""
        return self._key.sign(message)


def _u64(*numbers: int) -> bytes:
    return b"".join(number.to_bytes(8, "big") for number in numbers)
