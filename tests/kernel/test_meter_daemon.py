# SPDX-License-Identifier: Apache-2.0
"""The daemon's metering, from the kernel's sheets to the ledger, with a real daemon and disk.

Sent datagrams are the reference to the byte: their payload is known to the one who sends them.
CPU time is held against the cgroup's own account.
"""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest
from tests.kernel.harness import dying_daemon
from tests.kernel.harness.agent import AgentUnderTest
from tests.kernel.harness.cgroups import CgroupTree

from licagent.control.usage_wire import decode
from licagent.domain.usage import Meter, UsageKind, UsageRecord
from licagent.host import posture
from licagent.kernel.bpffs import PinFolder
from licagent.kernel.control import ControlWord
from licagent.store.ledger import Ledger

SETTINGS: Final = "metering_interval_s = 1"
SIZE: Final = 100
CPU_TOLERANCE: Final = 0.01
"""Of processes and the unattributed line together, against cpu.stat."""
_PATIENCE_S: Final = 60.0

SENDER: Final = """
import socket, sys
open(sys.argv[1] + "/cgroup.procs", "w").write("0")
made = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2)]
made[0].bind(("127.0.0.1", 0))
made[1].connect(made[0].getsockname())
made[0].settimeout(5)
for line in sys.stdin:
    for _ in range(int(line)):
        made[1].send(bytes(100))
        made[0].recv(100)
    print(line, end="", flush=True)
"""


class Sender:
    """A process in a cgroup that sends datagrams to itself."""

    def __init__(self, cgroup: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", SENDER, str(cgroup)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self.sent = 0

    def send(self, count: int) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(b"%d\n" % count)
        self.process.stdin.flush()
        assert self.process.stdout.readline() == b"%d\n" % count
        self.sent += count * SIZE

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(60)
        assert self.process.stdout is not None
        self.process.stdout.close()


@pytest.fixture
def make_sender() -> Iterator[Callable[[Path], Sender]]:
    made: list[Sender] = []

    def make(cgroup: Path) -> Sender:
        found = Sender(cgroup)
        made.append(found)
        return found

    yield make
    for found in made:
        if found.process.poll() is None:
            found.close()


def records_of(agent: AgentUnderTest) -> list[UsageRecord]:
    """What the ledger holds; the daemon is not running."""
    ledger = Ledger(agent.folder / "state" / "usage", boot_id=posture.boot_id())
    try:
        assert ledger.verify().is_intact
        return [decode(payload) for _sequence, payload in ledger.records()]
    finally:
        ledger.close()


def total(records: list[UsageRecord], meter: Meter) -> int:
    return sum(record.quantities.get(meter, 0) for record in records)


def eventually(condition: Callable[[], Any], what: str) -> Any:
    end = time.monotonic() + _PATIENCE_S
    while time.monotonic() < end:
        if found := condition():
            return found
        time.sleep(0.05)
    raise AssertionError(f"not in {_PATIENCE_S} s: {what}")


def wait_commit(agent: AgentUnderTest) -> None:
    before = agent.call("status")["metering"]["last_commit"]
    eventually(lambda: agent.call("status")["metering"]["last_commit"] != before, "a commit")


def commits(agent: AgentUnderTest) -> int:
    spool = agent.call("status")["metering"]["spool"]
    return 0 if spool is None else int(spool["next_sequence"])


def sheet_of(agent: AgentUnderTest) -> int:
    control = ControlWord(PinFolder(agent.bpffs))
    try:
        return control.sheet
    finally:
        control.close()


def records_to(agent: AgentUnderTest, sent_bytes: int) -> list[UsageRecord]:
    """What the ledger holds of all that was sent; the daemon is not running.

    A daemon that is told to end leaves in the kernel what it cannot commit in its last seconds, as
    on a machine under load: the next one commits it.
    """
    records = records_of(agent)
    if total(records, Meter.TX_PAYLOAD_BYTES) < sent_bytes:
        agent.start()
        wait_commit(agent)
        agent.stop()
        records = records_of(agent)
    return records


def start_dying(agent: AgentUnderTest, place: str, count: int) -> None:
    """Start a daemon that kills itself there."""
    agent.write_config()
    with (agent.folder / "daemon.log").open("ab") as log:
        agent.process = subprocess.Popen(
            [sys.executable, dying_daemon.__file__, place, str(count)],
            env=agent.environment,
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
        )


def test_killed_at_any_step_it_loses_nothing_and_counts_nothing_twice(
    make_agent: Callable[..., AgentUnderTest], make_sender: Callable[[Path], Sender]
) -> None:
    """Each daemon clears up after the one before, and is killed at another place."""
    agent = make_agent(mode="observe", settings=SETTINGS)
    agent.start()
    sender = make_sender(agent.cgroup)
    sender.send(30)
    agent.stop()
    for name in dying_daemon.PLACES:
        for when, count in (("before", 2), ("after", 1)):
            start_dying(agent, f"{name}:{when}", count)
            process = agent.process
            assert process is not None
            while process.poll() is None:
                sender.send(7)
                time.sleep(0.001)
            assert process.returncode == -9, agent.log()
            sender.send(11)
    agent.start()
    sender.send(13)
    sender.close()
    agent.stop()
    records = records_to(agent, sender.sent)
    sent = total(records, Meter.TX_PAYLOAD_BYTES)
    received = total(records, Meter.RX_PAYLOAD_BYTES)
    assert (sent, received) == (sender.sent, sender.sent)
    assert not [record for record in records if record.kind is UsageKind.GAP]


def test_processes_and_the_unattributed_line_are_the_cgroups_own_total(
    make_agent: Callable[..., AgentUnderTest],
) -> None:
    agent = make_agent(mode="observe", settings=SETTINGS)
    agent.start()
    spin = (
        f"echo 0 > {agent.cgroup}/cgroup.procs; i=0; while [ $i -lt 400000 ]; do i=$((i+1)); done"
    )
    subprocess.run(["sh", "-c", spin + "; for i in 1 2 3 4 5; do /bin/true; done"], check=True)
    for _ in range(3):  # a balance is published when two readings have it
        wait_commit(agent)
    status = agent.call("status")["metering"]
    agent.stop()
    text = (agent.cgroup / "cpu.stat").read_text().splitlines()
    used_ns = int(dict(line.split() for line in text)["usage_usec"]) * 1000
    counted_ns = total(records_of(agent), Meter.CPU_NS)
    error = counted_ns / used_ns - 1
    assert abs(error) < CPU_TOLERANCE, f"{error:+.4%} of cpu.stat; {status}"


COMPUTE: Final = """
[[resource]]
name = "cpu"
kind = "compute"
mode = "observe"

[[resource]]
name = "disk"
kind = "storage"
mode = "observe"

[[binding]]
name = "everybody"
license = "wide"
selectors = ["host"]

[[binding]]
name = "batch"
license = "narrow"
selectors = ["cgroup:path:/batch"]
"""


def test_compute_and_storage_are_charged_to_the_licenses_of_their_bindings(
    make_agent: Callable[..., AgentUnderTest], tmp_path: Path
) -> None:
    footprint = f'[[footprint]]\nname = "f"\npath = "{tmp_path}"\nresource = "disk"\nevery_s = 5\n'
    (tmp_path / "file").write_bytes(bytes(65536))
    agent = make_agent(mode="observe", settings=f"{SETTINGS}\n{footprint}")
    agent.issue("wide", ["cpu", "disk"], actions=("use",))
    agent.issue("narrow", ["cpu"], actions=("use",))
    agent.policy(COMPUTE)
    batch = agent.cgroup / "batch"
    batch.mkdir()
    agent.start()
    spin = "i=0; while [ $i -lt 50000 ]; do i=$((i+1)); done"
    for folder in (agent.cgroup, batch):
        subprocess.run(["sh", "-c", f"echo 0 > {folder}/cgroup.procs; {spin}"], check=True)

    def rows() -> dict[str, Any]:
        return {row["name"]: row for row in agent.call("usage", by="license")["rows"]}

    found = eventually(lambda: rows() if {"wide", "narrow"} <= rows().keys() else None, "both")
    assert found["wide"]["quantities"]["cpu_ns"] > 1_000_000
    assert found["narrow"]["quantities"]["cpu_ns"] > 1_000_000
    assert found["narrow"]["resource"] == "cpu"
    assert found["narrow"]["unit"] == "/batch"
    # At the moment it ends, what comes is nobody's license; what was used before stays charged.
    agent.revoke("narrow")
    wait_commit(agent)
    wait_commit(agent)
    subprocess.run(["sh", "-c", f"echo 0 > {batch}/cgroup.procs; {spin}"], check=True)
    shadow = eventually(lambda: rows().get(""), "shadow usage")
    assert shadow["resource"] == "cpu"
    stored = eventually(
        lambda: rows()["wide"]["quantities"].get("stored_byte_ms"), "a footprint of two moments"
    )
    assert stored >= 65536 * 1000
    agent.stop()
    by_binding = {
        (record.binding, record.license)
        for record in records_of(agent)
        if record.kind is UsageKind.COMPUTE
    }
    assert {("everybody", "wide"), ("batch", "narrow"), ("", "")} <= by_binding


def test_programs_that_run_already_are_charged_by_path_and_content(
    make_agent: Callable[..., AgentUnderTest], tmp_path: Path
) -> None:
    """They are older than the policy that names them; nothing but their use changes."""
    programs = {}
    for name in ("by-path", "by-content"):
        programs[name] = tmp_path / name
        shutil.copy2("/bin/dash", programs[name])
    with programs["by-content"].open("ab") as program:
        program.write(b"other")  # after the end of what the kernel maps
    digest = hashlib.sha256(programs["by-content"].read_bytes()).hexdigest()
    agent = make_agent(mode="observe", settings=SETTINGS)
    agent.issue("by-path", ["cpu"], actions=("use",))
    agent.issue("by-content", ["cpu"], actions=("use",))
    agent.policy('[[resource]]\nname = "cpu"\nkind = "compute"\n')
    spin = "while :; do i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; sleep 0.05; done"
    running = [
        subprocess.Popen(
            [program, "-c", spin],
            preexec_fn=lambda: (agent.cgroup / "cgroup.procs").write_text("0"),  # noqa: PLW1509
        )
        for program in programs.values()
    ]
    try:
        agent.start()
        wait_commit(agent)
        agent.policy(
            f"""
[[resource]]
name = "cpu"
kind = "compute"

[[binding]]
license = "by-path"
selectors = ["unix:path:{programs["by-path"]}"]

[[binding]]
license = "by-content"
selectors = ["unix:sha256:{digest}"]
"""
        )

        def charged() -> set[str]:
            rows = agent.call("usage", by="license")["rows"]
            return {row["name"] for row in rows if row["quantities"].get("cpu_ns", 0) > 1_000_000}

        eventually(lambda: {"by-path", "by-content"} <= charged(), "both are charged")
    finally:
        for process in running:
            process.kill()
            process.wait(timeout=60)


def test_a_daemon_that_was_away_counts_what_was_used_meanwhile(
    make_agent: Callable[..., AgentUnderTest], make_sender: Callable[[Path], Sender]
) -> None:
    agent = make_agent(mode="observe", settings=SETTINGS)
    agent.start()
    sender = make_sender(agent.cgroup)
    sender.send(5)
    agent.kill()
    sender.send(50)
    agent.start()
    found = eventually(
        lambda: [
            row
            for row in agent.call("usage", by="process")["rows"]
            if row["pid"] == sender.process.pid
            and row["quantities"].get("tx_payload_bytes") == sender.sent
        ],
        "its datagrams",
    )
    assert found[0]["name"].startswith("python")
    top = agent.call("top")
    row = next(
        dict(zip(top["columns"], values, strict=True))
        for values in top["rows"]
        if values[0] == sender.process.pid
    )
    assert row["tx_payload_bytes"] > 0
    assert row["memory_bytes"] > 0
    assert row["exited_ns"] == 0


def test_with_metering_off_nothing_is_committed(
    make_agent: Callable[..., AgentUnderTest],
) -> None:
    agent = make_agent(mode="observe", settings='metering = "off"')
    agent.start()
    with CgroupTree(agent.cgroup) as tree:
        spin = f"echo 0 > {tree.root}/cgroup.procs; /bin/true"
        subprocess.run(["sh", "-c", spin], check=True)
        assert eventually(lambda: agent.call("usage"), "an answer")["metering"] == "off"
        assert agent.call("top")["rows"] == []
        assert agent.call("status")["metering"]["state"] == "off"
    agent.stop()
    assert records_of(agent) == []


def test_switched_off_and_on_again_what_was_used_between_is_nobodys(
    make_agent: Callable[..., AgentUnderTest], make_sender: Callable[[Path], Sender]
) -> None:
    agent = make_agent(mode="observe", settings=SETTINGS)
    agent.start()
    sender = make_sender(agent.cgroup)
    sender.send(10)
    agent.kill()
    sender.send(10)  # used under the settings that wanted it metered
    wanted = sender.sent
    agent.settings = 'metering = "off"'
    agent.start()
    eventually(lambda: commits(agent) > 1 and not sheet_of(agent), "that counting has ended")
    sender.send(500)
    agent.stop()
    sender.send(500)
    assert total(records_of(agent), Meter.TX_PAYLOAD_BYTES) == wanted
    agent.settings = SETTINGS
    agent.start()
    before = sender.sent
    sender.send(10)
    wanted += sender.sent - before
    wait_commit(agent)
    sender.close()
    agent.stop()
    records = records_to(agent, wanted)
    assert total(records, Meter.TX_PAYLOAD_BYTES) == wanted
    assert total(records, Meter.RX_PAYLOAD_BYTES) == wanted
    gaps = [record.detail for record in records if record.kind is UsageKind.GAP]
    assert gaps == ["metering was off"]


@pytest.fixture
def small_disk(make_agent: Callable[..., AgentUnderTest]) -> Iterator[AgentUnderTest]:
    """An agent whose state folder is a file system of 8 MiB."""
    agent = make_agent(mode="observe", settings=SETTINGS)
    state = agent.folder / "state"
    state.mkdir(mode=0o700)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m,mode=700", "none", state], check=True)
    try:
        yield agent
        agent.stop()
    finally:
        agent.kill()
        subprocess.run(["umount", "-l", state], check=True)


@pytest.mark.parametrize("is_detached", [False, True], ids=["mended", "detached"])
def test_a_full_disk_holds_usage_in_the_kernel_and_says_so(
    small_disk: AgentUnderTest, make_sender: Callable[[Path], Sender], is_detached: bool
) -> None:
    agent = small_disk

    def sent() -> int:
        rows = agent.call("usage")["rows"]
        return sum(row["quantities"].get("tx_payload_bytes", 0) for row in rows)

    def codes() -> set[str]:
        return {reason["code"] for reason in agent.call("status")["reasons"]}

    agent.start()
    sender = make_sender(agent.cgroup)
    sender.send(10)
    eventually(lambda: commits(agent) > 1, "a commit")
    filler = agent.folder / "state" / "filler"
    with filler.open("wb", buffering=0) as stream, contextlib.suppress(OSError):
        while True:
            stream.write(bytes(4096))

    def is_held() -> bool:
        sender.send(5)
        return bool(codes() & {"metering-stopped", "spool-full"})

    eventually(is_held, "an alarm")
    sender.send(20)
    if is_detached:
        # The way out stays open, and says what it costs.
        answer = agent.call("detach")
        assert answer["changed"]
        assert "space" in answer["usage_lost"].lower()
        return
    # Nothing is lost to the one who asks: what is not on the disk is counted from the kernel.
    eventually(lambda: sent() == sender.sent, "all that was sent")
    agent.kill()
    filler.unlink()
    agent.start()
    sender.send(1)
    wait_commit(agent)
    eventually(lambda: not codes() & {"metering-stopped", "spool-full"}, "no alarm")
    sender.close()
    agent.stop()
    assert total(records_to(agent, sender.sent), Meter.TX_PAYLOAD_BYTES) == sender.sent
