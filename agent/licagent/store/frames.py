# SPDX-License-Identifier: Apache-2.0
"""Frames of the ledger: one commit as bytes, and finding frames again in damaged bytes.

    marker(8) length(4) crc(4) HEAD  block ... [large marks]  HEAD length(4) crc(4) marker'(8)

HEAD is JSON (licagent.store.frame_heads) and stands at both ends, so that damage in one place
leaves a copy that names the sequences, the hashes and the small marks. A block is the records of
one signed batch, compressed, with a CRC of its own in HEAD: damage costs that batch only. `marker`
is random and new for each segment (it stands in the file's name), `marker'` is it backwards: what
a record holds, such as the path of somebody's executable, cannot pass for a frame.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Final

from licagent.store.frame_heads import Block, Head, decode_head, encode_head
from licagent.store.ledger_types import BATCH_BYTES, BATCH_RECORDS

_MARKER_BYTES: Final = 8
_LENGTHS: Final = struct.Struct("<II")
_EDGE_BYTES: Final = _MARKER_BYTES + _LENGTHS.size
_HEAD_MAX_BYTES: Final = 16 * 1024 * 1024
_SECTOR_BYTES: Final = 512
_ZEROS_AT_LEAST: Final = 16
SMALL_MARK_BYTES: Final = 64
"""Marks up to here stand in HEAD, twice; longer ones once, behind the blocks."""
_LEVEL: Final = 1
"""zlib's: higher ones cost three times the time for a tenth of the size."""


@dataclass(frozen=True, slots=True)
class Frame:
    """A frame that was found in a segment's bytes."""

    head: Head
    offset: int
    length: int
    body_offset: int

    def records(self, data: bytes, number: int) -> tuple[bytes, ...] | None:
        """The records of block `number`; None where they are damaged."""
        offset = self.body_offset + sum(b.stored_bytes for b in self.head.blocks[:number])
        block = self.head.blocks[number]
        stored = data[offset : offset + block.stored_bytes]
        if len(stored) != block.stored_bytes or zlib.crc32(stored) != block.crc:
            return None
        return _unpack(stored, block)

    def marks(self, data: bytes) -> tuple[dict[str, bytes], bool]:
        """The marks that can be read, and whether that is all of them."""
        marks = dict(self.head.marks)
        if self.head.large_marks is None:
            return marks, True
        length, crc = self.head.large_marks
        end = self.body_offset + self.head.body_bytes
        stored = data[end - length : end]
        if len(stored) != length or zlib.crc32(stored) != crc:
            return marks, False
        found = json.loads(zlib.decompress(stored))
        return marks | {name: bytes.fromhex(value) for name, value in found.items()}, True


class Tail(Enum):
    """What follows the last frame of a segment."""

    CLEAN = "clean"
    TORN = "torn"
    """The beginning of a frame, or one with holes: a write that never ended."""
    DAMAGED = "damaged"
    """Something else: there may have been a frame."""


@dataclass(frozen=True, slots=True)
class Scan:
    """What was found in a segment's bytes."""

    frames: tuple[Frame, ...]
    tail: Tail
    end: int
    """After the last frame."""
    damaged_bytes: int
    """Between frames, or in the head of one whose other copy was used."""


def split(payloads: Sequence[bytes]) -> list[Sequence[bytes]]:
    """Into batches of at most BATCH_RECORDS and BATCH_BYTES."""
    batches: list[Sequence[bytes]] = []
    begin, size = 0, 0
    for index, payload in enumerate(payloads):
        size += len(payload)
        if index > begin and (size > BATCH_BYTES or index - begin == BATCH_RECORDS):
            batches.append(payloads[begin:index])
            begin, size = index, len(payload)
    if begin < len(payloads):
        batches.append(payloads[begin:])
    return batches


def pack(records: Sequence[bytes]) -> tuple[bytes, int]:
    """The stored form of a batch, and its length before it was compressed."""
    raw = struct.pack(f"<{len(records)}I", *map(len, records)) + b"".join(records)
    return zlib.compress(raw, _LEVEL), len(raw)


def pack_marks(marks: Mapping[str, bytes]) -> tuple[dict[str, bytes], bytes]:
    """The small marks, and the stored form of the others (empty: there are none)."""
    small = {name: value for name, value in marks.items() if len(value) <= SMALL_MARK_BYTES}
    large = {name: value.hex() for name, value in marks.items() if name not in small}
    return small, zlib.compress(json.dumps(large).encode(), _LEVEL) if large else b""


def encode(marker: bytes, head: Head, body: Sequence[bytes]) -> bytes:
    """A frame's bytes. `body` is what HEAD names: blocks, then large marks."""
    text = encode_head(head)
    edge = _LENGTHS.pack(len(text), _head_crc(marker, text))
    return b"".join((marker, edge, text, *body, text, edge, marker[::-1]))


def scan(data: bytes, marker: bytes) -> Scan:
    """Find the frames, whatever has happened to the bytes."""
    frames: list[Frame] = []
    position, end, damaged = 0, 0, 0
    tail = Tail.CLEAN
    while position < len(data):
        frame = _frame_at(data, marker, position)
        if frame is not None:
            if position + frame.length > len(data) and data.find(marker, position + 1) < 0:
                tail = Tail.TORN
                break
            if position + frame.length <= len(data):
                frames.append(frame)
                position = end = position + frame.length
                continue
        following = _next_head(data, marker, position + 1)
        found = _frames_by_tail(data, marker, position, following)
        frames += found
        if following == len(data):
            end = found[-1].offset + found[-1].length if found else position
            damaged += following - position if found else 0
            tail = _tail(data, marker, end)
            break
        damaged += following - position
        position = end = following
    return Scan(tuple(frames), tail, end, damaged)


def _frame_at(data: bytes, marker: bytes, offset: int) -> Frame | None:
    text_at = offset + _EDGE_BYTES
    if data[offset : offset + _MARKER_BYTES] != marker or text_at > len(data):
        return None
    length, crc = _LENGTHS.unpack_from(data, offset + _MARKER_BYTES)
    if length > _HEAD_MAX_BYTES or text_at + length > len(data):
        return None
    head = _head(marker, data[text_at : text_at + length], crc)
    if head is None:
        return None
    total = 2 * (_EDGE_BYTES + length) + head.body_bytes
    return Frame(head, offset, total, text_at + length)


def _next_head(data: bytes, marker: bytes, position: int) -> int:
    while (position := data.find(marker, position)) >= 0:
        if _frame_at(data, marker, position) is not None:
            return position
        position += 1
    return len(data)


def _frames_by_tail(data: bytes, marker: bytes, begin: int, end: int) -> list[Frame]:
    frames: list[Frame] = []
    backwards = marker[::-1]
    position = begin
    while (position := data.find(backwards, position, end)) >= 0:
        text_end = position - _LENGTHS.size
        if text_end >= begin:
            length, crc = _LENGTHS.unpack_from(data, text_end)
            text = data[max(begin, text_end - length) : text_end]
            head = _head(marker, text, crc) if len(text) == length else None
            if head is not None:
                total = 2 * (_EDGE_BYTES + length) + head.body_bytes
                offset = position + _MARKER_BYTES - total
                if offset >= begin:
                    body = offset + _EDGE_BYTES + length
                    frames.append(Frame(head, offset, total, body))
                    begin = position + _MARKER_BYTES
        position += 1
    return frames


def _tail(data: bytes, marker: bytes, begin: int) -> Tail:
    rest = data[begin:]
    if not rest:
        return Tail.CLEAN
    if _has_unwritten_sector(data, begin):
        return Tail.TORN
    if rest[:_MARKER_BYTES] != marker[: len(rest)]:
        return Tail.DAMAGED
    if len(rest) < _EDGE_BYTES:
        return Tail.TORN
    (length, _crc) = _LENGTHS.unpack_from(rest, _MARKER_BYTES)
    return Tail.TORN if _EDGE_BYTES + length > len(rest) else Tail.DAMAGED


def _has_unwritten_sector(data: bytes, begin: int) -> bool:
    """Whether the disk never got a part of it: then the fsync of that frame did not return.

    What a file grew by and was not written reads as zeros, sector by sector; a frame's own bytes
    have no such runs, for they are compressed or text.
    """
    end = begin - begin % _SECTOR_BYTES + _SECTOR_BYTES
    while begin < len(data):
        piece = data[begin:end]
        if len(piece) >= _ZEROS_AT_LEAST and not piece.strip(b"\0"):
            return True
        begin, end = end, end + _SECTOR_BYTES
    return False


def _unpack(stored: bytes, block: Block) -> tuple[bytes, ...] | None:
    try:
        raw = zlib.decompressobj().decompress(stored, block.raw_bytes + 1)
    except zlib.error:
        return None
    position = 4 * block.count
    if len(raw) != block.raw_bytes or position > len(raw):
        return None
    records = []
    for length in struct.unpack_from(f"<{block.count}I", raw):
        records.append(raw[position : position + length])
        position += length
    return tuple(records) if position == len(raw) else None


def _head_crc(marker: bytes, text: bytes) -> int:
    return zlib.crc32(text, zlib.crc32(marker + len(text).to_bytes(4, "little")))


def _head(marker: bytes, text: bytes, crc: int) -> Head | None:
    if _head_crc(marker, text) != crc:
        return None
    return decode_head(text)
