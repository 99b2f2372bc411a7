# SPDX-License-Identifier: Apache-2.0
"""Machines for the tests: each module has one of its own, back in a saved state in seconds."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from tests.vm import states
from tests.vm.machine import Hardware, Machine

MODULE_S = 1200
"""For a hung test to end; emulation on a busy machine takes what it takes."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests here may take longer than those of one process, unless they say for themselves."""
    for item in items:
        if "/vm/" in str(item.path) and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(MODULE_S))


@pytest.fixture(scope="session")
def hardware() -> Hardware:
    """What the machines are: `./dev vm --kernel` chooses the kernel."""
    return Hardware(kernel=os.environ.get("LICAGENT_VM_KERNEL", "6.1"))


@pytest.fixture(scope="module")
def installed(hardware: Hardware, request: pytest.FixtureRequest) -> Iterator[Machine]:
    """A running machine with licagent and licplane as their packages bring them.

    Within a module, `installed.restore("installed")` brings it back.
    """
    with states.installed(hardware) as machine:
        yield machine
        _tell(request, machine)


@pytest.fixture(scope="module")
def fresh(hardware: Hardware, request: pytest.FixtureRequest) -> Iterator[Machine]:
    """A running machine without any of our packages."""
    with states.fresh(hardware) as machine:
        yield machine
        _tell(request, machine)


def _tell(request: pytest.FixtureRequest, machine: Machine) -> None:
    """After a failure, what stood on the machine's console."""
    if request.session.testsfailed:
        print(f"console of the last machine:\n{machine.console}")
