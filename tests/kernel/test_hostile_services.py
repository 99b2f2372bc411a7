# SPDX-License-Identifier: Apache-2.0
"""Service ports that are taken without bind(2), and servers that change who they are."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Final

import pytest
from tests.kernel.harness.agent import AgentUnderTest
from tests.kernel.harness.cgroups import CgroupTree
from tests.kernel.harness.dial import binding
from tests.kernel.harness.namespaces import Netns
from tests.kernel.harness.probes import eventually
from tests.kernel.harness.recorder import free_port
from tests.kernel.harness.sides import service
from tests.kernel.harness.subjects import NO_LICENSE, new_jti
from tests.kernel.test_hostile_sockets import Puppet, place, puppet

RANGE: Final = "s.setsockopt(socket.IPPROTO_IP, 51, struct.pack('I', {port} << 16 | {port}))"
"""IP_LOCAL_PORT_RANGE (Linux 6.3) of one port: what is bound by the kernel gets this one."""

DISCONNECT: Final = "ctypes.CDLL(None, use_errno=True).connect(s.fileno(), bytes(16), 16)"
"""To AF_UNSPEC: gives the port back that the kernel chose."""

NEW: Final = (
    "s = socket.socket(socket.AF_INET, socket.{kind}); s.settimeout(5); "
    "s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)"
)


PORT: Final = 40_001
OPEN_PORT: Final = 40_002
"""In a namespace of the test's own, and among those that its kernel chooses from."""


def called(port: int, kind: socket.SocketKind) -> socket.socket:
    """A socket that connects to a port of this host, or has begun to."""
    sock = socket.socket(socket.AF_INET, kind)
    sock.setblocking(False)
    sock.connect_ex(("127.0.0.1", port))
    return sock


@dataclass(slots=True)
class Offers:
    """Two ports: OPEN_PORT is watched only, PORT needs a license."""

    agent: AgentUnderTest
    licensed: Puppet
    unlicensed: Puppet
    netns: Netns
    jti: str
    selector: str

    def enforce(self, protocol: str) -> None:
        self.agent.policy(
            service(f'"{OPEN_PORT}"', protocol, name="open", mode="observe")
            + service(f'"{PORT}"', protocol, name="closed")
            + binding(self.jti, self.selector)
        )

    def caller(
        self, port: int, kind: socket.SocketKind = socket.SOCK_STREAM
    ) -> closing[socket.socket]:
        """A client outside of every enforced cgroup that does not wait for its handshake."""
        return closing(self.netns.run(lambda: called(port, kind)))

    def denied(self) -> int:
        return self.agent.count(verdict="deny", resource="closed")

    def wait_for_denial(self, before: int) -> None:
        """Until more uses of PORT were denied than before."""
        eventually(lambda: self.denied() > before, "the caller is refused", 20)


@pytest.fixture
def offers(agent: AgentUnderTest, netns: Netns) -> Iterator[Offers]:
    with (
        CgroupTree(agent.cgroup) as yes,
        CgroupTree(agent.cgroup) as no,
        puppet(yes.root, namespace=netns) as licensed,
        puppet(no.root, namespace=netns) as unlicensed,
    ):
        if licensed(NEW.format(kind="SOCK_STREAM") + ";" + RANGE.format(port=1)) == "ENOPROTOOPT":
            pytest.skip("no IP_LOCAL_PORT_RANGE: Linux before 6.3")
        jti = new_jti()
        agent.issue(jti, ["open", "closed"])
        selector = f"cgroup:path:/{yes.root.name}"
        yield Offers(agent, licensed, unlicensed, netns, jti, selector)


def received(sock: socket.socket, wanted: bytes) -> bool:
    """Whether a client got this."""

    def arrived() -> bool:
        try:
            return sock.recv(99) == wanted
        except BlockingIOError:
            return False

    return bool(eventually(arrived, f"{wanted!r} arrives", 20))


@pytest.mark.parametrize("tag", ["plain", "tagged-for-another-port"])
def test_leave_for_one_tcp_port_is_none_for_another(tag: str, offers: Offers) -> None:
    offers.enforce("tcp")
    start = NEW.format(kind="SOCK_STREAM")
    # The licensed one last: what it accepts holds the port for a while.
    for each in (offers.unlicensed, offers.licensed):
        assert each(start) is None
        if tag != "plain":
            assert each(RANGE.format(port=OPEN_PORT)) is None
            assert each('s.bind(("127.0.0.1", 0)); s.listen(5)') is None
            assert each("s.getsockname()[1]") == OPEN_PORT
            assert each(DISCONNECT) == 0
        assert each(RANGE.format(port=PORT)) is None
        assert each("s.listen(5)") is None
        assert each("s.getsockname()[1]") == PORT
        before = offers.denied()
        with offers.caller(PORT) as client:
            if each is offers.licensed:
                assert each("k, _ = s.accept(); k.send(b'welcome')") is None
                assert received(client, b"welcome")
                continue
            offers.wait_for_denial(before)
            assert each("s.setblocking(False)") is None
            assert each("s.accept()") == "EAGAIN"
        assert each("s.close()") is None


def test_leave_for_one_udp_port_is_none_for_another(offers: Offers) -> None:
    offers.enforce("udp")
    start = NEW.format(kind="SOCK_DGRAM")
    for each in (offers.licensed, offers.unlicensed):
        assert each(start) is None
        assert each(RANGE.format(port=OPEN_PORT)) is None
        assert each('s.bind(("0.0.0.0", 0))') is None
        assert each("s.getsockname()[1]") == OPEN_PORT
        with offers.caller(OPEN_PORT, socket.SOCK_DGRAM) as client:
            client.send(b"hello")
            assert each("s.recv(99)") == "hello"
        assert each(DISCONNECT) == 0
        assert each(RANGE.format(port=PORT)) is None
        # Sent to nobody, so that the kernel binds once more.
        assert each('s.sendto(b"x", ("127.0.0.3", 9))') == 1
        assert each("s.getsockname()[1]") == PORT
        before = offers.denied()
        with offers.caller(PORT, socket.SOCK_DGRAM) as client:
            client.send(b"question")
            if each is offers.licensed:
                assert each("s.recv(99)") == "question"
                assert each("s.close()") is None
                continue
            offers.wait_for_denial(before)
            assert each("s.setblocking(False)") is None
            assert each("s.recv(99)") == "EAGAIN"


@pytest.mark.parametrize("how", ["bind", "listen"])
def test_what_a_listener_accepted_ends_with_its_license(how: str, offers: Offers) -> None:
    """Also where listen(2) bound the port by itself, which no bind hook sees."""
    offers.enforce("tcp")
    server = offers.licensed
    assert server(NEW.format(kind="SOCK_STREAM")) is None
    if how == "bind":
        assert server(f's.bind(("127.0.0.1", {PORT}))') is None
    else:
        assert server(RANGE.format(port=PORT)) is None
    assert server("s.listen(5)") is None
    assert server("s.getsockname()[1]") == PORT
    with offers.caller(PORT) as client:
        assert server("k, _ = s.accept(); k.settimeout(5); k.send(b'one')") is None
        assert received(client, b"one")

        offers.agent.revoke(offers.jti)

        assert server("k.recv(99)") == "ECONNABORTED"
        assert server("k.send(b'two')") == "EPIPE"
        assert server("s.accept()[0].fileno()") == "EINVAL"


def test_a_server_that_gives_up_its_privileges_keeps_its_port(agent: AgentUnderTest) -> None:
    """The port belongs to whoever bound it, whatever it sends as later."""
    port, jti = free_port(), new_jti()
    agent.issue(jti, ["r", "web", "elsewhere"])
    # Some network resource, or nobody looks at what is sent.
    text = (
        service(f'"{port}"', "udp", name="web")
        + place(free_port(), name="elsewhere")
        + binding(jti, f"unix:uid:{os.getuid()}")
    )
    agent.policy(text)
    bind = NEW.format(kind="SOCK_DGRAM") + f'; s.bind(("127.0.0.1", {port}))'
    with CgroupTree(agent.cgroup) as tree, puppet(tree.root, None) as server:
        with puppet(tree.root) as nobody:
            assert nobody(bind) == NO_LICENSE
        assert server(bind) is None
        assert server("os.setgroups([]); os.setgid(65534); os.setuid(65534)") is None
        with closing(called(port, socket.SOCK_DGRAM)) as client:
            client.send(b"first")
            assert server("word, who = s.recvfrom(99); s.sendto(b'answer', who)") is None
            assert received(client, b"answer")

            # Any change of the policy asks again for every socket.
            agent.policy(place(free_port(), mode="observe") + text)

            client.send(b"second")
            assert server("s.recv(99)") == "second"
            assert server("s.sendto(b'answer', who)") == len(b"answer")
            assert received(client, b"answer")
            agent.revoke(jti)
            assert server("s.recv(99)") == "ECONNABORTED"
