# SPDX-License-Identifier: Apache-2.0
"""Root changes the kernel side behind the daemon's back: it is told within seconds.

Where BPF is among the kernel's security modules, it is refused instead: tests/vm/test_lsm.py.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest
from tests.kernel.harness.agent import AgentUnderTest
from tests.kernel.harness.foreign import foreign_program
from tests.kernel.harness.probes import eventually

from licagent.kernel import bpf_info, libbpf
from licagent.kernel.bpffs import PinFolder
from licagent.kernel.guard import security_modules

pytestmark = pytest.mark.skipif(
    "bpf" in (security_modules() or ()), reason="this kernel refuses it (BPF LSM)"
)


def told(agent: AgentUnderTest, hook: str) -> list[str]:
    """What the events say of tampering with a hook, oldest first."""
    found = [event for event in agent.events() if event["kind"] == "tampering"]
    return [event["message"] for event in found if event.get("hook") == hook]


def codes(agent: AgentUnderTest) -> set[str]:
    """Why `status` is degraded."""
    return {reason["code"] for reason in agent.call("status")["reasons"]}


def test_a_replaced_program_and_a_removed_pin_are_told(
    make_agent: Callable[..., AgentUnderTest],
) -> None:
    agent = make_agent()
    agent.start()
    agent.coverage()  # is whole: what is missing from here on was taken away
    before = codes(agent)
    links = PinFolder(agent.bpffs).links
    link = libbpf.open_pin(links / "cgroup_egress")
    ours = libbpf.library().bpf_prog_get_fd_by_id(bpf_info.link_info(link).program_id)
    other = foreign_program()
    try:
        libbpf.update_link(link, other)
        words = eventually(lambda: told(agent, "cgroup_egress"), "the replacement is an event")
        assert "replaced by somebody else" in words[0]
        assert codes(agent) - before == {"kernel-changed"}

        libbpf.update_link(link, ours)
        eventually(lambda: len(told(agent, "cgroup_egress")) == 2, "that it is right again, too")
        assert codes(agent) == before
    finally:
        for fd in (link, ours, other):
            os.close(fd)

    (links / "cgroup_ingress").unlink()
    words = eventually(lambda: told(agent, "cgroup_ingress"), "the removal is an event")
    assert "detached by somebody else" in words[0]
    assert codes(agent) - before == {"hook-missing"}
