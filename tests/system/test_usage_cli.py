# SPDX-License-Identifier: Apache-2.0
"""`licagent usage`, `usage verify` and `top` on a real daemon that meters real programs."""

from __future__ import annotations

import csv
import fcntl
import io
import os
import pty
import select
import struct
import subprocess
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.kernel.harness.programs import PYTHON, run_in_cgroup, start
from tests.system.harness.scene import COMMAND, HOLDER, STRANGER, Scene, eventually

from licagent.store.frames import scan
from licagent.store.segments import SegmentName

BURN = "import sys, time\nwhile time.process_time() < float(sys.argv[1]): pass"
TOLERANCE_NS = 30_000_000
"""Of the comparison with process_time here; the meters' own tests have the close ones."""


def burn(scene: Scene, seconds: float, uid: int) -> None:
    done = run_in_cgroup(scene.agent.cgroup, [*PYTHON, "-c", BURN, str(seconds)], uid=uid)
    assert done.returncode == 0, done


def used(answer: dict[str, Any], name: str, meter: str = "cpu_ns") -> int:
    return sum(row["quantities"].get(meter, 0) for row in answer["rows"] if row["name"] == name)


@pytest.fixture(scope="module")
def worked(scene: Scene) -> Scene:
    """A scene in which two users used the CPU, and one of them 300 kB of the network."""
    burn(scene, 0.6, HOLDER)
    burn(scene, 0.3, STRANGER)
    code = (
        "import socket, sys\n"
        f"s = socket.create_connection(('127.0.0.1', {scene.server.port}))\n"
        "s.sendall(b'x' * 300_000)\n"
        "left = 300_000\n"
        "while left: left -= len(s.recv(min(left, 65536)))\n"
    )
    done = run_in_cgroup(scene.agent.cgroup, [*PYTHON, "-c", code], uid=HOLDER)
    assert done.returncode == 0, done
    return scene


def test_usage_by_user_is_what_they_used(worked: Scene) -> None:
    answer = worked.ask("usage", "--by", "user")
    for uid, seconds in ((HOLDER, 0.6), (STRANGER, 0.3)):
        # Starting Python is theirs, too: at least what was burnt, and not much more.
        found = used(answer, str(uid)) / 1e9
        assert seconds - TOLERANCE_NS / 1e9 <= found <= seconds + 0.5, answer


def test_usage_by_license_has_what_went_through_it(worked: Scene) -> None:
    answer = worked.ask("usage")
    assert used(answer, "acme", "tx_payload_bytes") == 300_000
    assert used(answer, "acme", "rx_payload_bytes") == 300_000
    [row] = [row for row in answer["rows"] if row["name"] == "acme"]
    assert row["allowed"] >= 1
    text = worked.cli("usage").out
    assert "293K" in text
    assert "Decisions since" in text


@pytest.mark.parametrize("by", ["license", "process", "unit", "user", "resource", "executable"])
def test_rows_rest_and_what_is_unattributed_are_the_total(worked: Scene, by: str) -> None:
    answer = worked.ask("usage", "--by", by, "--limit", "1")
    parts = [row["quantities"] for row in answer["rows"]]
    parts += [answer["rest"]["quantities"], answer["unattributed"]["quantities"]]
    assert len(answer["rows"]) == 1
    for meter, amount in answer["total"].items():
        assert sum(part.get(meter, 0) for part in parts) == amount


def test_filters_and_windows(worked: Scene) -> None:
    whole = worked.ask("usage", "--by", "user")
    one = worked.ask("usage", "--by", "user", "--user", str(HOLDER))
    assert [row["name"] for row in one["rows"]] == [str(HOLDER)]
    assert used(one, str(HOLDER)) >= used(whole, str(HOLDER))
    assert one["unattributed"]["quantities"] == {}
    # The license is one for a network resource: what goes through it is bytes, and CPU is not.
    licensed = worked.ask("usage", "--by", "user", "--license", "acme")
    none = worked.ask("usage", "--by", "user", "--license", "")
    assert used(licensed, str(HOLDER), "tx_payload_bytes") == 300_000
    assert used(licensed, str(HOLDER)) == 0 < used(none, str(HOLDER))
    assert used(none, str(HOLDER), "tx_payload_bytes") == 0
    db = worked.ask("usage", "--by", "resource", "--resource", "db")
    assert used(db, "db", "rx_payload_bytes") == 300_000
    before = worked.ask("usage", "--until", "2020-01-01T00:00:00Z")
    assert (before["rows"], before["total"], before["since"]) == ([], {}, None)
    assert worked.cli("usage", "--since", "yesterday").status == 2


def test_csv_is_the_same_numbers(worked: Scene) -> None:
    result = worked.cli("usage", "--by", "user", "--csv")
    assert result.status == 0, result
    lines = list(csv.DictReader(io.StringIO(result.out)))
    assert [line["line"] for line in lines][-2:] == ["unattributed", "total"]
    sums = sum(int(line["cpu_ns"] or 0) for line in lines if line["line"] != "total")
    assert sums == int(lines[-1]["cpu_ns"])


def test_top_shows_who_is_at_work_and_afterwards_who_has_ended(worked: Scene) -> None:
    with start(worked.agent.cgroup, [*PYTHON, "-c", BURN, "60"], uid=HOLDER) as program:

        def mine(*more: str) -> dict[str, Any] | None:
            rows = worked.ask("top", "--once", "--delay", "0.5", *more)["rows"]
            return next((row for row in rows if row["pid"] == program.pid), None)

        # On a machine that has other work, a loop may have much less than a whole CPU.
        row = eventually(lambda: (found := mine()) and found["rates"]["cpu_ns"] and found)
        assert 0 < row["rates"]["cpu_ns"] < 1.5e9
        assert (row["user"], row["ppid"], row["exited_ns"]) == (str(HOLDER), os.getpid(), None)
        assert row["levels"]["memory_bytes"] > 1 << 20
        text = worked.cli("top", "--once", "--delay", "0.5", "--pid", str(program.pid)).out
        assert str(program.pid) in text.splitlines()[-1]
        program.process.kill()
        rusage = os.wait4(program.pid, 0)[2]
        program.process.returncode = 0
        row = eventually(lambda: (found := mine()) and found["exited_ns"] and found)
        found_ns = row["totals"]["cpu_ns"]
        assert abs(found_ns - (rusage.ru_utime + rusage.ru_stime) * 1e9) < TOLERANCE_NS
        assert mine("--no-exited") is None
        assert f"<{row['name']}>" in worked.cli("top", "--once", "--delay", "0.5").out


def test_top_in_batches_of_json(worked: Scene) -> None:
    result = worked.cli("top", "-b", "-n", "2", "--delay", "0.3", "--json", "--by", "license")
    first, second = result.lines
    assert first["by"] == second["by"] == "license"
    assert second["interval_ns"] > 0
    assert {"acme", ""} <= {row["name"] for row in second["rows"]}


def test_top_on_a_terminal(worked: Scene) -> None:
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    environment = worked.agent.environment | {"TERM": "xterm-256color", "LC_ALL": "C.UTF-8"}
    with (
        start(worked.agent.cgroup, [*PYTHON, "-c", BURN, "60"], uid=HOLDER) as program,
        subprocess.Popen(
            [str(COMMAND), "top", "--delay", "0.3"],
            stdin=theirs, stdout=theirs, stderr=theirs, env=environment, start_new_session=True,
        ) as process,
    ):  # fmt: skip
        try:
            screen = b""
            limit = time.monotonic() + 60
            while str(program.pid).encode() not in screen:
                assert time.monotonic() < limit, screen[-2000:]
                if select.select([ours], [], [], 0.1)[0]:
                    screen += os.read(ours, 65536)
            os.write(ours, b"q")
            while process.poll() is None:
                assert time.monotonic() < limit
                if select.select([ours], [], [], 0.1)[0]:
                    os.read(ours, 65536)
            assert process.returncode == 0
        finally:
            process.kill()
            os.close(ours)
            os.close(theirs)


def test_only_root_and_the_group_may_look(worked: Scene) -> None:
    for words in (["usage"], ["usage", "verify"], ["top", "--once"]):
        assert worked.cli_as(STRANGER, *words).status in (3, 5), words


@pytest.fixture
def committed(worked: Scene) -> Iterator[Path]:
    """A segment of the ledger that holds records; afterwards it is as it was."""
    folder = worked.agent.folder / "state" / "usage"
    eventually(lambda: worked.ask("usage", "verify")["records"] > 0, "a commit")
    segment = max(folder.glob("*.usage"), key=lambda path: path.stat().st_size)
    whole = segment.read_bytes()
    yield segment
    with segment.open("r+b") as stream:
        stream.write(whole)


def test_a_ledger_that_was_altered_does_not_verify(worked: Scene, committed: Path) -> None:
    assert worked.cli("usage", "verify").status == 0
    assert worked.cli("usage", "verify", "--offline").status == 0
    # In the records: what a frame says of itself stands in it twice.
    name = SegmentName.parse(committed.name)
    assert name is not None
    frames = scan(committed.read_bytes(), name.marker).frames
    frame = max(frames, key=lambda frame: frame.head.body_bytes)
    place = frame.body_offset + frame.head.blocks[0].stored_bytes // 2
    with committed.open("r+b") as stream:
        stream.seek(place)
        byte = stream.read(1)
        stream.seek(place)
        stream.write(bytes([byte[0] ^ 1]))
    for words in (["usage", "verify"], ["usage", "verify", "--offline"]):
        result = worked.cli(*words, "--json")
        assert result.status == 150
        assert result.json["good"] is False
        assert result.json["problems"]
        assert "does NOT hold" in worked.cli(*words).out


def test_a_ledger_can_be_verified_without_the_daemon(worked: Scene) -> None:
    worked.agent.stop()
    try:
        assert worked.cli("usage", "verify").status == 3
        result = worked.cli("usage", "verify", "--offline")
        assert result.status == 0, result
        assert "holds" in result.out
    finally:
        worked.agent.start()


def test_a_footprint_is_in_usage_top_and_status(
    make_scene: Callable[..., Scene], tmp_path: Path
) -> None:
    (tmp_path / "file").write_bytes(b"x" * (3 << 20))
    section = f'[[footprint]]\nname = "data"\npath = "{tmp_path}"\nevery_s = 5\n'
    scene = make_scene(settings=section)
    scene.agent.start()

    def stored() -> int:
        rows = scene.ask("top", "--once", "--delay", "0.3", "--by", "license")["rows"]
        return sum(row["levels"]["stored_bytes"] or 0 for row in rows)

    assert 3 << 20 <= eventually(stored, "a walk") < 4 << 20
    answer = eventually(
        lambda: (
            (found := scene.ask("usage", "--by", "license"))
            and used(found, "", "stored_byte_ms")
            and found
        ),
        "a record of the footprint",
    )
    assert "STORED" in scene.cli("usage").out
    assert answer["total"]["stored_byte_ms"] == used(answer, "", "stored_byte_ms")
    text = scene.cli("status", "--verbose").out
    assert "metering:" in text
    assert "Storage footprints" in text
    assert str(tmp_path) in text
