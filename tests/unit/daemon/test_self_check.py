# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from licagent.daemon import self_check
from licagent.daemon.kernel_side import HookReport
from licagent.daemon.self_check import SelfCheck
from licagent.host.measurable import FRESH_NS
from licagent.store.statedir import StateDir


@pytest.fixture
def state(tmp_path: Path) -> Iterator[StateDir]:
    with StateDir(tmp_path / "state") as opened:
        yield opened


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only file of a made-up agent."""
    folder = tmp_path / "site/agent"
    folder.mkdir(parents=True)
    (folder / "main.py").write_text("good")
    monkeypatch.setattr(self_check, "own_folders", lambda: (folder,))
    return folder / "main.py"


def hook(name: str, link_id: int | None, program_id: int = 7) -> HookReport:
    return HookReport(name, link_id is not None, "prebuilt", "", link_id, program_id)


def begun(state: StateDir, *hooks: HookReport) -> SelfCheck:
    found = SelfCheck(state)
    found.begin(lambda: hooks)
    return found


def rewrite(program: Path, text: str) -> None:
    """As long as before: only its change time moves, and that in the clock's ticks."""
    time.sleep(2 * FRESH_NS / 1e9)
    program.write_text(text)


def test_before_it_has_begun_nothing_is_known(state: StateDir) -> None:
    assert SelfCheck(state).is_whole() is None


def test_an_altered_file_stays_one_over_restarts(state: StateDir, program: Path) -> None:
    check = begun(state)
    assert check.is_whole() is True
    rewrite(program, "evil")
    assert check.is_whole() is False
    assert any("main.py" in problem for problem in check.problems)
    assert begun(state).is_whole() is False, "the list of the first start counts"
    rewrite(program, "good")
    assert check.is_whole() is True
    assert check.problems == ()


def test_another_version_has_a_list_of_its_own(
    state: StateDir, program: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert begun(state).is_whole()
    program.write_text("better")
    monkeypatch.setattr(self_check, "VERSION", "9.9")
    assert begun(state).is_whole() is True


@pytest.mark.parametrize(
    "after",
    [(), (hook("bind4", 2),), (hook("bind4", 1, program_id=8),), (hook("bind4", None),)],
    ids=["gone", "another link", "another program", "detached"],
)
def test_programs_are_those_of_the_start(
    state: StateDir,
    program: Path,
    monkeypatch: pytest.MonkeyPatch,
    after: tuple[HookReport, ...],
) -> None:
    assert program.exists()
    hooks: tuple[HookReport, ...] = (hook("bind4", 1), hook("other", None))
    check = SelfCheck(state)
    check.begin(lambda: hooks)
    now_ns = self_check.boottime_ns()
    assert check.is_whole() is True
    before, hooks = hooks, after
    assert check.is_whole() is True, "the kernel is not asked every time"
    monkeypatch.setattr(self_check, "boottime_ns", lambda: now_ns + 60 * 10**9)
    assert check.is_whole() is False
    assert any("bind4" in problem for problem in check.problems)
    hooks = before
    monkeypatch.setattr(self_check, "boottime_ns", lambda: now_ns + 120 * 10**9)
    assert check.is_whole() is True
