# SPDX-License-Identifier: Apache-2.0
"""HEAD of a frame of the ledger: what it says of its blocks, marks and epochs, and its JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

_VERSION: Final = 1


@dataclass(frozen=True, slots=True)
class Block:
    """One batch, as HEAD names it."""

    count: int
    stored_bytes: int
    raw_bytes: int
    crc: int
    hash: bytes
    """The chain after it."""
    signature: bytes


@dataclass(frozen=True, slots=True)
class ChainEntry:
    """What a frame remembers of an epoch: of its own, and of others that are not delivered."""

    epoch: int
    public_key: bytes
    host_id: str
    acked: int
    acked_hash: bytes
    dropped: int
    """Up to here nothing is held any more although it was not acknowledged; 0: all is."""
    next_sequence: int
    """Of its own epoch: before this frame."""
    last_hash: bytes
    """The chain before `next_sequence`."""
    is_closed: bool
    """Nothing of it is to be delivered any more."""


@dataclass(frozen=True, slots=True)
class Head:
    """What a frame says of itself."""

    epoch: int
    public_key: bytes
    boot_id: str
    host_id: str
    at_unix_ms: int
    """The clock when it was committed."""
    first: int
    previous_hash: bytes
    blocks: tuple[Block, ...]
    chains: tuple[ChainEntry, ...]
    marks: Mapping[str, bytes]
    """The small ones."""
    large_marks: tuple[int, int] | None
    """Stored bytes and CRC."""

    @property
    def next_sequence(self) -> int:
        """After its last record."""
        return self.first + sum(block.count for block in self.blocks)

    @property
    def last_hash(self) -> bytes:
        """The chain after its last record."""
        return self.blocks[-1].hash if self.blocks else self.previous_hash

    @property
    def body_bytes(self) -> int:
        """Between the two copies of HEAD."""
        large = self.large_marks[0] if self.large_marks else 0
        return sum(block.stored_bytes for block in self.blocks) + large


def encode_head(head: Head) -> bytes:
    """As it stands in a frame."""
    return json.dumps(_document(head), separators=(",", ":")).encode()


def decode_head(text: bytes) -> Head | None:
    """None where it is none, or of another version."""
    try:
        document = json.loads(text)
        return _head_of(document) if document["v"] == _VERSION else None
    except (ValueError, LookupError, TypeError):  # a CRC that fits by chance
        return None


def _document(head: Head) -> dict[str, Any]:
    return {
        "v": _VERSION,
        "epoch": head.epoch,
        "key": head.public_key.hex(),
        "boot": head.boot_id,
        "host": head.host_id,
        "at": head.at_unix_ms,
        "first": head.first,
        "previous": head.previous_hash.hex(),
        "blocks": [
            [b.count, b.stored_bytes, b.raw_bytes, b.crc, b.hash.hex(), b.signature.hex()]
            for b in head.blocks
        ],
        "chains": [
            [
                c.epoch,
                c.public_key.hex(),
                c.host_id,
                c.acked,
                c.acked_hash.hex(),
                c.dropped,
                c.next_sequence,
                c.last_hash.hex(),
                c.is_closed,
            ]
            for c in head.chains
        ],
        "marks": {name: value.hex() for name, value in head.marks.items()},
        "large": head.large_marks,
    }


def _head_of(document: dict[str, Any]) -> Head:
    unhex = bytes.fromhex
    return Head(
        document["epoch"],
        unhex(document["key"]),
        document["boot"],
        document["host"],
        document["at"],
        document["first"],
        unhex(document["previous"]),
        tuple(Block(e[0], e[1], e[2], e[3], unhex(e[4]), unhex(e[5])) for e in document["blocks"]),
        tuple(
            ChainEntry(e[0], unhex(e[1]), e[2], e[3], unhex(e[4]), e[5], e[6], unhex(e[7]), e[8])
            for e in document["chains"]
        ),
        {name: unhex(value) for name, value in document["marks"].items()},
        tuple(document["large"]) if document["large"] else None,
    )
