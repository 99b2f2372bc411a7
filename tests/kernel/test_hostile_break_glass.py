# SPDX-License-Identifier: Apache-2.0
"""Break-glass opens for a time: nothing that was opened outlives it, nothing ends it early."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from typing import Final

import pytest
from tests.kernel.harness.agent import AgentUnderTest
from tests.kernel.harness.cgroups import CgroupTree
from tests.kernel.harness.dial import binding
from tests.kernel.harness.probes import eventually
from tests.kernel.harness.recorder import Recorder
from tests.kernel.harness.subjects import NO_LICENSE
from tests.kernel.test_hostile_sockets import place, puppet

from licagent.kernel.bpffs import PinFolder

pytest_plugins = ["tests.kernel.harness.fixtures"]

FULL: Final = textwrap.dedent("""
    s = socket.socket()
    s.settimeout(5)
    full = ""
    for count in range(4000):  # TCP_MD5SIG: a key for each of many peers
        peer = socket.inet_aton("10.%d.%d.1" % (count // 250, count % 250))
        address = struct.pack("=HH4s120x", socket.AF_INET, 0, peer)
        key = struct.pack("=BBHI80s", 0, 0, 4, 0, b"abcd")
        try:
            s.setsockopt(socket.IPPROTO_TCP, 14, address + key)
        except OSError as error:
            full = errno.errorcode[error.errno]
            break
""")
"""A socket with no memory left for a tag."""

PLAIN: Final = "s = socket.socket(); s.settimeout(5)"
SECRET: Final = b"said after the end"


@pytest.fixture
def made(make_agent: Callable[..., AgentUnderTest], recorder: Recorder) -> AgentUnderTest:
    """An agent with a policy that names the recorder."""
    agent = make_agent()
    agent.start()
    agent.issue("one", ["r"])
    agent.policy(place(recorder.port) + binding("one", "cgroup:path:/licensed"))
    return agent


def test_no_connection_outlives_break_glass(made: AgentUnderTest, recorder: Recorder) -> None:
    """One that cannot be tagged could not be found at the end: it is not opened."""
    connect = f's.connect(("127.0.0.1", {recorder.port}))'
    with (
        CgroupTree(made.cgroup, "unlicensed") as tree,
        puppet(tree.root) as plain,
        puppet(tree.root) as full,
    ):
        assert plain(PLAIN) is None
        assert plain(connect) == NO_LICENSE
        made.call("break_glass", for_s=3600, reason="a test")
        assert plain(PLAIN) is None
        assert plain(connect) is None
        assert full(FULL) is None
        assert full("full") == "ENOMEM"
        assert full(connect) == "EPERM"
        assert plain("s.send(b'while it is open')") == len("while it is open")
        assert recorder.kinds_that_got(b"while it is open") == {"tcp4"}

        made.call("break_glass", end=True)

        for each in (plain, full):
            assert isinstance(each(f"s.send({SECRET!r})"), str)
            assert each(PLAIN) is None
            assert each(connect) == NO_LICENSE
        assert recorder.kinds_that_got(SECRET) == frozenset()


def test_break_glass_outlives_the_maps(made: AgentUnderTest, recorder: Recorder) -> None:
    """What status says is what the kernel does, also after everything pinned was removed."""
    connect = f'{PLAIN}; s.connect(("127.0.0.1", {recorder.port}))'
    with CgroupTree(made.cgroup, "unlicensed") as tree, puppet(tree.root) as subject:
        assert subject(connect) == NO_LICENSE
        made.call("break_glass", for_s=3600, reason="a test")
        assert subject(connect) is None
        until = made.call("status")["break_glass"]["until"]

        made.kill()
        PinFolder(made.bpffs).remove()
        made.start()

        status = made.call("status")
        assert status["state"] == "break-glass"
        assert status["break_glass"]["until"] == until
        assert subject(connect) is None
        made.call("break_glass", end=True)
        assert subject(f"s.send({SECRET!r})") == "ECONNABORTED"
        assert subject(connect) == NO_LICENSE
        assert recorder.kinds_that_got(SECRET) == frozenset()
        eventually(lambda: made.call("status")["state"] == "enforcing", "it is closed", 20)
