# SPDX-License-Identifier: Apache-2.0
"""Putting a policy with one destination in force, for tests of who may use it."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from tests.kernel.harness.agent import AgentUnderTest
from tests.kernel.harness.dial import LIMIT_S, Destination, answer_of, binding

from licagent.kernel.bpffs import PinFolder
from licagent.kernel.enforcement_structs import Process
from licagent.kernel.maps import Map

NO_LICENSE: Final = "ENOKEY"
"""What a subject that no binding names is told."""

_NUMBERS: Final = itertools.count(1)


def new_jti() -> str:
    """The id of a license that no test had before."""
    return f"who-{os.getpid()}-{next(_NUMBERS)}"


@dataclass(slots=True)
class Rules:
    """One destination and who may use it."""

    agent: AgentUnderTest
    cgroup: Path
    """An enforced cgroup of the test's own."""
    to: Destination = field(default_factory=Destination)

    def allow(self, *selectors: str, **license_fields: Any) -> str:
        """Only processes for which all of `selectors` hold may use it; answers the license."""
        return self.allow_each((selectors, license_fields))[0]

    def allow_each(self, *grants: tuple[tuple[str, ...], dict[str, Any]]) -> list[str]:
        """Several bindings, each with a license of its own."""
        licenses = []
        text = self.to.resource()
        for selectors, fields in grants:
            jti = new_jti()
            self.agent.issue(jti, ["r"], **fields)
            licenses.append(jti)
            text += binding(jti, *selectors)
        self.agent.policy(text)
        return licenses

    def path(self, cgroup: Path) -> str:
        """A cgroup's path as selectors write it."""
        return "/" + str(cgroup.relative_to(self.agent.cgroup))


@contextlib.contextmanager
def _processes(rules: Rules) -> Iterator[Map]:
    table = Map(PinFolder(rules.agent.bpffs).maps / "processes")
    try:
        yield table
    finally:
        table.close()


def entry_of(rules: Rules, pid: int) -> Process:
    """What the kernel holds of a process."""
    with _processes(rules) as table:
        value = table.lookup(pid.to_bytes(4, sys.byteorder))
    assert value is not None, "the kernel does not know it"
    return Process.from_buffer_copy(value)


def put_entry(rules: Rules, pid: int, entry: Process) -> None:
    """Let the kernel hold something else of a process."""
    with _processes(rules) as table:
        table.update(pid.to_bytes(4, sys.byteorder), bytes(entry))


def sha256(path: Path) -> str:
    """The selector of a file's content."""
    return "unix:sha256:" + hashlib.sha256(path.read_bytes()).hexdigest()


def path_of(path: Path) -> str:
    """The selector of a path."""
    return f"unix:path:{path}"


def until(wanted: str, rules: Rules, *command: str | Path) -> None:
    """Run a program until a fresh process of it gets `wanted` at its first try."""
    end = time.monotonic() + LIMIT_S
    argv = [str(word) for word in command]
    while (said := answer_of(rules.cgroup, argv, rules.to)) != wanted:
        assert time.monotonic() < end, f"it says {said} instead of {wanted}"
