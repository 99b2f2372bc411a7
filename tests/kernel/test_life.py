# SPDX-License-Identifier: Apache-2.0
"""The daemon may die, start again and change its programs: at no moment is there a gap.

Probes run throughout (harness/probe_life.py): a licensed and an unlicensed one that connect and
bind without a pause, and licensed streams that stay open. What they meet is the test's answer.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest
from tests.kernel.harness.agent import AgentUnderTest
from tests.kernel.harness.probes import Probes, ask, eventually
from tests.kernel.harness.programs import REPOSITORY

from licagent.domain.reason import Reason
from licagent.kernel.bpffs import PinFolder
from licagent.kernel.enforcement_structs import Control
from licagent.kernel.layout import SCHEMA
from licagent.kernel.licenses import LicenseTable
from licagent.kernel.maps import MappedArray

LICENSE: Final = "life"
IS_CI: Final = "CI" in os.environ
RESTARTS: Final = {"prebuilt": 40 if IS_CI else 1000, "bcc": 5 if IS_CI else 200}
"""Lives by loader: a restart on unchanged programs compiles nothing, so both go the same way. They
take CPU time that other lanes of a CI's run need: a thousand are for a desk."""
SWAPS: Final = 150 if IS_CI else 1000
BUSY: Final = 8
"""Exit status for "another daemon has the state folder" (docs/reference)."""


@pytest.fixture
def probes(
    make_agent: Callable[..., AgentUnderTest],
) -> Iterator[tuple[AgentUnderTest, Probes]]:
    """An agent of the test's own, with its policy in force, and probes at work."""
    agent = make_agent()
    with Probes(agent.cgroup) as found:
        agent.start()
        agent.issue(LICENSE, ["probe", "offer"])
        agent.policy(found.policy(LICENSE))
        found.start()
        yield agent, found


def programs(agent: AgentUnderTest) -> dict[str, int]:
    """Kernel ids of the attached programs by hook."""
    rows = agent.call("status")["kernel"]["programs"]
    return {row["hook"]: row["program_id"] for row in rows if row["attached"]}


def test_the_probes_notice_a_gap(probes: tuple[AgentUnderTest, Probes]) -> None:
    """What the other tests rest on: the kernel's tables are opened and closed for a moment."""
    agent, running = probes
    control = MappedArray(PinFolder(agent.bpffs).maps / "control", Control)
    try:
        word = control[0].generation
        control[0].generation = 0
        running.wait_for_rounds()
        control[0].generation = word
    finally:
        control.close()
    with pytest.raises(AssertionError, match="denied uses passed"):
        running.check()


def test_the_probes_notice_a_broken_license(probes: tuple[AgentUnderTest, Probes]) -> None:
    agent, running = probes
    table = LicenseTable(PinFolder(agent.bpffs))
    try:
        (number,) = table.numbers()
        held = table.get(number)
        assert held is not None
        table.set(number, Reason.CONDITION, held.not_before_ns, held.not_after_ns)
        calls = ask(running.licensed)["passed"]["tcp"]
        eventually(lambda: ask(running.licensed)["refused"], "the probe meets it")
        table.set(number, Reason.LICENSED, held.not_before_ns, held.not_after_ns)
        eventually(lambda: ask(running.licensed)["passed"]["tcp"] > calls + 4, "it goes on")
    finally:
        table.close()
    with pytest.raises(AssertionError, match=r"licensed uses failed|'broken': '"):
        running.check()


def test_kill_9_and_restart_leave_no_gap(probes: tuple[AgentUnderTest, Probes]) -> None:
    agent, running = probes
    before = programs(agent)
    for _ in range(5):
        agent.kill()
        running.wait_for_rounds()
        agent.start()
        running.wait_for_rounds()
    assert programs(agent) == before, "an unchanged program is not loaded again"
    running.check()
    assert agent.count(verdict="cut") == 0


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_restart_after_restart_leaves_no_gap(probes: tuple[AgentUnderTest, Probes]) -> None:
    agent, running = probes
    before = programs(agent)
    agent.kill()
    restarts = RESTARTS[agent.loader]

    done = subprocess.run(
        [sys.executable, "-m", "tests.kernel.harness.lives", str(restarts)],
        cwd=REPOSITORY,
        env=agent.environment,
        capture_output=True,
        check=True,
        text=True,
    )

    lived = json.loads(done.stdout)
    assert lived["lives"] == restarts
    assert lived["problems"] == [], f"{lived['problems']}\n{done.stderr[-4000:]}"
    running.check()
    agent.start()
    assert programs(agent) == before
    running.check()
    assert agent.count(verdict="cut") == 0


def changed_sources(folder: Path) -> Path:
    """The BPF sources laid out for the unlikely case: other programs, the same tables."""
    sources = folder / "bpf"
    shutil.copytree(REPOSITORY / "bpf", sources)
    core = sources / "core.h"
    likely, unlikely = "__builtin_expect(!!(x), 1)", "__builtin_expect(!!(x), 0)"
    text = core.read_text()
    assert text.count(likely) == 1
    assert text.count(unlikely) == 1
    core.write_text(text.replace(likely, unlikely))
    return sources


@pytest.mark.parametrize(
    "is_killed",
    [
        pytest.param(True, id="kill"),
        # How a daemon ends is no matter of its loader, and each of bcc compiles for seconds.
        pytest.param(False, id="stop", marks=pytest.mark.under_one_loader),
    ],
)
def test_an_upgrade_to_changed_programs_leaves_no_gap(
    probes: tuple[AgentUnderTest, Probes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    is_killed: bool,
) -> None:
    agent, running = probes
    sources = changed_sources(tmp_path)
    objects = tmp_path / "objects"
    subprocess.run(["make", "-s", "-C", str(sources), f"OUTPUT={objects}"], check=True)
    before = programs(agent)
    end = agent.kill if is_killed else agent.stop

    seen = [before]
    for folder in (objects, None, objects):
        end()
        if folder is None:
            monkeypatch.delenv("LICAGENT_BPF_OBJECTS")
            monkeypatch.delenv("LICAGENT_BPF_SOURCES")
        else:
            monkeypatch.setenv("LICAGENT_BPF_OBJECTS", str(folder))
            monkeypatch.setenv("LICAGENT_BPF_SOURCES", str(sources))
        agent.start()
        running.check()
        now = programs(agent)
        assert now.keys() == before.keys()
        for hook, program in now.items():
            assert program not in {old[hook] for old in seen}, f"{hook} was not replaced"
        seen.append(now)
    assert agent.count(verdict="cut") == 0


def test_an_upgrade_to_another_schema_of_the_tables_leaves_no_gap(
    probes: tuple[AgentUnderTest, Probes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A newer licagent whose pinned maps are others: its programs start on tables that are full."""
    agent, running = probes
    sources = changed_sources(tmp_path)
    header, package = sources / "licagent.h", tmp_path / "agent" / "licagent"
    # Others that run meanwhile write and rename files in there.
    without_caches = shutil.ignore_patterns("__pycache__")
    shutil.copytree(REPOSITORY / "agent" / "licagent", package, ignore=without_caches)
    layout = package / "kernel" / "layout.py"
    for file, old, new in (
        (header, f"LIC_SCHEMA {SCHEMA} ", f"LIC_SCHEMA {SCHEMA + 1} "),
        (layout, f"SCHEMA: Final = {SCHEMA}\n", f"SCHEMA: Final = {SCHEMA + 1}\n"),
    ):
        assert old in file.read_text()
        file.write_text(file.read_text().replace(old, new))
    objects = tmp_path / "objects"
    subprocess.run(["make", "-s", "-C", str(sources), f"OUTPUT={objects}"], check=True)

    for _ in ("upgrade", "downgrade", "upgrade"):
        agent.kill()
        if "LICAGENT_BPF_OBJECTS" in os.environ:
            monkeypatch.undo()
        else:
            monkeypatch.setenv("LICAGENT_BPF_OBJECTS", str(objects))
            monkeypatch.setenv("LICAGENT_BPF_SOURCES", str(sources))
            monkeypatch.setenv("PYTHONPATH", f"{package.parent}", prepend=":")
        agent.start()
        running.check()
    maps = [path.name for path in agent.bpffs.glob("maps-v*")]
    assert maps == [f"maps-v{SCHEMA + 1}"], "what was migrated from is gone"
    assert agent.count(verdict="cut") == 0


@pytest.mark.under_one_loader
def test_a_switch_between_loaders_leaves_no_gap(probes: tuple[AgentUnderTest, Probes]) -> None:
    agent, running = probes
    others = ("bcc", "prebuilt") if agent.loader == "prebuilt" else ("prebuilt", "bcc")
    for loader in (*others, others[0]):
        before = programs(agent)
        agent.kill()
        agent.loader = loader
        agent.start()
        assert agent.call("status")["kernel"]["loader"] == loader
        assert programs(agent)["cgroup_egress"] != before["cgroup_egress"]
        running.check()
    assert agent.count(verdict="cut") == 0


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_policies_are_switched_at_once(probes: tuple[AgentUnderTest, Probes]) -> None:
    """Both policies allow the one probe and refuse the other; by other rules, each time."""
    agent, running = probes
    agent.issue("other", ["probe", "offer", "elsewhere"])
    more = (
        '\n[[resource]]\nname = "elsewhere"\nkind = "network"\nmode = "enforce"\n'
        'destinations = [{ cidr = "10.1.0.0/16", ports = ["1-999"] }]\n'
    )
    policies = (
        running.policy(LICENSE),
        running.policy(
            "other",
            selectors=("unix:uid:0", "cgroup:path:/licensed"),
            networks=("127.0.0.0/8", "::/64"),
            extra=more,
        ),
    )
    first = agent.policy(policies[1])["generation"]

    for number in range(SWAPS):
        result = agent.policy(policies[number % 2])
        assert result["changed"]
    running.check()

    assert result["generation"] == first + SWAPS
    assert agent.count(verdict="cut") == 0
    assert agent.count(verdict="allow", license="other") > 0


@pytest.mark.under_one_loader
def test_a_second_daemon_on_one_state_folder_is_refused(
    probes: tuple[AgentUnderTest, Probes],
) -> None:
    agent, running = probes
    second = subprocess.run(
        [sys.executable, "-m", "licagent.daemon.main"],
        env=agent.environment,
        capture_output=True,
        timeout=60,
        check=False,
        text=True,
    )
    assert second.returncode == BUSY, second.stderr
    assert str(agent.pid) in second.stderr, "it says who has the folder"
    assert agent.call("status")["pid"] == agent.pid
    running.check()
