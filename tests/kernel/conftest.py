# SPDX-License-Identifier: Apache-2.0
"""The agent that kernel tests share, and fresh ones for tests that break it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from tests.kernel.harness.agent import AgentUnderTest


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
