# SPDX-License-Identifier: Apache-2.0
"""Nothing that is done to the clock gains anything: the real daemon, on the real kernel.

The machine's clock stays as it is; the daemon alone is told another wall time, and another word
of adjtimex(2), by a library that it is started with (harness/clock_shim.c). A reboot is a state
folder that was written under another boot id.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import datetime
from typing import Any, Final

import pytest
from tests.kernel.harness.agent import AgentUnderTest
from tests.kernel.harness.probes import Probes, ask, eventually
from tests.kernel.harness.wall_clock import WallClock

from licagent.domain.clock import ClockState
from licagent.local.errors import LocalError
from licagent.store.clockstate import ClockStore
from licagent.store.statedir import StateDir

pytest_plugins = ["tests.kernel.harness.kept", "tests.kernel.harness.shim"]

DAY_S: Final = 86_400
HOUR_S: Final = 3600
SHORT_S: Final = 6
SLACK_S: Final = 120.0
"""Between times that must be the same but for what the test itself takes."""
_NS: Final = 1_000_000_000


class Clocked:
    """An agent whose daemon sees the wall clock that a test sets."""

    def __init__(self, agent: AgentUnderTest, probes: Probes, wall: WallClock) -> None:
        self.agent = agent
        self.probes = probes
        self.licensed = probes.cgroups.licensed
        self.turn = wall.turn
        self._wall = wall

    def start(self) -> None:
        """Start the daemon, and only it, under the shim."""
        self._wall.start(self.agent)

    def restart(self) -> None:
        """kill -9, and again."""
        self.agent.kill()
        self.start()

    def license(self, jti: str = "one", **times: Any) -> None:
        """Issue by the true time, and put the policy in force."""
        self.agent.issue(jti, ["probe", "offer"], **times)
        self.agent.policy(self.probes.policy(jti))

    def use(self) -> str:
        """The errno of the licensed subject, "" if it passes."""
        return self.probes.once(self.licensed)

    def ahead_s(self) -> float:
        """How far trusted time is ahead of the true one."""
        trusted = datetime.fromisoformat(self.agent.call("status")["clock"]["trusted_now"])
        return trusted.timestamp() - time.time()

    def reboot(self, high_water_s: float) -> None:
        """Stop, and let the state be of a boot that ended when it was `high_water_s` (unix)."""
        self.agent.stop()
        with StateDir(self.agent.folder / "state") as folder:
            time_ns = int(high_water_s * _NS)
            known = ClockState("0b0071d0-another-boot", 5 * _NS, time_ns, time_ns)
            # Not by ClockStore.save, which never lets the high-water mark sink.
            folder.write_document("clock", "licagent.clock/1", known.document())
            assert ClockStore(folder).load() == known
        self.start()


@pytest.fixture
def clocked(fresh_agent: AgentUnderTest, wall: WallClock) -> Iterator[Clocked]:
    """A running daemon with the true time, not synchronised."""
    with Probes(fresh_agent.cgroup) as probes:
        found = Clocked(fresh_agent, probes, wall)
        found.start()
        yield found


def test_a_clock_turned_back_does_not_lengthen_a_license(clocked: Clocked) -> None:
    clocked.license()
    streams = clocked.probes.many(clocked.licensed)
    clocked.agent.issue("one", ["probe", "offer"], expires_in_s=SHORT_S)
    clocked.turn(-DAY_S)
    wall = clocked.agent.call("status")["clock"]["wall_offset_s"]
    assert abs(wall + DAY_S) < SLACK_S, "the shim works: the daemon sees yesterday"
    clocked.restart()

    eventually(lambda: clocked.use() == "EKEYEXPIRED", "the license ends on its day")

    eventually(lambda: ask(streams)["broken"] == {"ECONNABORTED": 8}, "and its sockets with it")
    assert abs(clocked.ahead_s()) < SLACK_S
    clocked.restart()
    assert clocked.use() == "EKEYEXPIRED"


def test_a_clock_turned_forward_shortens_nothing_unless_it_is_synchronised(
    clocked: Clocked,
) -> None:
    clocked.license(expires_in_s=HOUR_S)
    streams = clocked.probes.many(clocked.licensed)

    clocked.turn(30 * DAY_S)
    clocked.restart()
    assert abs(clocked.ahead_s()) < SLACK_S
    assert clocked.use() == ""
    assert ask(streams)["alive"] == 8

    # Now an NTP client says that it is true: it was the clock before that was behind.
    clocked.turn(30 * DAY_S, synchronized=True)
    eventually(lambda: ask(streams)["broken"] == {"ECONNABORTED": 8}, "the daemon looks again")
    assert clocked.use() == "EKEYEXPIRED"
    assert abs(clocked.ahead_s() - 30 * DAY_S) < SLACK_S
    assert [event for event in clocked.agent.events() if event["kind"] == "clock"]

    # And never back: not while it runs, not by a restart, not by a reboot.
    clocked.turn(0, synchronized=True)
    clocked.restart()
    assert clocked.use() == "EKEYEXPIRED"
    clocked.reboot(time.time() + 30 * DAY_S)
    assert clocked.use() == "EKEYEXPIRED"


def test_a_license_does_not_begin_by_a_clock_turned_forward(clocked: Clocked) -> None:
    clocked.license(starts_in_s=HOUR_S, expires_in_s=2 * HOUR_S)
    assert clocked.use() == "EKEYEXPIRED"
    clocked.turn(HOUR_S + 60)
    clocked.restart()
    assert clocked.use() == "EKEYEXPIRED"
    assert clocked.agent.count(verdict="deny", reason="not_yet_valid", license="one") == 2


def test_a_reboot_with_the_clock_turned_back_gains_nothing(clocked: Clocked) -> None:
    clocked.license(expires_in_s=HOUR_S)
    assert clocked.use() == ""

    clocked.reboot(time.time() + 2 * HOUR_S)  # that late it was when the host went down

    assert abs(clocked.ahead_s() - 2 * HOUR_S) < SLACK_S
    assert clocked.use() == "EKEYEXPIRED"
    assert clocked.probes.once(clocked.probes.cgroups.unlicensed) == "ENOKEY"


def test_a_reboot_after_hours_off_goes_on_from_the_wall_clock(clocked: Clocked) -> None:
    """The license ends by what the wall clock says, but begins only by what is proven."""
    clocked.license("begun", starts_in_s=-30, expires_in_s=HOUR_S)
    clocked.reboot(time.time() - 5 * HOUR_S)

    assert abs(clocked.ahead_s()) < SLACK_S
    # Signed a minute ago, so it is at least then; that the half minute since is true, nobody says.
    assert clocked.use() == "EKEYEXPIRED"
    assert clocked.agent.count(verdict="deny", reason="not_yet_valid", license="begun") == 1
    clocked.turn(0, synchronized=True)
    eventually(lambda: clocked.use() == "", "a synchronised clock proves it")


def test_an_older_generation_is_a_replay(clocked: Clocked) -> None:
    agent = clocked.agent
    old = agent.token("one", ["probe", "offer"], expires_in_s=HOUR_S)
    clocked.license(expires_in_s=HOUR_S)  # the next generation
    assert clocked.use() == ""

    with pytest.raises(LocalError) as refused:
        agent.call("license.add", text=old)
    assert "generation" in str(refused.value)
    assert clocked.use() == ""

    # Dropped into the folder in place of the newer one, over a restart and a reboot.
    agent.stop()
    for path in (agent.config / "licenses").iterdir():
        path.unlink()
    (agent.config / "licenses" / "old.lic").write_text(old)
    for start in (clocked.start, lambda: clocked.reboot(time.time())):
        start()
        # Its binding went with it, or it is named as gone: either way nobody is let in.
        assert clocked.use() in {"ENOKEY", "EKEYREVOKED"}
        (row,) = agent.call("status")["refused_files"]
        assert row["file"] == "old.lic"
        assert "generation" in row["detail"]
        assert agent.call("status")["state"] == "degraded"
