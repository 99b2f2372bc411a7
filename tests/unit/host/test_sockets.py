# SPDX-License-Identifier: Apache-2.0
"""Listing, owning and ending real sockets on loopback and in a namespace of our own."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from licagent.domain.tables import Protocol
from licagent.host import isolated, sockets, sweep
from licagent.host.namespaces import network_namespaces, run_inside
from licagent.host.sockets import (
    DestroyUnsupported,
    Endpoint,
    Holder,
    Socket,
    cookie,
    cookie_of,
    destroy,
    has_listing,
    holders,
    list_sockets,
    sockets_of,
)

Start = Callable[..., subprocess.Popen[bytes]]
root_only = pytest.mark.skipif(os.geteuid() != 0, reason="needs CAP_NET_ADMIN")
Pair = tuple[socket.socket, socket.socket]


@contextmanager
def connected(address: str) -> Iterator[Pair]:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with (
        socket.create_server((address, 0), family=family) as server,
        socket.create_connection(server.getsockname()[:2]) as client,
    ):
        accepted, _ = server.accept()
        with accepted:
            yield client, accepted


def listed(held: socket.socket) -> Socket:
    wanted = cookie(held)
    (found,) = (s for s in list_sockets() if s.cookie == wanted)
    return found


@pytest.mark.parametrize(("address", "family"), [("127.0.0.1", 4), ("::1", 6)])
def test_a_tcp_connection_is_listed(address: str, family: int) -> None:
    with connected(address) as (client, _accepted):
        found = listed(client)
        assert (found.family, found.protocol, found.state) == (family, Protocol.TCP, "established")
        assert found.local == Endpoint(*client.getsockname()[:2])
        assert found.remote == Endpoint(*client.getpeername()[:2])
        assert found.uid == os.getuid()
        assert found.inode == os.fstat(client.fileno()).st_ino
        assert found.cgroup_id is None or found.cgroup_id > 0


def test_listeners_and_udp_are_listed() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        assert listed(server).state == "listen"
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagram:
        datagram.bind(("127.0.0.1", 0))
        found = listed(datagram)
        assert (found.protocol, found.state) == (Protocol.UDP, "unconnected")
        assert found.remote == Endpoint("0.0.0.0", 0)
        wanted = cookie(datagram)
        assert not any(s.cookie == wanted for s in list_sockets([Protocol.TCP]))


def test_a_protocol_without_a_listing_is_passed_over() -> None:
    assert has_listing(Protocol.TCP, 4)
    assert not has_listing(Protocol.ICMP, 4)
    list_sockets(list(Protocol))  # comes to an end, whatever this kernel has


def test_endpoints_as_people_write_them() -> None:
    assert str(Endpoint("127.0.0.1", 80)) == "127.0.0.1:80"
    assert str(Endpoint("::1", 80)) == "[::1]:80"


def test_holders_in_other_processes(start: Start) -> None:
    with connected("127.0.0.1") as (client, accepted):
        process = start("sleep", "60", pass_fds=(client.fileno(),))
        mine, theirs = listed(client), listed(accepted)
        found = holders([mine.inode, theirs.inode, 0])
        assert set(found[mine.inode]) == {
            Holder(os.getpid(), client.fileno()),
            Holder(process.pid, client.fileno()),
        }
        assert found[theirs.inode] == (Holder(os.getpid(), accepted.fileno()),)
        assert sockets_of(process.pid)[client.fileno()] == mine.inode
        assert cookie_of(process.pid, client.fileno()) == mine.cookie
        with pytest.raises(OSError, match="cannot look"):
            cookie_of(process.pid, 999)
    assert holders([]) == {}
    process.kill()
    process.wait()
    assert sockets_of(process.pid) == {}


@root_only
@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_exactly_one_socket_is_ended(address: str) -> None:
    with connected(address) as (client, _), connected(address) as (other, other_end):
        target = listed(client)
        assert destroy(target)
        with pytest.raises(ConnectionAbortedError):
            client.recv(1)
        assert not destroy(target)  # gone already, and said so
        other.sendall(b"alive")
        assert other_end.recv(5) == b"alive"


@root_only
def test_a_udp_socket_is_ended() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagram:
        datagram.bind(("127.0.0.1", 0))
        datagram.connect(("127.0.0.1", 9))
        assert destroy(listed(datagram))
        with pytest.raises(OSError, match=r"\[Errno 103\]"):
            datagram.recv(1)


@root_only
def test_the_cookie_saves_a_newer_socket_with_the_same_addresses() -> None:
    with connected("127.0.0.1") as (client, accepted):
        target = listed(client)
        stale = Socket(
            target.family,
            target.protocol,
            target.state,
            target.local,
            target.remote,
            target.interface,
            target.uid,
            target.inode,
            target.cookie + 1_000_000,
            target.cgroup_id,
        )
        assert not destroy(stale)
        client.sendall(b"alive")
        assert accepted.recv(5) == b"alive"


@pytest.mark.parametrize(
    ("number", "error"),
    [(errno.EOPNOTSUPP, DestroyUnsupported), (errno.EPERM, PermissionError)],
)
def test_refusals_are_told_apart(
    number: int, error: type[OSError], monkeypatch: pytest.MonkeyPatch
) -> None:
    with connected("127.0.0.1") as (client, _):
        target = listed(client)
        monkeypatch.setattr(sockets, "_answer_errno", lambda _request: number)
        with pytest.raises(error):
            destroy(target)


IN_NAMESPACE = """
import socket, sys
server = socket.create_server(("127.0.0.1", 0))
client = socket.create_connection(server.getsockname())
accepted, _ = server.accept()
print(client.getsockopt(socket.SOL_SOCKET, 57, 8)[0:8].hex(), flush=True)
try:
    client.recv(1)
except ConnectionAbortedError:
    print("aborted", flush=True)
"""


def start_in(netns: str, start: Start) -> tuple[subprocess.Popen[bytes], int]:
    command = ["ip", "netns", "exec", netns, sys.executable, "-c", IN_NAMESPACE]
    process = start(*command, stdout=subprocess.PIPE)
    assert process.stdout is not None
    wanted = int.from_bytes(bytes.fromhex(process.stdout.readline().decode()), sys.byteorder)
    return process, wanted


@root_only
@pytest.mark.parametrize("elsewhere", [False, True])
def test_other_network_namespaces_are_swept(netns: str, start: Start, elsewhere: bool) -> None:
    process, wanted = start_in(netns, start)
    assert process.stdout is not None
    assert not any(s.cookie == wanted for s in list_sockets())
    source = isolated.list_sockets() if elsewhere else sweep.list_everywhere()
    (found,) = (placed for placed in source if placed.socket.cookie == wanted)
    assert found.namespace == Path(f"/run/netns/{netns}").stat().st_ino
    assert [holder.pid for holder in found.holders] == [process.pid]
    assert found.socket.remote.address == "127.0.0.1"
    assert found.socket.protocol is Protocol.TCP
    end = isolated.destroy_sockets if elsewhere else sweep.destroy_everywhere
    missing = 2**60
    swept = end([wanted, missing])
    assert swept.ended == {wanted}
    assert swept.gone == {missing}
    assert swept.failed == ()
    assert process.stdout.readline() == b"aborted\n"
    assert end([wanted]).gone == {wanted}


@root_only
def test_a_socket_that_cannot_be_ended_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with connected("127.0.0.1") as (client, _):
        monkeypatch.setattr(sockets, "_answer_errno", lambda _request: errno.EPERM)
        monkeypatch.setattr(sockets, "has_listing", lambda *_: True)
        swept = sweep.destroy_everywhere([cookie(client)])
        assert swept.ended == frozenset()
        ((failed, why),) = swept.failed
        assert failed == cookie(client)
        assert "not permitted" in why


def test_the_helper_says_what_went_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(isolated.IsolatedFailed, match="unknown operation"):
        isolated._ask("nonsense", None, 30)
    with pytest.raises(isolated.IsolatedFailed, match="within"):
        isolated._ask("links", None, -1)  # the time is over already


def test_importing_the_package_does_not_import_pyroute2() -> None:
    script = (
        "import sys\n"
        "from licagent.host import (cgroups, digests, exec_paths, executables, isolated,\n"
        "    mounts, namespaces, netwatch, posture, processes, sockets, sweep, users)\n"
        "isolated.list_links()\n"
        "print([name for name in sys.modules if name.startswith('pyroute2')])\n"
    )
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)
    assert done.stdout == b"[]\n"


@root_only
def test_a_namespace_is_found_by_its_name_and_by_its_process(netns: str, start: Start) -> None:
    inode = Path(f"/run/netns/{netns}").stat().st_ino
    ours = Path("/proc/self/ns/net").stat().st_ino
    with network_namespaces() as found:
        assert found[0].inode == ours
        assert len({namespace.inode for namespace in found}) == len(found)
        (ns,) = (namespace for namespace in found if namespace.inode == inode)
        assert (ns.pid, ns.name) == (None, f"/run/netns/{netns}")
    process, _ = start_in(netns, start)
    with network_namespaces() as found:
        (ns,) = (namespace for namespace in found if namespace.inode == inode)
        assert (ns.pid, ns.name) == (process.pid, f"/run/netns/{netns}")
    assert Path("/proc/self/ns/net").stat().st_ino == ours


@root_only
def test_no_descriptor_is_left_open() -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        with network_namespaces():
            pass
    assert len(os.listdir("/proc/self/fd")) == before


@root_only
def test_only_the_thread_is_inside(netns: str) -> None:
    ours = Path("/proc/thread-self/ns/net").stat().st_ino
    with open(f"/run/netns/{netns}") as namespace:
        theirs = os.fstat(namespace.fileno()).st_ino
        inside = run_inside(
            namespace.fileno(), lambda: Path("/proc/thread-self/ns/net").stat().st_ino
        )
        assert (inside, Path("/proc/thread-self/ns/net").stat().st_ino) == (theirs, ours)
        with pytest.raises(ZeroDivisionError):
            run_inside(namespace.fileno(), lambda: 1 // 0)
    with open("/dev/null") as other, pytest.raises(OSError, match="cannot enter"):
        run_inside(other.fileno(), lambda: None)
