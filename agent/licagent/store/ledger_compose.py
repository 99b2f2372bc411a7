# SPDX-License-Identifier: Apache-2.0
"""A commit as a frame: records into signed batches, marks beside them."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence

from licagent.store.frame_heads import Block, ChainEntry, Head
from licagent.store.frames import pack, pack_marks, split
from licagent.store.ledger_recovery import Chain
from licagent.store.usagechain import EpochKey, batch_message, chain_hash


def compose(
    chain: Chain,
    key: EpochKey,
    payloads: Sequence[bytes],
    marks: Mapping[str, bytes],
    *,
    boot_id: str,
    host_id: str,
    now_unix_ms: int,
    chains: tuple[ChainEntry, ...],
) -> tuple[Head, list[bytes]]:
    """What `frames.encode` takes. Nothing of `chain` changes."""
    blocks: list[Block] = []
    body: list[bytes] = []
    first, running = chain.next_sequence, chain.last_hash
    for records in split(payloads):
        running = chain_hash(running, first, records)
        last = first + len(records) - 1
        message = batch_message(
            host_id=host_id,
            boot_id=boot_id,
            epoch=chain.epoch,
            first=first,
            last=last,
            chain=running,
        )
        stored, raw_bytes = pack(records)
        crc = zlib.crc32(stored)
        signature = key.sign(message)
        blocks.append(Block(len(records), len(stored), raw_bytes, crc, running, signature))
        body.append(stored)
        first = last + 1
    small, large = pack_marks(marks)
    if large:
        body.append(large)
    head = Head(
        chain.epoch,
        chain.public_key,
        boot_id,
        host_id,
        now_unix_ms,
        chain.next_sequence,
        chain.last_hash,
        tuple(blocks),
        chains,
        small,
        (len(large), zlib.crc32(large)) if large else None,
    )
    return head, body
