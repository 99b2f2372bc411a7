# SPDX-License-Identifier: Apache-2.0
"""Messages of taskstats and the proc connector, of all layouts that kernels have had."""

from __future__ import annotations

import os
import struct
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from licagent.metering.fallback.procevents import ProcEvent, What, parse
from licagent.metering.fallback.taskstats import (
    TaskStats,
    TaskStatsUnavailable,
    ThreadStats,
)

USUAL, MOVED = 80, 144
"""Offset of ac_comm: as documented, and as versions 14 and 15 had it."""


def structure(comm_at: int, version: int, tid: int, tgid: int, last: bool = False) -> bytes:
    """struct taskstats; what is not read has a pattern."""
    stats = bytearray(b"\xee" * (comm_at + 480))
    struct.pack_into("=H", stats, 0, version)
    stats[8] = 0x20 if last else 0
    struct.pack_into("=Q", stats, comm_at - 8, 123_456_789)
    stats[comm_at : comm_at + 32] = b"worker".ljust(32, b"\0")
    struct.pack_into("=IIII", stats, comm_at + 40, 1000, 100, tid, 1)
    struct.pack_into("=QQQ", stats, comm_at + 168, 11, 22, 33)
    struct.pack_into("=IxxxxQQQ", stats, comm_at + 288, tgid, 5, (8 << 8) | 1, 777)
    return bytes(stats)


def attribute(kind: int, content: bytes) -> bytes:
    length = 4 + len(content)
    return struct.pack("=HH", length, kind) + content + b"\0" * (-length % 4)


def message(stats: bytes, tid: int, *, with_process: bool = False) -> bytes:
    """One netlink message; with what is told of the whole process, if wanted."""
    body = attribute(4, attribute(1, struct.pack("=I", tid)) + attribute(3, stats))
    if with_process:
        process = stats[:-1] + b"\x01"
        body += attribute(5, attribute(2, struct.pack("=I", tid)) + attribute(3, process))
    return struct.pack("=IHHIIBBH", 20 + len(body), 31, 0, 0, 0, 2, 1, 0) + body


def bare(comm_at: int, has_group: bool) -> TaskStats:
    """Without sockets."""
    stats = TaskStats.__new__(TaskStats)
    stats._comm_at, stats._has_group = comm_at, has_group
    return stats


def parsed(stats: TaskStats, data: bytes) -> list[ThreadStats | None]:
    return list(stats._parse(data))


@pytest.mark.parametrize("with_process", [False, True])
def test_an_end_as_usual(with_process: bool) -> None:
    data = message(structure(USUAL, 16, 42, 40, last=True), 42, with_process=with_process)
    assert parsed(bare(USUAL, True), data) == [
        ThreadStats(
            tid=42,
            tgid=40,
            uid=1000,
            gid=100,
            parent=1,
            comm="worker",
            cpu_ns=123_456_789,
            read_bytes=11,
            write_bytes=22,
            cancelled_bytes=33,
            device=os.makedev(8, 1),
            inode=777,
            is_last=True,
        )
    ]


def test_an_end_where_fields_were_moved() -> None:
    (found,) = parsed(bare(MOVED, False), message(structure(MOVED, 15, 42, 40), 42))
    assert found is not None
    assert (found.tid, found.cpu_ns, found.cancelled_bytes) == (42, 123_456_789, 33)
    assert (found.tgid, found.inode, found.is_last) == (0, 0, None)


def test_several_answers_and_an_error_in_one_read() -> None:
    error = struct.pack("=IHHIIi", 20, 2, 0, 0, 0, -3)
    data = message(structure(USUAL, 16, 1, 1), 1) + error + message(structure(USUAL, 16, 2, 2), 2)
    assert [one and one.tid for one in parsed(bare(USUAL, True), data)] == [1, None, 2]


@given(st.binary(max_size=200))
def test_anything_else_is_no_thread(data: bytes) -> None:
    try:
        found = parsed(bare(USUAL, True), data)
    except struct.error:
        return
    assert all(one is None or isinstance(one, ThreadStats) for one in found)


def test_the_layout_of_this_kernel_is_known() -> None:
    try:
        stats = TaskStats()
    except TaskStatsUnavailable as error:
        pytest.skip(str(error))
    try:
        own = threading.get_native_id()
        found = stats.of([own, 2**22 + 1])
        assert set(found) == {own}
        assert found[own].cpu_ns > 1_000_000
        assert found[own].parent == os.getppid()
        assert found[own].tgid in (0, os.getpid())
    finally:
        stats.close()


def event(what: int, *fields: int) -> bytes:
    return bytes(36) + struct.pack("=IIQ", what, 0, 1) + struct.pack(f"={len(fields)}I", *fields)


def test_events() -> None:
    assert parse(event(1, 10, 10, 11, 11)) == ProcEvent(What.FORK, 11, 10)
    assert parse(event(1, 10, 10, 12, 10)) == ProcEvent(What.THREAD, 12, 10)
    assert parse(event(2, 11, 11)) == ProcEvent(What.EXEC, 11, 0)
    assert parse(event(4, 11, 11, 5, 5)) == ProcEvent(What.UID, 11, 0)
    assert parse(event(0x80000000, 11, 11, 0, 17)) is None
    assert parse(b"short") is None
