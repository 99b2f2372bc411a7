# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import zlib

from hypothesis import given, settings
from hypothesis import strategies as st

from licagent.store.epochkeys import new_epoch
from licagent.store.frame_heads import Block, Head
from licagent.store.frames import Tail, encode, pack, pack_marks, scan, split
from licagent.store.ledger_types import BATCH_BYTES, BATCH_RECORDS
from licagent.store.segments import SegmentName

MARKER = bytes(range(1, 9))
payloads = st.lists(st.binary(max_size=300), min_size=1, max_size=8)
frames = st.lists(st.lists(payloads, max_size=3), min_size=1, max_size=4)


def encoded(batches: list[list[bytes]], first: int = 1) -> bytes:
    packed = [pack(each) for each in batches]
    small, large = pack_marks({"sheet": b"7", "big": bytes(100)})
    blocks = tuple(
        Block(len(records), len(stored), raw, zlib.crc32(stored), bytes(32), bytes(64))
        for records, (stored, raw) in zip(batches, packed, strict=True)
    )
    head = Head(
        1, bytes(32), "b", "h", 5, first, bytes(32), blocks, (), small,
        (len(large), zlib.crc32(large)),
    )  # fmt: skip
    return encode(MARKER, head, [*(stored for stored, _ in packed), large])


@given(frames)
@settings(max_examples=50)
def test_frames_come_back(content: list[list[list[bytes]]]) -> None:
    data = b"".join(map(encoded, content))
    found = scan(data, MARKER)
    assert (found.tail, found.end, found.damaged_bytes) == (Tail.CLEAN, len(data), 0)
    assert [
        [list(frame.records(data, number) or ()) for number in range(len(frame.head.blocks))]
        for frame in found.frames
    ] == content
    for frame in found.frames:
        assert frame.marks(data) == ({"sheet": b"7", "big": bytes(100)}, True)
    assert scan(data, MARKER[::-1]).frames == ()


@given(frames, st.data())
@settings(max_examples=50)
def test_a_beginning_is_torn_and_what_is_before_it_stands(
    content: list[list[list[bytes]]], data: st.DataObject
) -> None:
    each = [encoded(batches) for batches in content]
    whole = b"".join(each[:-1])
    cut = data.draw(st.integers(1, len(each[-1]) - 1))
    found = scan(whole + each[-1][:cut], MARKER)
    assert (len(found.frames), found.end, found.tail) == (len(each) - 1, len(whole), Tail.TORN)


@given(frames, st.data())
@settings(max_examples=50)
def test_one_damaged_run_never_takes_more_than_it_touches(
    content: list[list[list[bytes]]], data: st.DataObject
) -> None:
    each = [encoded(batches) for batches in content]
    whole = bytearray(b"".join(each))
    begin = data.draw(st.integers(0, len(whole) - 1))
    for offset in range(begin, min(begin + 16, len(whole))):
        whole[offset] ^= 0x5A
    found = scan(bytes(whole), MARKER)
    # Both ends of a frame are never within 16 bytes of each other.
    assert len(found.frames) == len(each)
    position = 0
    for frame, original in zip(found.frames, each, strict=True):
        assert (frame.offset, frame.length) == (position, len(original))
        position += len(original)


@given(st.binary(max_size=2000))
def test_junk_is_no_frame(junk: bytes) -> None:
    assert scan(junk, MARKER).frames == ()
    whole = encoded([[b"a"]])
    found = scan(whole + junk, MARKER)
    assert len(found.frames) == 1
    assert found.end == len(whole)


def test_what_a_record_holds_cannot_pass_for_a_frame() -> None:
    inner = encode(b"guessed!", scan(encoded([[b"x"]]), MARKER).frames[0].head, [])
    data = encoded([[inner]])
    broken = b"\0" * 20 + data[20:]
    assert len(scan(broken, MARKER).frames) == 1


def test_splitting() -> None:
    assert split([]) == []
    assert [len(each) for each in split([b""] * (2 * BATCH_RECORDS + 1))] == [1000, 1000, 1]
    assert [len(each) for each in split([bytes(BATCH_BYTES)] * 2 + [b""])] == [1, 2]
    assert [len(each) for each in split([bytes(BATCH_BYTES + 1), b"x"])] == [1, 1]


@given(st.integers(-(2**40), 2**50), st.integers(0, 2**62 - 2**30))
def test_epochs_are_new_and_fit_a_signed_column(now: int, newest: int) -> None:
    assert newest < new_epoch(now, newest) < 2**63


@given(st.integers(0, 2**32 - 1), st.integers(0, 2**63 - 1), st.integers(0, 2**63), st.integers())
def test_names_of_segments(serial: int, epoch: int, first: int, begun: int) -> None:
    name = SegmentName.make(serial, epoch, first, begun)
    assert SegmentName.parse(str(name)) == name
    assert SegmentName.parse(str(name) + ".damaged") is None
