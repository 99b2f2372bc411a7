# SPDX-License-Identifier: Apache-2.0
"""The agent inside the test's own process: what a control plane or the loop would do to it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from tests.kernel.harness.agent import AgentUnderTest

from licagent.daemon.agent import Agent
from licagent.daemon.decisions import Record
from licagent.domain.config_reader import read_config
from licagent.kernel.licenses import Slot


@dataclass(slots=True)
class Inside:
    """A started agent with nothing that runs by itself."""

    agent: Agent
    records: list[Record] = field(default_factory=list)

    def told(self, kind: str) -> list[Record]:
        """Records of a kind so far."""
        return [record for record in self.records if record["kind"] == kind]

    def slot(self, number: int) -> Slot:
        """What the kernel holds for a license."""
        found = self.agent.kernel.licenses.get(number)
        assert found is not None, f"license {number} has no slot"
        return found

    def count(self, **wanted: Any) -> int:
        """Sum of the kernel's exact counters with these values (verdict and reason by name)."""
        return sum(
            each.count
            for each in self.agent.kernel.counters.read()
            if all(
                getattr(each, key) == value or getattr(getattr(each, key), "name", "") == value
                for key, value in wanted.items()
            )
        )


@contextlib.contextmanager
def inside(outer: AgentUnderTest) -> Iterator[Inside]:
    """An agent with the files and settings of `outer`, whose daemon must not run."""
    outer.write_config()
    records: list[Record] = []
    agent = Agent(read_config(outer.environment).config, notify=records.append)
    try:
        agent.start()
        yield Inside(agent, records)
    finally:
        agent.close()
