# SPDX-License-Identifier: Apache-2.0
"""Executables of every owner are measured with the rights of the packaged unit, and no others."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.kernel.harness.cgroups import CgroupTree
from tests.kernel.harness.dial import answer_of, install
from tests.kernel.harness.subjects import NO_LICENSE, Rules, sha256, until
from tests.system.harness.confined import ConfinedAgent

pytest_plugins = ["tests.kernel.harness.fixtures"]

WORKER = 12_345
"""No account has it, and none is needed."""


@pytest.fixture
def confined() -> Iterator[Rules]:
    """A policy's destination under a daemon with the capabilities of licagent.service."""
    agent = ConfinedAgent()
    try:
        agent.start()
        with CgroupTree(agent.cgroup) as tree:
            yield Rules(agent, tree.root)
    finally:
        agent.close()


def capabilities(pid: int) -> int:
    found = re.search(r"^CapBnd:\s*(\w+)$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1], 16)


def test_a_program_that_root_does_not_own_and_nobody_else_may_read(
    confined: Rules, folder: Path
) -> None:
    assert not capabilities(confined.agent.pid) & 1, "CAP_CHOWN: it is not confined"
    program = install(folder / "secret", variant="of the worker", mode=0o500)
    selector = sha256(program)
    os.chown(program, WORKER, WORKER)
    worker = ("setpriv", f"--reuid={WORKER}", f"--regid={WORKER}", "--clear-groups", "--")

    confined.allow(selector)

    until("OK", confined, *worker, program)
    with program.open("ab") as file:
        file.write(b"more")
    command = [*worker, str(program)]
    assert answer_of(confined.cgroup, command, confined.to) == NO_LICENSE, "another content"
