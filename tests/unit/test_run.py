# SPDX-License-Identifier: Apache-2.0
"""The runner of all tests: nothing is left out, and what breaks off is no success."""

from __future__ import annotations

import os
import queue
import subprocess
from pathlib import Path

import pytest
from tests.run import NO_TESTS, ROOT, Phase, Request, Run, phases


@pytest.fixture
def tally(tmp_path: Path) -> Path:
    path = tmp_path / "tally"
    path.write_text("")
    return path


def test_lanes_run_every_test_once(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LANES", "LOADER", "VM"):
        monkeypatch.delenv(f"LICAGENT_TEST_{name}", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    planned, at_a_time = phases(Request())
    assert at_a_time == 2
    assert sorted((phase.folder, phase.loader) for phase in planned) == [
        ("tests/kernel", "bcc"),
        ("tests/kernel", "prebuilt"),
        ("tests/system", ""),
        ("tests/system", ""),
        ("tests/unit", ""),
    ]
    parts = [phase.files for phase in planned if phase.files]
    assert [len(part) > 10 for part in parts] == [True, True]
    files = sorted(
        str(path.relative_to(ROOT)) for path in (ROOT / "tests/system").rglob("test_*.py")
    )
    assert sorted(file for part in parts for file in part) == files


def test_machines_are_added_where_they_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LICAGENT_TEST_LANES", raising=False)
    monkeypatch.delenv("LICAGENT_TEST_LOADER", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    for wanted, is_there in (("1", True), ("", False)):
        monkeypatch.setenv("LICAGENT_TEST_VM", wanted)
        for request in (Request(), Request(["tests/unit"])):
            planned, at_a_time = phases(request)
            found = [phase for phase in planned if phase.command]
            assert bool(found) == (is_there and not request.paths)
            assert at_a_time == (1 if request.paths else 2 + is_there)
    monkeypatch.setenv("LICAGENT_TEST_VM", "1")
    monkeypatch.setenv("LICAGENT_TEST_LANES", "1")
    planned, at_a_time = phases(Request())
    assert (planned[-1].folder, at_a_time) == ("tests/vm", 1)


def test_a_phase_may_be_a_command_and_its_failure_counts(tally: Path) -> None:
    run = Run(Request(), tally)
    run.phase(Phase("machines", "tests/vm", command=("sh", "-c", "exit 3")), is_alone=False)
    assert run.status() == 3


@pytest.mark.parametrize("request_", [Request(["tests/unit"]), Request([], ["-x"], True)])
def test_what_is_asked_for_by_name_runs_one_after_the_other(request_: Request) -> None:
    assert phases(request_)[1] == 1


def test_a_lane_that_cannot_go_on_is_a_failure(
    tally: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def fail(*_arguments: object, **_options: object) -> None:
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(subprocess, "Popen", fail)
    found = Run(Request(), tally)
    waiting: queue.SimpleQueue[Phase] = queue.SimpleQueue()
    for name in ("unit", "kernel"):
        waiting.put(Phase(name, f"tests/{name}"))
    found.guarded_lane(waiting)
    assert found.status() not in {0, NO_TESTS}
    assert "a phase broke off" in found.closing_line(1)
    told = capfd.readouterr().err
    assert "Cannot allocate memory" in told
    assert "unit broke off" in told
    assert "kernel broke off" in told


def test_a_phase_that_fails_is_a_failure_of_all(tally: Path) -> None:
    found = Run(Request(), tally)
    found._statuses = [0, 1, 0]
    assert found.status() == 1
    found._statuses = [0, NO_TESTS]
    assert found.status() == NO_TESTS, "a folder whose tests are gone is no success"
    found._statuses = []
    assert found.status() == NO_TESTS
