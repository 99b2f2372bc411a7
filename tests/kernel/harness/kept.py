# SPDX-License-Identifier: Apache-2.0
"""One agent for many tests that each want a new one; a test module asks by `pytest_plugins`.

What costs is loading the programs (seconds, by bcc): they stay. State, licenses, policy and
counters go, and so do the numbers of licenses, so that no test finds what another has left.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest
from tests.kernel.harness.agent import AgentUnderTest

from licagent.kernel.bpffs import PinFolder
from licagent.kernel.maps import Map


@pytest.fixture(scope="session")
def kept_agent() -> Iterator[AgentUnderTest]:
    """Ask for `fresh_agent`."""
    found = AgentUnderTest()
    try:
        found.start()
        yield found
    finally:
        found.close()


@pytest.fixture
def fresh_agent(kept_agent: AgentUnderTest) -> AgentUnderTest:
    """As if it had never run, and not running; set its mode or settings, then start it."""
    agent = kept_agent
    agent.kill()
    shutil.rmtree(agent.folder / "state", ignore_errors=True)
    for folder in ("licenses", "policy.d"):
        for path in (agent.config / folder).iterdir():
            path.unlink()
    agent._numbered.clear()
    agent._generations.clear()
    agent.mode, agent.settings = "enforce", ""
    counters = Map(PinFolder(agent.bpffs).maps / "counters")
    try:
        counters.delete_many(list(counters.keys()))
    finally:
        counters.close()
    return agent
