# SPDX-License-Identifier: Apache-2.0
"""The agent that kernel tests share, and fresh ones for tests that break it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any, Final

import pytest
from tests.kernel.harness.agent import AgentUnderTest

UNDER_ONE_LOADER: Final = frozenset(
    {
        "test_clock",
        "test_conditions",
        "test_control_apply",
        "test_detach",
        "test_event_source",
        "test_footprint",
        "test_hostile_identity",
        "test_hostile_measuring",
        "test_identity",
        "test_identity_cgroups",
        "test_identity_content",
        "test_identity_executables",
        "test_interface",
        "test_leases",
        "test_ledger_disk",
        "test_loader_alone",
        "test_loaders",
        "test_maps",
        "test_meter_cpu",
        "test_meter_daemon",
        "test_meter_fallback",
        "test_meter_io",
        "test_meter_lives",
        "test_migration",
        "test_policy_disk",
        "test_routes_bare",
        "test_tampering",
    }
)
"""What these show rests on the daemon, or on programs that libbpf loads under either loader, or
they choose the loader or have none. bcc compiles connect, bind, socket and packet only
(CORE_OBJECTS). Single tests of other files say so by the mark of that name."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Once is enough for them; `./dev test` runs the suite under each loader."""
    if os.environ.get("LICAGENT_TEST_LOADER") != "bcc":
        return
    once: list[pytest.Item] = []
    both: list[pytest.Item] = []
    for item in items:
        is_one = item.path.stem in UNDER_ONE_LOADER or item.get_closest_marker("under_one_loader")
        (once if is_one else both).append(item)
    if once:
        config.hook.pytest_deselected(items=once)
        items[:] = both


@pytest.fixture(scope="session")
def shared_agent() -> Iterator[AgentUnderTest]:
    found = AgentUnderTest()
    try:
        found.start()
        yield found
    finally:
        found.close()


@pytest.fixture
def agent(shared_agent: AgentUnderTest) -> AgentUnderTest:
    """The shared agent in enforce mode, running, whatever the test before left."""
    if shared_agent.process is None or shared_agent.process.poll() is not None:
        shared_agent.start()
    return shared_agent


@pytest.fixture
def make_agent() -> Iterator[Callable[..., AgentUnderTest]]:
    """Makes agents of a test's own; all are taken away at its end."""
    made: list[AgentUnderTest] = []

    def make(**options: Any) -> AgentUnderTest:
        found = AgentUnderTest(**options)
        made.append(found)
        return found

    yield make
    for found in made:
        found.close()
