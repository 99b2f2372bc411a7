# SPDX-License-Identifier: Apache-2.0
"""What the cases share: the places, agents of several sizes, and how long to measure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tests.bench import paired, workload
from tests.bench.agent import AgentUnderTest
from tests.bench.paired import Variant

if TYPE_CHECKING:
    from pathlib import Path

    from tests.bench.places import Places


@dataclass(slots=True)
class Bench:
    """One run of the bench. Agents are started when a case first asks for them, and stay."""

    places: Places
    quick: bool
    loader: str = "auto"
    bindings: int = 100_000
    networks: int = 10_000
    _agents: dict[str, tuple[AgentUnderTest, Path]] = field(default_factory=dict)
    _failures: dict[str, str] = field(default_factory=dict)
    _nft_checked: bool = False

    def rounds(self, full: int) -> str:
        """Number of rounds for the probe."""
        return str(max(20, full // 5) if self.quick else full)

    def agent(self, name: str, *, bindings: int, networks: int) -> tuple[AgentUnderTest, Path]:
        """A running agent with a policy of that size, and a cgroup that it enforces."""
        if name in self._failures:
            raise RuntimeError(f"the agent {name!r} did not start: {self._failures[name]}")
        if name not in self._agents:
            agent, work = self.new_agent(name, bindings=bindings, networks=networks)
            try:
                agent.start()
                paired.check_refused(Variant(name, work, self.places.plain.path))
            except Exception as error:
                agent.stop()
                self._failures[name] = str(error)
                raise
            self._agents[name] = (agent, work)
        if not self._agents[name][0].is_running:
            raise RuntimeError(f"the daemon {name!r} died:\n{self._agents[name][0].log}")
        return self._agents[name]

    def new_agent(
        self, name: str, *, bindings: int, networks: int, loader: str = ""
    ) -> tuple[AgentUnderTest, Path]:
        """An agent that is not started yet. The caller stops it and drops its bpffs."""
        work = self.places.make_cgroup(f"{name}/work")
        bpffs = self.places.make_bpffs(f"{name}.bpf")
        folder = self.places.folder / name
        folder.mkdir()
        agent = AgentUnderTest(folder, work.parent, bpffs, loader or self.loader)
        workload.load(agent, bindings=bindings, networks=networks)
        return agent, work

    def large(self) -> tuple[AgentUnderTest, Path]:
        """The agent with 100,000 bindings and 10,000 networks."""
        return self.agent("large", bindings=self.bindings, networks=self.networks)

    def small(self) -> tuple[AgentUnderTest, Path]:
        """The agent with 10 of each."""
        return self.agent("small", bindings=10, networks=10)

    def thousand(self) -> tuple[AgentUnderTest, Path]:
        """The agent with 1,000 bindings."""
        return self.agent("thousand", bindings=1000, networks=100)

    def variant(self, name: str, address: str = "") -> Variant:
        """bare, again (bare once more), nft, large, small."""
        netns = self.places.nft.path if name == "nft" else self.places.plain.path
        if name in {"bare", "again", "nft"}:
            variant = Variant(name, self.places.bare, netns, address)
            if name == "nft" and not self._nft_checked:
                paired.check_refused(variant)
                self._nft_checked = True
            return variant
        _, work = {"large": self.large, "small": self.small, "thousand": self.thousand}[name]()
        return Variant(name, work, netns, address)

    def close(self) -> None:
        """Stop the agents."""
        for agent, _ in self._agents.values():
            agent.stop()
