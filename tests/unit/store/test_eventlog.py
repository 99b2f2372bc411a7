# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from licagent.store import eventlog as module
from licagent.store.errors import StateWriteFailed
from licagent.store.eventlog import EVENT_MAX_BYTES, EventLog, EventTooLarge

SMALL = EVENT_MAX_BYTES  # the smallest segment size


def numbers(log: EventLog, after: int = 0) -> list[int]:
    return [event["seq"] for event in log.read(after)]


def test_events_come_back_in_order_over_restarts(tmp_path: Path) -> None:
    log = EventLog(tmp_path)
    assert log.first_sequence == log.next_sequence == 1
    assert [log.append({"n": n}) for n in range(3)] == [1, 2, 3]
    log.close()
    again = EventLog(tmp_path)
    assert again.tail_cut is None
    assert again.append({"n": 3}) == 4
    assert [event["n"] for event in again.read()] == [0, 1, 2, 3]
    assert numbers(again, after=2) == [3, 4]
    assert [event["n"] for event in again.last(2)] == [2, 3]
    assert again.last(0) == []
    assert len(again.last(100)) == 4
    again.close()


def test_since_a_time(tmp_path: Path) -> None:
    log = EventLog(tmp_path)
    for minute in range(5):
        log.append({"at": f"2026-01-01T00:0{minute}:00Z"})
    log.close()
    assert [e["seq"] for e in log.since("2026-01-01T00:03:00Z")] == [4, 5]


def test_disk_use_is_bounded_and_the_oldest_go(tmp_path: Path) -> None:
    log = EventLog(tmp_path, segment_bytes=SMALL, segments=3)
    for number in range(400):
        log.append({"filler": "x" * 500, "n": number})
    sizes = [file.stat().st_size for file in tmp_path.iterdir()]
    assert len(sizes) == 3
    assert max(sizes) <= SMALL
    kept = numbers(log)
    assert kept == list(range(log.first_sequence, 401))
    assert log.first_sequence > 1
    assert numbers(log, after=390) == list(range(391, 401))
    log.close()
    # Numbers go on, also when everything but the newest segment was deleted by hand.
    for file in sorted(tmp_path.iterdir())[:-1]:
        file.unlink()
    again = EventLog(tmp_path, segment_bytes=SMALL, segments=3)
    assert again.append({}) == 401
    again.close()


@given(cut=st.integers(1, 60), junk=st.binary(max_size=30))
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_torn_tail_is_cut_and_said(tmp_path: Path, cut: int, junk: bytes) -> None:
    for old in tmp_path.iterdir():
        old.unlink()
    log = EventLog(tmp_path)
    for number in range(3):
        log.append({"n": number, "filler": "y" * 60})
    log.close()
    (file,) = tmp_path.iterdir()
    content = file.read_bytes()
    torn = content[:-cut] + junk.replace(b"\n", b"")
    file.write_bytes(torn)
    again = EventLog(tmp_path)
    assert again.tail_cut is not None
    assert again.tail_cut.segment == file
    assert [event["n"] for event in again.read()] == [0, 1]
    assert len(torn) - file.stat().st_size == again.tail_cut.bytes_cut
    assert again.append({"n": "next"}) == 3
    assert again.damaged_lines() == 0
    again.close()


def test_zeros_after_a_power_cut_are_cut(tmp_path: Path) -> None:
    log = EventLog(tmp_path)
    log.append({"n": 0})
    log.close()
    (file,) = tmp_path.iterdir()
    with file.open("ab") as opened:
        opened.write(bytes(4096))
    again = EventLog(tmp_path)
    assert again.tail_cut is not None
    assert again.tail_cut.bytes_cut == 4096
    assert again.append({}) == 2
    again.close()


def test_a_damaged_line_in_the_middle_is_passed_over_and_counted(tmp_path: Path) -> None:
    log = EventLog(tmp_path)
    for number in range(3):
        log.append({"n": number})
    log.close()
    (file,) = tmp_path.iterdir()
    lines = file.read_bytes().splitlines(keepends=True)
    lines[1] = b"#" * (len(lines[1]) - 1) + b"\n"
    file.write_bytes(b"".join(lines))
    again = EventLog(tmp_path)
    assert again.tail_cut is None
    assert numbers(again) == [1, 3]
    assert again.damaged_lines() == 1
    assert again.append({}) == 4
    again.close()


def test_a_kill_loses_nothing_that_was_appended(tmp_path: Path) -> None:
    pid = os.fork()
    if pid == 0:
        try:
            log = EventLog(tmp_path, segment_bytes=SMALL)
            for number in range(200):
                log.append({"n": number, "filler": "z" * 200})
            os.kill(os.getpid(), signal.SIGKILL)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    log = EventLog(tmp_path, segment_bytes=SMALL)
    assert log.tail_cut is None
    assert [event["n"] for event in log.read()] == list(range(200))
    log.close()


def test_too_large_an_event_is_refused_and_costs_no_number(tmp_path: Path) -> None:
    log = EventLog(tmp_path)
    with pytest.raises(EventTooLarge):
        log.append({"x": "x" * EVENT_MAX_BYTES})
    assert log.lost == 1
    assert log.append({}) == 1
    assert [event["lost_before"] for event in log.read()] == [1]
    log.close()


def test_a_half_written_event_is_taken_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = EventLog(tmp_path)
    log.append({"n": 0})
    real = os.write
    calls = 0

    def full(fd: int, data: bytes) -> int:
        nonlocal calls
        calls += 1
        if calls == 1:
            return real(fd, data[:5])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(module.os, "write", full)
        with pytest.raises(StateWriteFailed, match="No space left"):
            log.append({"n": 1})
    assert log.lost == 1
    assert log.append({"n": 2}) == 2
    assert log.lost == 0
    assert [(e["n"], e.get("lost_before")) for e in log.read()] == [(0, None), (2, 1)]
    assert log.damaged_lines() == 0
    log.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_a_really_full_disk_counts_and_recovers(tmp_path: Path) -> None:
    mounted = tmp_path / "small"
    mounted.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=128k", "none", mounted], check=True)
    try:
        (mounted / "ballast").write_bytes(bytes(80 * 1024))
        folder = mounted / "events"
        folder.mkdir()
        log = EventLog(folder, segment_bytes=4 * SMALL)
        written = failed = 0
        for number in range(200):
            try:
                log.append({"n": number, "filler": "x" * 500})
                written += 1
            except StateWriteFailed:
                failed += 1
        assert written
        assert log.lost == failed > 0
        (mounted / "ballast").unlink()
        log.append({"n": "after"})
        assert log.last(1)[0]["lost_before"] == failed
        assert len(list(log.read())) == written + 1
        log.close()
    finally:
        subprocess.run(["umount", mounted], check=True)


@pytest.mark.parametrize(("policy", "expected"), [("always", 3), ("rotate", 1)])
def test_when_events_are_synced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, policy: Any, expected: int
) -> None:
    synced: list[int] = []
    monkeypatch.setattr(module.os, "fdatasync", synced.append)
    log = EventLog(tmp_path, fsync=policy)
    for _ in range(3):
        log.append({})
    log.sync()
    log.sync()
    assert len(synced) == expected
    log.close()


def test_lines_are_plain_json(tmp_path: Path) -> None:
    log = EventLog(tmp_path)
    log.append({"verdict": "deny", "message": "naïve\nline"})
    log.close()
    (file,) = tmp_path.iterdir()
    (line,) = file.read_text().splitlines()
    assert json.loads(line) == {"seq": 1, "verdict": "deny", "message": "naïve\nline"}
    assert file.stat().st_mode & 0o777 == 0o600
