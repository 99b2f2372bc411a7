# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the meter's tests; a test module asks for them by `pytest_plugins`."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

import pytest
from tests.kernel.harness.accuracy import ALL, Accuracy, Inaccurate
from tests.kernel.harness.cgroups import CgroupTree
from tests.kernel.harness.dial import program_folder
from tests.kernel.harness.meter import MeterUnderTest
from tests.kernel.harness.work import Worker


@pytest.fixture(scope="session")
def accuracy() -> Iterator[Accuracy]:
    """Where tests put what they compared."""
    yield ALL
    path = os.environ.get("LICAGENT_TEST_ACCURACY")
    if path:
        with Path(path).open("a", encoding="utf-8") as lines:
            lines.writelines(json.dumps(asdict(row)) + "\n" for row in ALL.rows)


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Measure once more where the mark `measured_again` allows it; see pyproject.toml.

    In a cgroup of its own: the books of the first one hold what was done there before.
    """
    if pyfuncitem.get_closest_marker("measured_again") is None:
        return None
    fixtures = pyfuncitem._fixtureinfo.argnames
    arguments = {name: pyfuncitem.funcargs[name] for name in fixtures}
    noted = len(ALL.rows)
    try:
        pyfuncitem.obj(**arguments)
    except Inaccurate as error:
        del ALL.rows[noted:]
        sys.stderr.write(f"measured again: {error}\n")
        with ExitStack() as stack:
            if "place" in arguments:
                tree = stack.enter_context(CgroupTree(arguments["place"]))
                arguments["place"] = tree.root
            pyfuncitem.obj(**arguments)
    return True


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Every comparison, in the order in which they were made."""
    if not ALL.rows:
        return
    terminalreporter.section("measured against references")
    for row in ALL.rows:
        terminalreporter.write_line(f"{'' if row.holds else 'OUT OF TOLERANCE '}{row}")


@pytest.fixture(scope="session")
def metered() -> Iterator[MeterUnderTest]:
    """One meter for all tests: they use cgroups of their own."""
    with MeterUnderTest() as found:
        yield found


@pytest.fixture
def host_meter() -> Iterator[MeterUnderTest]:
    """A meter of its own that counts every process of the host."""
    with MeterUnderTest() as found:
        found.count_the_host()
        yield found


@pytest.fixture
def place(metered: MeterUnderTest) -> Iterator[Path]:
    """A cgroup of this test's own, in which everything is measured."""
    with CgroupTree(metered.tree.root) as tree:
        yield tree.root


@pytest.fixture(scope="session")
def worker() -> Iterator[Worker]:
    """The program that works."""
    with program_folder() as folder:
        yield Worker(folder)
