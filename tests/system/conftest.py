# SPDX-License-Identifier: Apache-2.0
"""Scenes: a real agent with its command line, and something to reach."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from tests.kernel.harness.agent import AgentUnderTest
from tests.system.harness.controlplane import ControlPlane, Host
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


@pytest.fixture
def make_plane() -> Iterator[Callable[..., ControlPlane]]:
    """Makes control planes with keys that serve; all are taken away at the test's end."""
    with ExitStack() as stack:

        def make(*options: str, **more: Any) -> ControlPlane:
            made = stack.enter_context(ControlPlane(*options, **more))
            if more.get("replica_of") is None:
                made.make_keys()
            made.start()
            return made

        yield make


@pytest.fixture
def plane(make_plane: Callable[..., ControlPlane]) -> ControlPlane:
    """A control plane of the test's own."""
    return make_plane()


@pytest.fixture
def make_host(plane: ControlPlane) -> Iterator[Callable[..., Host]]:
    """Makes running hosts of `plane`, not enrolled; all are taken away at the test's end."""
    with ExitStack() as stack:

        def make(*, of: ControlPlane | None = None, **options: Any) -> Host:
            settings = "report_interval_s = 1\n" + options.pop("settings", "")
            agent = AgentUnderTest(settings=settings, **options)
            found = stack.enter_context(Host(of or plane, agent))
            found.agent.start()
            return found

        yield make


@pytest.fixture
def host(make_host: Callable[..., Host]) -> Host:
    """A host that joined, with "db" licensed to HOLDER by the control plane."""
    found = make_host()
    found.enroll()
    found.licensed()
    return found
