# SPDX-License-Identifier: Apache-2.0
"""Real cgroups and network namespaces for the tests, taken away again whatever happens."""

from __future__ import annotations

import os
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator

import pytest

from licagent.host.cgroups import CgroupError, CgroupTree

Start = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture
def tree() -> Iterator[CgroupTree]:
    """A cgroup subtree of our own, as the agent's root."""
    if os.geteuid() != 0:
        pytest.skip("making cgroups needs root")
    whole = CgroupTree.open()
    name = f"/licagent-unit-{os.getpid()}-{uuid.uuid4().hex[:8]}"
    whole.create(name)
    try:
        yield CgroupTree.open(whole.directory(name))
    finally:
        for cgroup in list(whole.walk(name)):
            for pid in whole.processes(cgroup.path):
                whole.enter("/", pid)
        for _ in range(50):
            try:
                whole.remove(name)
                break
            except CgroupError:  # a process that was killed has not been reaped yet
                time.sleep(0.02)


@pytest.fixture
def start() -> Iterator[Start]:
    """Start processes; those that still run at the end are killed."""
    started: list[subprocess.Popen[bytes]] = []

    def run(*command: str, **options: object) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(command, **options)  # type: ignore[call-overload]
        started.append(process)
        return process

    yield run
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def netns() -> Iterator[str]:
    """The name of a network namespace with its loopback up."""
    if os.geteuid() != 0:
        pytest.skip("making network namespaces needs root")
    name = f"lictest-{uuid.uuid4().hex[:8]}"
    subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        subprocess.run(["ip", "-n", name, "link", "set", "lo", "up"], check=True)
        yield name
    finally:
        subprocess.run(["ip", "netns", "delete", name], check=True)
