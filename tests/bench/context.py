# SPDX-License-Identifier: Apache-2.0
"""What the cases share: the places, agents of several sizes, and how long to measure."""

from __future__ import annotations

import contextlib
import shutil
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tests.bench import floor, paired, workload
from tests.bench.agent import AgentUnderTest
from tests.bench.paired import Variant
from tests.bench.places import CLIENT_UID

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
    churn_minutes: float = 2.0
    outage_hours: float = 1.0
    _agents: dict[str, tuple[AgentUnderTest, Path]] = field(default_factory=dict)
    _failures: dict[str, str] = field(default_factory=dict)
    _nft_checked: bool = False
    _floors: dict[str, Path] = field(default_factory=dict)
    _undo: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    def rounds(self, full: int) -> str:
        """Number of rounds for the probe."""
        return str(max(20, full // 5) if self.quick else full)

    def agent(
        self, name: str, *, bindings: int, networks: int, client: str = "uid"
    ) -> tuple[AgentUnderTest, Path]:
        """A running agent with a policy of that size, and a cgroup that it enforces."""
        if name in self._failures:
            raise RuntimeError(f"the agent {name!r} did not start: {self._failures[name]}")
        if name not in self._agents:
            agent, work = self.new_agent(name, bindings=bindings, networks=networks, client=client)
            try:
                agent.start()
                self._check_refused(name, work, client)
            except Exception as error:
                agent.stop()
                self._failures[name] = str(error)
                raise
            self._agents[name] = (agent, work)
        if not self._agents[name][0].is_running:
            raise RuntimeError(f"the daemon {name!r} died:\n{self._agents[name][0].log}")
        return self._agents[name]

    def new_agent(
        self,
        name: str,
        *,
        bindings: int,
        networks: int,
        loader: str = "",
        client: str = "uid",
    ) -> tuple[AgentUnderTest, Path]:
        """An agent that is not started yet. The caller stops it and drops its bpffs."""
        work = self.places.make_cgroup(f"{name}/work")
        bpffs = self.places.make_bpffs(f"{name}.bpf")
        folder = self.places.folder / name
        folder.mkdir()
        agent = AgentUnderTest(folder, work.parent, bpffs, loader or self.loader)
        workload.load(agent, bindings=bindings, networks=networks, client=client)
        return agent, work

    def _check_refused(self, name: str, work: Path, client: str) -> None:
        """Show that whoever the client's selector does not name is refused."""
        binary = paired.BINARY
        if client == "cgroup":  # the same program and user, from beside the cgroup
            work = self.places.make_cgroup(f"{name}/beside")
        if client == "path":  # a copy is another program
            binary = self.places.folder / "copied-probe"
            shutil.copy2(paired.BINARY, binary)
        paired.check_refused(
            Variant(name, work, self.places.plain.path),
            uid=CLIENT_UID if client in {"cgroup", "path"} else CLIENT_UID + 7,
            binary=binary,
        )

    def large(self) -> tuple[AgentUnderTest, Path]:
        """The agent with 100,000 bindings and 10,000 networks."""
        return self.agent("large", bindings=self.bindings, networks=self.networks)

    def small(self) -> tuple[AgentUnderTest, Path]:
        """The agent with 10 of each."""
        return self.agent("small", bindings=10, networks=10)

    def thousand(self) -> tuple[AgentUnderTest, Path]:
        """The agent with 1,000 bindings."""
        return self.agent("thousand", bindings=1000, networks=100)

    def by(self, client: str) -> tuple[AgentUnderTest, Path]:
        """The agent whose measured binding names the client's cgroup, or its program."""
        return self.agent(f"by-{client}", bindings=1000, networks=100, client=client)

    def floor(self, kind: str) -> Path:
        """A cgroup with programs that decide nothing; see `floor.KINDS`."""
        if kind not in self._floors:
            work = self.places.make_cgroup(f"{kind}/work")
            self._undo.enter_context(floor.attach(kind, work.parent, self.places.folder))
            self._floors[kind] = work
        return self._floors[kind]

    def variant(self, name: str, address: str = "") -> Variant:
        """bare, again (bare once more), nft, floor, tag, or an agent by its name."""
        netns = self.places.nft.path if name == "nft" else self.places.plain.path
        if name in {"bare", "again", "nft"}:
            variant = Variant(name, self.places.bare, netns, address)
            if name == "nft" and not self._nft_checked:
                paired.check_refused(variant)
                self._nft_checked = True
            return variant
        if name in floor.KINDS:
            return Variant(name, self.floor(name), netns, address)
        if name.startswith("by-"):
            _, work = self.by(name.removeprefix("by-"))
            return Variant(name, work, netns, address)
        _, work = {"large": self.large, "small": self.small, "thousand": self.thousand}[name]()
        return Variant(name, work, netns, address)

    def metered(self) -> tuple[AgentUnderTest, Path]:
        """An agent whose cgroup nobody uses but the meter's load."""
        return self.agent("meter", bindings=10, networks=10)

    @property
    def agents_running(self) -> int:
        """How many agents have programs in the kernel."""
        return len(self._agents)

    def close(self) -> None:
        """Stop the agents, detach the floors."""
        self._undo.close()
        for agent, _ in self._agents.values():
            agent.stop()
