# SPDX-License-Identifier: Apache-2.0
"""An upgrade to another schema of the maps carries the policy over before programs change."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable
from pathlib import Path

from tests.kernel.harness.agent import AgentUnderTest
from tests.kernel.harness.cgroups import CgroupTree

from licagent.kernel.bpffs import PinFolder
from licagent.kernel.control import ControlWord
from licagent.kernel.loader import Loader

POLICY = """
[[resource]]
name = "web"
kind = "network"
mode = "enforce"
destinations = [{ cidr = "127.9.0.0/16", protocol = "udp" }]
[[binding]]
license = "upgrade"
selectors = ["cgroup:path:/licensed"]
"""


def _connect(cgroup: Path) -> int:
    """errno of a UDP connect from a cgroup; 0 when it passes."""
    import multiprocessing

    def body(queue: multiprocessing.Queue[int]) -> None:
        (cgroup / "cgroup.procs").write_text("0")
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            queue.put(sock.connect_ex(("127.9.0.1", 9)))

    context = multiprocessing.get_context("fork")
    queue: multiprocessing.Queue[int] = context.Queue()
    child = context.Process(target=body, args=(queue,))
    child.start()
    try:
        return queue.get(timeout=20)
    finally:
        child.join()


def test_another_schema_enforces_the_same_policy_without_the_daemon(
    make_agent: Callable[..., AgentUnderTest],
) -> None:
    agent = make_agent()
    agent.start()
    agent.issue("upgrade", ["web"])
    agent.policy(POLICY)
    with CgroupTree(agent.cgroup, "licensed") as licensed, CgroupTree(agent.cgroup, "no") as other:
        assert _connect(licensed.root) == 0
        assert _connect(other.root) == errno.ENOKEY
        agent.kill()

        pins = PinFolder(agent.bpffs, schema=99)
        report = Loader(pins, agent.cgroup).run(agent.loader)

        assert all(state.attached for state in report.hooks)
        assert [folder.name for folder in agent.bpffs.glob("maps-v*")] == ["maps-v99"]
        control = ControlWord(pins)
        assert control.generation
        control.close()
        assert _connect(licensed.root) == 0
        assert _connect(other.root) == errno.ENOKEY
