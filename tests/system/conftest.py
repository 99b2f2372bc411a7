# SPDX-License-Identifier: Apache-2.0
"""Scenes: a real agent with its command line, and something to reach."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from tests.kernel.harness.agent import AgentUnderTest
from tests.system.harness.scene import Scene


@pytest.fixture(scope="module")
def scene() -> Iterator[Scene]:
    """The module's scene: a running agent that enforces, with "db" licensed to HOLDER."""
    with Scene(AgentUnderTest()) as made:
        made.agent.start()
        made.ready()
        yield made


@pytest.fixture
def make_scene() -> Iterator[Callable[..., Scene]]:
    """Makes scenes of a test's own, not started; all are taken away at its end."""
    with ExitStack() as stack:

        def make(**options: Any) -> Scene:
            return stack.enter_context(Scene(AgentUnderTest(**options)))

        yield make
