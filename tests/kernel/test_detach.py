# SPDX-License-Identifier: Apache-2.0
"""`licagent detach` removes all of ours and nothing of others'."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.kernel.harness.agent import AgentUnderTest
from tests.kernel.harness.foreign import Foreign, attached, program_exists
from tests.kernel.harness.probes import Probes, ask, eventually

from licagent.cli.exits import DETACHED
from licagent.kernel.hooks import HOOKS
from licagent.kernel.libbpf import AttachType

HOOKED = [hook.attach_type for hook in HOOKS if hook.attach_type is not None]


def detach(agent: AgentUnderTest) -> subprocess.CompletedProcess[str]:
    """`licagent detach`, by root at a shell."""
    return subprocess.run(
        [str(Path(sys.executable).with_name("licagent")), "detach", "--yes"],
        env=agent.environment,
        capture_output=True,
        check=False,
        timeout=60,
        text=True,
    )


def ours(agent: AgentUnderTest) -> list[int]:
    """Ids of all programs that the agent has in the kernel."""
    rows = agent.call("status")["kernel"]["programs"]
    return [row["program_id"] for row in rows if row["program_id"]]


@pytest.mark.parametrize("is_killed", [False, True], ids=["daemon", "no-daemon"])
def test_detach_removes_ours_and_nothing_of_others(
    make_agent: Callable[..., AgentUnderTest], is_killed: bool
) -> None:
    agent = make_agent()
    with Probes(agent.cgroup) as probes, contextlib.ExitStack() as pinned:
        agent.start()
        agent.issue("one", ["probe", "offer"])
        agent.policy(probes.policy("one"))
        others = [
            Foreign.attach(agent.cgroup, kind, agent.bpffs / f"somebody_{kind.name.lower()}")
            for kind in (AttachType.CGROUP_INET_EGRESS, AttachType.CGROUP_INET_INGRESS)
        ]
        for other in others:
            pinned.callback(other.pin.unlink, missing_ok=True)
        streams = probes.many(probes.cgroups.licensed)
        assert probes.once(probes.cgroups.unlicensed) == "ENOKEY"
        programs = ours(agent)
        assert len(programs) == len(HOOKS)
        if is_killed:
            agent.kill()

        done = detach(agent)

        assert done.returncode == 0, done
        if agent.process is not None:
            assert agent.process.wait(60) == 9, "the daemon ends: it has nothing left to do"
            agent.process = None
        # Nothing of ours is left on the cgroup, in the kernel, or in the file system.
        foreign = {number for other in others for number in (other.legacy_id, other.link_id)}
        for kind in HOOKED:
            assert set(attached(agent.cgroup, kind)) <= foreign
        eventually(
            lambda: not any(program_exists(number) for number in programs), "programs are freed"
        )
        pins = {path.name for path in agent.bpffs.iterdir() if path.suffix != ".debug"}  # kernel's
        assert pins == {other.pin.name for other in others}
        for other in others:
            assert other.is_untouched()

        # The host is as it was without us.
        assert probes.once(probes.cgroups.unlicensed) == ""
        assert ask(streams)["alive"] == 8
        # Again: nothing to do, and no harm.
        again = detach(agent)
        assert again.returncode == 0, again
        assert all(other.is_untouched() for other in others)

        # What starts again enforces again, beside the others.
        agent.start()
        assert probes.once(probes.cgroups.unlicensed) == "ENOKEY"
        assert ask(streams)["alive"] == 8
        assert all(other.is_untouched() for other in others)


def test_detach_finds_its_pins_by_the_last_good_settings(
    make_agent: Callable[..., AgentUnderTest],
) -> None:
    agent = make_agent()
    with Probes(agent.cgroup) as probes:
        agent.start()
        agent.issue("one", ["probe", "offer"])
        agent.policy(probes.policy("one"))
        agent.kill()
        with (agent.config / "agent.toml").open("a") as file:
            file.write("mood = 1\n")
        assert probes.once(probes.cgroups.unlicensed) == "ENOKEY"

        done = detach(agent)

        assert done.returncode == 0, done
        assert "mood" in done.stderr, "and says what is wrong with those that are written"
        assert probes.once(probes.cgroups.unlicensed) == ""


def test_the_detachment_is_on_record(make_agent: Callable[..., AgentUnderTest]) -> None:
    agent = make_agent()
    agent.start()
    assert detach(agent).returncode == 0
    assert agent.process is not None
    agent.process.wait(60)
    agent.process = None
    agent.start()
    assert [event for event in agent.events() if event["kind"] == "detach"]


@pytest.mark.parametrize("how", ["hangs", "fails"])
def test_a_disk_that_is_unwell_does_not_undo_it(
    make_agent: Callable[..., AgentUnderTest], how: str
) -> None:
    """The service manager starts again whatever ends with another status, or has to be killed."""
    agent = make_agent()
    agent.write_config()
    agent.spawn(
        "tests.kernel.harness.hanging_end",
        LICAGENT_TEST_PINS=str(agent.bpffs),
        LICAGENT_TEST_HOW=how,
    )
    agent.wait_ready()
    assert detach(agent).returncode == 0
    assert agent.process is not None
    assert agent.process.wait(60) == DETACHED, agent.log()
    unclosed = "not everything could be closed" if how == "hangs" else "not closed in order"
    assert unclosed in agent.log()
    agent.process = None
