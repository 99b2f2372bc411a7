# SPDX-License-Identifier: Apache-2.0
"""A million denials: counters exact to the unit, events folded, nothing lost without a word."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.kernel.harness.agent import AgentUnderTest
from tests.kernel.harness.programs import run_in_cgroup
from tests.system.harness.scene import HOLDER, STRANGER, Scene, eventually

SOURCE = Path(__file__).parent / "harness" / "flood.c"
FIRST_PORT = 20_000
RESOURCES = 40
MILLION = 1_000_000


@pytest.fixture(scope="module")
def flood(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # Not in tmp_path itself, which only root may enter.
    folder = tmp_path_factory.mktemp("flood")
    for parent in (folder, folder.parent, folder.parent.parent):
        parent.chmod(0o755)
    program = folder / "flood"
    subprocess.run(
        ["gcc", "-O2", "-Wall", "-Werror", "-pthread", "-o", program, SOURCE], check=True
    )
    return program


@pytest.fixture
def flooded() -> Iterator[Scene]:
    with Scene(AgentUnderTest()) as scene:
        names = [f"r{number}" for number in range(RESOURCES)]
        scene.agent.start()
        scene.agent.issue("acme", ["db", *names])
        text = scene.policy_text("acme")
        for number, name in enumerate(names):
            text += (
                f'[[resource]]\nname = "{name}"\nkind = "network"\nmode = "enforce"\n'
                "destinations = [{ cidr = "
                f'"127.0.0.1/32", ports = ["{FIRST_PORT + number}"], protocol = "udp" }}]\n'
            )
        scene.agent.policy(text)
        yield scene


def pour(
    scene: Scene, flood: Path, *, ports: int, processes: int, threads: int, rounds: int
) -> int:
    """Run the flood to its end; how many calls were denied, by the callers' own count."""
    words = [str(number) for number in (FIRST_PORT, ports, processes, threads, rounds)]
    done = run_in_cgroup(scene.agent.cgroup, [str(flood), *words], uid=STRANGER, limit_s=120)
    assert done.returncode == 0, done
    return int(done.stdout)


def counted(scene: Scene) -> Counter[str]:
    """Denials by resource, as the counters have them."""
    found: Counter[str] = Counter()
    for row in scene.ask("status", "--timeout", "30")["counters"]:
        if row["verdict"] == "deny":
            found[row["resource"]] += row["count"]
    return found


def told(scene: Scene) -> Counter[str]:
    """Denials by resource, as the events have them."""
    result = scene.cli(
        "events", "--json", "--verdict", "deny", "--limit", "1000000", "--timeout", "60"
    )
    found: Counter[str] = Counter()
    for row in result.lines:
        found[row["resource"]] += row["count"]
    return found


@pytest.mark.parametrize(
    "shape",  # ports, processes, threads, rounds
    [(4, 5, 1, 50_000), (4, 1, 5, 50_000), (40, 10, 1, 2500)],
    ids=["processes", "threads", "many"],
)
def test_a_million_denials_are_counted_to_the_unit_and_told_in_few_events(
    flooded: Scene, flood: Path, shape: tuple[int, int, int, int]
) -> None:
    ports, processes, threads, rounds = shape
    began_s = time.monotonic()
    denied = pour(flooded, flood, ports=ports, processes=processes, threads=threads, rounds=rounds)
    assert denied == MILLION
    assert counted(flooded) == {f"r{number}": MILLION // ports for number in range(ports)}
    assert eventually(lambda: sum(told(flooded).values()) >= MILLION, "events settled")
    assert told(flooded) == counted(flooded)
    events = flooded.agent.events(verdict="deny")
    # One at the start and one at the end for each series, and one for each second it lasts.
    series, lasted_s = ports * processes * threads, time.monotonic() - began_s
    assert len(events) < max(MILLION / 50, series * (lasted_s + 3))
    assert flooded.ask("status")["events"]["dropped"] == 0
    assert {row["process"]["uid"] for row in events} <= {STRANGER, None}


@pytest.mark.slow
def test_counters_are_exact_when_events_are_dropped(flooded: Scene, flood: Path) -> None:
    os.kill(flooded.agent.pid, signal.SIGSTOP)
    try:
        # 10,000 series of denials, and the ring holds some 2,700 events.
        denied = pour(flooded, flood, ports=40, processes=250, threads=1, rounds=100)
        assert denied == MILLION
        assert flooded.connect(HOLDER) == "ok"
    finally:
        os.kill(flooded.agent.pid, signal.SIGCONT)
    status = eventually(lambda: flooded.ask("status", "--timeout", "30"))
    assert status["events"]["dropped"] > 0
    assert counted(flooded) == {f"r{number}": MILLION // 40 for number in range(40)}
    assert "dropped" in flooded.cli("status", "--timeout", "30").out
    # What is told never exceeds what was counted, and the next denial is told again.
    assert flooded.connect(STRANGER) == "ENOKEY"
    eventually(lambda: told(flooded)["db"] == 1, "a denial after the flood is told")
    assert all(count <= MILLION // 40 for name, count in told(flooded).items() if name != "db")
