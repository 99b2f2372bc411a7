# SPDX-License-Identifier: Apache-2.0
"""Fixtures for kernel tests; a test module asks for them by `pytest_plugins`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.kernel.harness import programs
from tests.kernel.harness.agent import AgentUnderTest
from tests.kernel.harness.cgroups import CgroupTree
from tests.kernel.harness.dial import Dialer, install, program_folder, settle
from tests.kernel.harness.namespaces import Netns
from tests.kernel.harness.recorder import Recorder
from tests.kernel.harness.sides import Sides, everywhere
from tests.kernel.harness.subjects import Rules, path_of, sha256, until
from tests.kernel.harness.walk import Surroundings, World


@pytest.fixture(scope="session")
def world() -> Iterator[World]:
    """Recording servers of all networks."""
    with World() as made:
        yield made


@pytest.fixture
def recorder() -> Iterator[Recorder]:
    """A recording server on the machine's loopback."""
    with Recorder() as made:
        yield made


@pytest.fixture
def cgroup_tree() -> Iterator[CgroupTree]:
    """A cgroup of the test's own."""
    with CgroupTree() as tree:
        yield tree


@pytest.fixture
def netns() -> Iterator[Netns]:
    """A network namespace with loopback up."""
    with Netns.new() as made:
        yield made


@pytest.fixture(scope="module")
def bare_tree() -> Iterator[CgroupTree]:
    """A cgroup that lives as long as the module's tests."""
    with CgroupTree() as tree:
        yield tree


@pytest.fixture(scope="module")
def outside_tree() -> Iterator[CgroupTree]:
    """A cgroup outside of every enforced tree."""
    with CgroupTree() as tree:
        yield tree


@pytest.fixture(scope="module")
def bare_surroundings(bare_tree: CgroupTree, outside_tree: CgroupTree) -> Surroundings:
    """Cgroups for routes that need a second party, with no agent anywhere."""
    return Surroundings(
        holder=bare_tree.make("holder"), other=bare_tree.make("other"), outside=outside_tree.root
    )


@pytest.fixture
def rules(agent: AgentUnderTest) -> Iterator[Rules]:
    """A destination of the test's own, and an enforced cgroup."""
    with CgroupTree(agent.cgroup) as tree:
        yield Rules(agent, tree.root)


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder on the disk for programs."""
    with program_folder() as made:
        yield made


@pytest.fixture
def dial(folder: Path) -> Path:
    """A program that says whether it may connect."""
    return settle(install(folder / "dial"))


@pytest.fixture
def other(folder: Path) -> Path:
    """Another program, of another content."""
    return install(folder / "other", variant="other")


@pytest.fixture
def by_path(rules: Rules, dial: Path) -> Rules:
    """Only what stands at `dial` may connect, and the path is found."""
    rules.allow(path_of(dial))
    until("OK", rules, dial)
    return rules


@pytest.fixture
def by_content(rules: Rules, dial: Path) -> Rules:
    """Only the content of `dial` may connect, and it is measured."""
    rules.allow(sha256(dial))
    until("OK", rules, dial)
    return rules


@pytest.fixture(scope="session")
def everywhere_netns() -> Iterator[Netns]:
    """A namespace in which every address is one of its own."""
    with everywhere() as made:
        yield made


@pytest.fixture
def sides(agent: AgentUnderTest, dial: Path, everywhere_netns: Netns) -> Iterator[Sides]:
    """A licensed and an unlicensed process in that namespace."""
    with (
        CgroupTree(agent.cgroup) as yes,
        CgroupTree(agent.cgroup) as no,
        Dialer(programs.start(yes.root, [str(dial)], namespace=everywhere_netns)) as licensed,
        Dialer(programs.start(no.root, [str(dial)], namespace=everywhere_netns)) as unlicensed,
    ):
        yield Sides(agent, licensed, unlicensed, f"cgroup:path:/{yes.root.name}", yes.root, no.root)
