# SPDX-License-Identifier: Apache-2.0
"""Events name both ends where there are two: here the address that the socket is bound to."""

from __future__ import annotations

import multiprocessing
import socket
import time
from pathlib import Path
from typing import Any

from tests.kernel.harness.agent import AgentUnderTest
from tests.kernel.harness.cgroups import CgroupTree


def _policy(resource: str) -> str:
    return f"""
[[resource]]
name = "{resource}"
kind = "network"
mode = "enforce"
destinations = [{{ cidr = "127.77.0.0/16", protocol = "udp" }}]
[[binding]]
license = "{resource}"
selectors = ["cgroup:path:/licensed"]
"""


def _bound_call(cgroup: Path) -> int:
    """Try to use the resource from a socket bound to 127.0.0.9; its port."""

    def body(queue: multiprocessing.Queue[int]) -> None:
        (cgroup / "cgroup.procs").write_text("0")
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.bind(("127.0.0.9", 0))
            sock.connect_ex(("127.77.1.2", 99))
            queue.put(sock.getsockname()[1])

    context = multiprocessing.get_context("fork")
    queue: multiprocessing.Queue[int] = context.Queue()
    child = context.Process(target=body, args=(queue,))
    child.start()
    try:
        return queue.get(timeout=20)
    finally:
        child.join()


def _event(agent: AgentUnderTest, resource: str) -> dict[str, Any]:
    for _ in range(200):
        found = [event for event in agent.events() if event.get("resource") == resource]
        if found:
            return found[-1]
        time.sleep(0.05)
    raise AssertionError(f"no event about {resource}")


def test_a_refused_call_of_a_bound_socket_names_its_own_address(agent: AgentUnderTest) -> None:
    resource = f"ends-{time.time_ns()}"
    agent.issue(resource, [resource])
    agent.policy(_policy(resource))
    with CgroupTree(agent.cgroup, "nobody") as nobody:
        port = _bound_call(nobody.root)
    network = _event(agent, resource)["network"]
    assert network["source"] == f"127.0.0.9:{port}"
    assert network["destination"] == "127.77.1.2:99"
