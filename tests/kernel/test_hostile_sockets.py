# SPDX-License-Identifier: Apache-2.0
"""Sockets that hide while a policy comes into force, and sockets that were kept."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import pytest
from tests.kernel.harness import programs
from tests.kernel.harness.agent import AgentUnderTest
from tests.kernel.harness.cgroups import CgroupTree
from tests.kernel.harness.dial import binding
from tests.kernel.harness.recorder import Recorder
from tests.kernel.harness.sides import network, service
from tests.kernel.harness.subjects import NO_LICENSE, new_jti

pytest_plugins = ["tests.kernel.harness.fixtures"]

NOBODY: Final = 65534

_PUPPET: Final = """
import ctypes, errno, json, os, socket, struct, sys
names = globals()
for line in sys.stdin:
    text = json.loads(line)["do"]
    try:
        try:
            value = eval(compile(text, "puppet", "eval"), names)
        except SyntaxError:
            exec(compile(text, "puppet", "exec"), names)
            value = None
        if isinstance(value, bytes):
            value = value.decode("latin-1")
        elif not isinstance(value, (int, str, list, tuple)):
            value = None
    except TimeoutError as error:
        value = "TIMEOUT" if error.errno is None else errno.errorcode[error.errno]
    except OSError as error:
        value = errno.errorcode[error.errno]
    print(json.dumps({"said": value}), flush=True)
"""


class Puppet:
    """A program that does what it is told, in Python: an attacker, or somebody honest."""

    def __init__(self, program: programs.Program) -> None:
        self.program = program
        self.pid = program.pid

    def __call__(self, text: str) -> Any:
        """Do it; its value, None for statements, or the name of the errno."""
        self.program.answer({"do": textwrap.dedent(text)})
        line = self.program.line()
        if line is None:
            assert self.program.process.stderr is not None
            raise AssertionError(f"it ended: {self.program.process.stderr.read()!r}")
        return line["said"]


@contextmanager
def puppet(cgroup: Path, uid: int | None = NOBODY, **where: Any) -> Iterator[Puppet]:
    """Start one; leaving the context ends it."""
    with programs.start(cgroup, [*programs.PYTHON, "-c", _PUPPET], uid=uid, **where) as program:
        yield Puppet(program)


def place(port: int, protocol: str = "tcp", name: str = "r", **fields: str) -> str:
    """The [[resource]] of a port on this machine's loopback."""
    where = f'{{ cidr = "127.0.0.1/32", ports = ["{port}"], protocol = "{protocol}" }}'
    return network(where, name=name, **fields)


PLAIN: Final = """
s = socket.create_connection(("127.0.0.1", {port}))
"""

HIDING: Final = {
    "beside-a-listener-of-the-same-port": """
        s = socket.socket()
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        s.bind(("127.0.0.1", 0))
        s.connect(("127.0.0.1", {port}))
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind(("127.0.0.2", s.getsockname()[1]))
        listener.listen(1)
    """,
    "waiting-in-a-unix-socket": """
        s = socket.create_connection(("127.0.0.1", {port}))
        here, there = socket.socketpair()
        socket.send_fds(here, [b"x"], [s.fileno()])
        s.close()
    """,
    "with-its-option-memory-full": """
        s = socket.create_connection(("127.0.0.1", {port}))
        count = 0
        try:
            for count in range(4000):  # TCP_MD5SIG: a key for each of many peers
                peer = socket.inet_aton("10.%d.%d.1" % (count // 250, count % 250))
                address = struct.pack("=HH4s120x", socket.AF_INET, 0, peer)
                key = struct.pack("=BBHI80s", 0, 0, 4, 0, b"abcd")
                s.setsockopt(socket.IPPROTO_TCP, 14, address + key)
        except OSError as error:
            full = errno.errorcode[error.errno]
    """,
}

TAKEN_OUT: Final = """
    if "there" in globals():
        _, found, _, _ = socket.recv_fds(there, 1, 1)
        s = socket.socket(fileno=found[0])
    s.settimeout(5)
"""


@pytest.mark.parametrize("how", ["plain", *HIDING])
def test_a_policy_finds_connections_that_hide(
    how: str, agent: AgentUnderTest, recorder: Recorder
) -> None:
    """Opened while no policy named where they go, by somebody whom no license covers."""
    setup = textwrap.dedent(HIDING.get(how, PLAIN)).format(port=recorder.port)
    secret = f"said too late, {how}".encode()
    jti = new_jti()
    agent.policy("")
    agent.issue(jti, ["r"])
    with (
        CgroupTree(agent.cgroup) as yes,
        CgroupTree(agent.cgroup) as no,
        puppet(yes.root) as licensed,
        puppet(no.root) as hidden,
    ):
        assert licensed(setup) is None
        assert hidden(setup) is None
        if how == "with-its-option-memory-full":
            assert hidden("full") == "ENOMEM"

        agent.policy(place(recorder.port) + binding(jti, f"cgroup:path:/{yes.root.name}"))

        # Whoever is licensed may do so, however odd it looks.
        assert licensed(TAKEN_OUT) is None
        assert licensed("s.send(b'allowed')") == 7
        assert recorder.kinds_that_got(b"allowed") == {"tcp4"}
        assert hidden(TAKEN_OUT) is None
        assert hidden(f"s.send({secret!r})") == "ECONNABORTED"
        assert recorder.kinds_that_got(secret) == frozenset()
        assert hidden(PLAIN.format(port=recorder.port)) == NO_LICENSE


@pytest.fixture
def keeping(
    make_agent: Callable[..., AgentUnderTest], recorder: Recorder
) -> Iterator[tuple[AgentUnderTest, Puppet, Puppet, str]]:
    """An agent that keeps what is older, a licensed and an unlicensed process, and a license.

    Each process has a connection `s` and a listener `l` that are older than the agent.
    """
    agent = make_agent(settings='existing_sockets = "keep"')
    with (
        CgroupTree(agent.cgroup, "licensed") as yes,
        CgroupTree(agent.cgroup, "unlicensed") as no,
        puppet(yes.root) as licensed,
        puppet(no.root) as unlicensed,
    ):
        for each in (licensed, unlicensed):
            each(PLAIN.format(port=recorder.port) + "s.settimeout(5)")
            each('l = socket.socket(); l.bind(("127.0.0.1", 0)); l.listen(9); l.settimeout(5)')
        ports = [int(each("l.getsockname()[1]")) for each in (licensed, unlicensed)]
        agent.start()
        jti = new_jti()
        agent.issue(jti, ["r", "web"])
        offered = service(", ".join(f'"{port}"' for port in ports), "tcp", name="web")
        agent.policy(place(recorder.port) + offered + binding(jti, "cgroup:path:/licensed"))
        yield agent, licensed, unlicensed, jti


def test_what_was_kept_by_its_license_ends_with_it(
    keeping: tuple[AgentUnderTest, Puppet, Puppet, str], recorder: Recorder
) -> None:
    """The setting spares what no license covered, not what a license covered and was revoked."""
    agent, licensed, unlicensed, jti = keeping
    for each, word in ((licensed, b"by license"), (unlicensed, b"by the setting")):
        assert each(f"s.send({word!r})") == len(word)
        assert recorder.kinds_that_got(word) == {"tcp4"}
        assert each('c = socket.create_connection(("127.0.0.1", l.getsockname()[1]), 5)') is None
        assert each("k, _ = l.accept()") is None

    agent.revoke(jti)

    assert licensed("s.send(b'after the end')") == "ECONNABORTED"
    assert recorder.kinds_that_got(b"after the end") == frozenset()
    assert licensed("l.accept()[0].fileno()") == "EINVAL"
    assert licensed("k.send(b'served')") in {"ECONNABORTED", "EPIPE"}
    assert unlicensed("s.send(b'still kept')") == len(b"still kept")
    assert recorder.kinds_that_got(b"still kept") == {"tcp4"}


def test_what_was_kept_may_not_be_connected_anew(
    keeping: tuple[AgentUnderTest, Puppet, Puppet, str], recorder: Recorder
) -> None:
    _, licensed, unlicensed, _ = keeping
    again = f's.connect(("127.0.0.1", {recorder.port}))'
    for each, answer in ((licensed, None), (unlicensed, NO_LICENSE)):
        assert each("s = socket.socket(); s.settimeout(5)") is None
        assert each(again) == answer
