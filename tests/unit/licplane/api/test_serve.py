# SPDX-License-Identifier: Apache-2.0
"""The server as processes over the real service and SQLite, with real enrolment."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from tests.bench.control_peer import OPTIONS, Join, Peer, enroll, make_csr
from tests.unit.licplane.api.conftest import eventually
from tests.unit.licplane.api.serving import open_plane

from licapi.control.v1 import (
    admin_pb2,
    admin_pb2_grpc,
    enrollment_pb2,
    enrollment_pb2_grpc,
    sync_pb2,
)
from licplane.api.server import Opened
from licplane.api.systemd import feed_watchdog
from licplane.issuer.keyring import NO_KEYS
from licplane.service.plane import Plane
from licplane.service.requests import Change, Document, PlaneSettings
from licplane.service.values import Actor, HostStatus, Role
from licplane.store.database import Store
from licplane.store.folder import StateFolder

ROOT = Path(__file__).parents[4]
ME = Actor("local:test", Role.ADMIN)
START_S = 60
WATCHDOG_S = 1.0


def resource(name: str) -> Document:
    """A resource of the catalog."""
    where = {"cidr": "192.0.2.0/24", "ports": ["443"], "protocol": "tcp"}
    table = {"name": name, "kind": "network", "mode": "observe", "destinations": [where]}
    return Document("resource", name, json.dumps(table))


class Server:
    """A running server, and the plane beside it that administrators' commands would open."""

    def __init__(
        self, process: subprocess.Popen[str], manager: socket.socket, folder: Path
    ) -> None:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, "the server did not start"
        self.process = process
        self.manager = manager
        self.notified = set()
        while "READY=1" not in self.notified:
            self.notified.add(manager.recv(100).decode())
        self.addresses: dict[str, Any] = json.loads(line)
        told = PlaneSettings(
            public_address=self.addresses["public"], control_address=self.addresses["control"]
        )
        self.opened: Opened = open_plane(str(folder), told)

    @property
    def plane(self) -> Plane:
        return self.opened.plane

    def join(self, uses: int) -> Join:
        made = self.plane.create_join_token(
            ME, Change(), labels={"org": "acme"}, uses_max=uses, ttl_s=600
        )
        return Join.parse(made.join)

    def children(self) -> list[int]:
        pid = self.process.pid
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii")
        found = [int(one) for one in text.split()]
        return [one for one in found if b"resource_tracker" not in _command(one)]


def _command(pid: int) -> bytes:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b"resource_tracker"


def metrics(address: str) -> dict[str, float]:
    """What one worker tells."""
    host, port = address.rsplit(":", 1)
    with socket.create_connection((host, int(port)), timeout=20) as made:
        made.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
        data = b""
        while chunk := made.recv(65536):
            data += chunk
    lines = data.decode().partition("\r\n\r\n")[2].splitlines()
    rows = (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    return {name: float(value) for name, value in rows}


@contextmanager
def serving(folder: Path, workers: int, **more: str) -> Iterator[Server]:
    """A server with keys in the clear; ended whatever happens. `more`: of its environment."""
    StateFolder(folder).create()
    with Store.in_folder(folder) as store:
        Plane(store, NO_KEYS).ensure_foundations(ME, issuer="test", passphrase=None)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(folder / "notify.socket"))
        manager.settimeout(START_S)
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.unit.licplane.api.serving", str(folder), str(workers)],
            cwd=ROOT,
            env={**os.environ, **more, "NOTIFY_SOCKET": str(folder / "notify.socket")},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        try:
            server = Server(process, manager, folder)
            try:
                yield server
            finally:
                server.opened.store.close()
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            assert process.stdout is not None
            process.stdout.close()


async def connected(join: Join, count: int) -> list[Peer]:
    """So many hosts, enrolled, connected and up to date."""
    peers = []
    for _ in range(count):
        peer = Peer(await enroll(join))
        await peer.open()
        await peer.sync()
        peers.append(peer)
    return peers


async def until(peer: Peer, kind: str) -> sync_pb2.ServerMessage:
    """The next message of a kind; others are handled as a host does."""
    while True:
        message = await peer.receive()
        assert message is not None, "the stream ended"
        if message.WhichOneof("message") == kind:
            return message
        await peer.handle(message)


async def test_one_process_from_join_to_goodbye(tmp_path: Path) -> None:
    with serving(tmp_path / "state", 1) as server:
        assert server.notified == {"READY=1"}, "no watchdog was asked for"
        (peer,) = await connected(server.join(1), 1)
        try:
            assert server.plane.get_host(ME, peer.identity.host_id).connected
            result = server.plane.apply(ME, Change(), [resource("web")])
            message = await until(peer, "delta")
            assert [one.name for one in message.delta.objects] == ["web"]
            await peer.handle(message)

            def acked() -> bool:
                host = server.plane.get_host(ME, peer.identity.host_id)
                return host.acked_revision == result.revision

            await eventually(acked)
            server.process.send_signal(signal.SIGTERM)
            notice = (await until(peer, "notice")).notice
            assert notice.code == sync_pb2.Notice.CODE_GOING_AWAY
            assert await asyncio.to_thread(server.process.wait, START_S) == 0
            assert not server.plane.get_host(ME, peer.identity.host_id).connected
        finally:
            await peer.close()


async def test_workers_share_the_address_and_one_that_dies_is_replaced(tmp_path: Path) -> None:
    with serving(tmp_path / "state", 2) as server:
        assert server.notified == {"READY=1"}
        places = server.addresses["metrics"]
        assert len(places) == 2
        peers = await connected(server.join(24), 24)
        try:
            streams = [metrics(one)["licplane_sync_streams"] for one in places]
            assert sum(streams) == 24
            assert all(streams), streams  # 1 in 2**23 that chance gives all to one
            server.plane.apply(ME, Change(), [resource("web")])
            for peer in peers:  # a change made in a third process reaches both
                message = await until(peer, "delta")
                assert [one.name for one in message.delta.objects] == ["web"]
                await peer.handle(message)
            evicted = peers[0].identity.host_id
            server.plane.update_host(ME, Change(), evicted, labels={}, status=HostStatus.EVICTED)
            notice = (await until(peers[0], "notice")).notice
            assert notice.code == sync_pb2.Notice.CODE_EVICTED
            before = server.children()
            assert len(before) == 2
            os.kill(before[0], signal.SIGKILL)
            await eventually(lambda: len(set(server.children()) - set(before)) == 1)
            await _comes_back(peers[1])
        finally:
            for peer in peers:
                await peer.close()
        server.process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(server.process.wait, START_S) == 0


def feeds(server: Server, within_s: float) -> bool:
    """Whether the watchdog is fed from now on."""
    server.manager.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while server.manager.recv(100):
            pass
    server.manager.settimeout(within_s)
    try:
        return server.manager.recv(100) == b"WATCHDOG=1"
    except TimeoutError:
        return False


@pytest.mark.parametrize("workers", [1, 2])
def test_the_watchdog_is_fed_while_the_server_gets_on(tmp_path: Path, workers: int) -> None:
    """By the process that systemd watches; one that hangs, as a stopped one does, is silent."""
    with serving(tmp_path / "state", workers, WATCHDOG_USEC=str(int(WATCHDOG_S * 1e6))) as server:
        assert feeds(server, START_S)
        server.process.send_signal(signal.SIGSTOP)
        status = Path(f"/proc/{server.process.pid}/status")
        while "State:\tT" not in status.read_text():  # what it was about to send has been sent
            time.sleep(0.01)
        assert not feeds(server, 4 * WATCHDOG_S)
        server.process.send_signal(signal.SIGCONT)
        assert feeds(server, START_S)


async def test_a_worker_that_hangs_is_replaced(tmp_path: Path) -> None:
    # The other one may be silent for 24 times as long: this machine may be slow.
    with serving(tmp_path / "state", 2, TEST_ALIVE_S="0.6") as server:
        before = server.children()
        os.kill(before[0], signal.SIGSTOP)
        end_s = time.monotonic() + 2 * START_S
        while len(set(server.children()) - set(before)) != 1:
            assert time.monotonic() < end_s, "it is not replaced"
            await asyncio.sleep(0.1)
        assert set(server.children()) & set(before) == {before[1]}, "and no other"


async def test_a_loop_that_hangs_does_not_feed_the_watchdog(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        monkeypatch.setenv("WATCHDOG_USEC", "200000")
        task = asyncio.create_task(feed_watchdog())
        await asyncio.sleep(0.05)
        assert manager.recv(100) == b"WATCHDOG=1"
        with contextlib.suppress(BlockingIOError):
            while manager.recv(100):  # more of them, where this machine is slow
                pass
        time.sleep(0.5)  # noqa: ASYNC251 - what is tried
        with pytest.raises(BlockingIOError):
            manager.recv(100)
        await asyncio.sleep(0.05)
        assert manager.recv(100) == b"WATCHDOG=1"
        task.cancel()


async def _comes_back(peer: Peer) -> None:
    """A host is served again, whichever worker it comes to."""
    end_s = time.monotonic() + START_S
    while True:
        await peer.close()
        peer.notices.clear()
        try:
            await peer.open()
            await peer.sync()
        except (grpc.aio.AioRpcError, ConnectionError):
            assert time.monotonic() < end_s, "it is not served any more"
            await asyncio.sleep(0.1)
        else:
            return


async def test_workers_end_with_the_process_that_started_them(tmp_path: Path) -> None:
    with serving(tmp_path / "state", 2) as server:
        children = server.children()
        assert len(children) == 2
        server.process.kill()
        await eventually(lambda: not any(Path(f"/proc/{pid}").exists() for pid in children))


@pytest.mark.parametrize("workers", [1, 2])
def test_a_store_that_does_not_open_is_an_error_with_a_way_out(
    tmp_path: Path, workers: int
) -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "tests.unit.licplane.api.serving",
            str(tmp_path / "absent"),
            str(workers),
        ],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=START_S,
        check=False,
    )
    assert done.returncode == 1
    assert "PlaneError" in done.stderr


async def test_certificates_and_administrators_over_the_two_listeners(tmp_path: Path) -> None:
    with serving(tmp_path / "state", 1) as server:
        join = server.join(2)
        one, other = await enroll(join), await enroll(join)
        control, public = server.addresses["control"], server.addresses["public"]
        key = serialization.load_pem_private_key(one.key_pem, None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        async with (
            grpc.aio.secure_channel(control, one.credentials(), OPTIONS) as mutual,
            grpc.aio.secure_channel(
                public, grpc.ssl_channel_credentials(one.ca_pem), OPTIONS
            ) as anonymous,
        ):
            renewed = await enrollment_pb2_grpc.EnrollmentStub(mutual).Renew(
                enrollment_pb2.RenewRequest(csr=make_csr(key), counter=one.counter)
            )
            assert renewed.host_id == one.host_id
            assert renewed.control_address == control
            again = enrollment_pb2_grpc.EnrollmentStub(anonymous).Reenroll
            mine = await again(_proof(one.host_id, key, one.counter))
            assert mine.host_id == one.host_id
            answers = set()
            for host_id in (other.host_id, str(uuid.uuid4()), "x' OR 1=1 --", "../" * 9):
                with pytest.raises(grpc.aio.AioRpcError) as failed:
                    await again(_proof(host_id, key, other.counter))
                answers.add((failed.value.code(), failed.value.details()))
            assert len(answers) == 1  # a host of somebody else's, and none at all
            assert answers.pop()[0] is grpc.StatusCode.UNAUTHENTICATED
        made = server.plane.create_admin(
            ME, Change(), name="auditor", role=Role.AUDITOR, means="token", ttl_s=600
        )
        async with grpc.aio.secure_channel(
            public, grpc.ssl_channel_credentials(one.ca_pem), OPTIONS
        ) as channel:
            admin = admin_pb2_grpc.AdminStub(channel)
            metadata = (("authorization", f"Bearer {made.token}"),)
            hosts = await admin.ListHosts(admin_pb2.ListHostsRequest(), metadata=metadata)
            assert {host.host_id for host in hosts.hosts} == {one.host_id, other.host_id}
            assert (
                await admin.VerifyAudit(admin_pb2.VerifyAuditRequest(), metadata=metadata)
            ).intact
            with pytest.raises(grpc.aio.AioRpcError) as failed:
                await admin.UpdateHost(
                    admin_pb2.UpdateHostRequest(host=one.host_id, labels={"a": "b"}),
                    metadata=metadata,
                )
            assert failed.value.code() is grpc.StatusCode.PERMISSION_DENIED
            server.plane.revoke_admin(ME, Change(), "auditor")
            with pytest.raises(grpc.aio.AioRpcError) as failed:
                await admin.ListHosts(admin_pb2.ListHostsRequest(), metadata=metadata)
            assert failed.value.code() is grpc.StatusCode.UNAUTHENTICATED


def _proof(
    host_id: str, key: ec.EllipticCurvePrivateKey, counter: bytes
) -> enrollment_pb2.ReenrollRequest:
    """A request to enrol again, signed by a key."""
    csr, at_ms = make_csr(key), time.time_ns() // 1_000_000
    signed = b"\0".join((b"licagent-reenroll-v1", host_id.encode(), str(at_ms).encode(), csr))
    return enrollment_pb2.ReenrollRequest(
        host_id=host_id,
        csr=csr,
        counter=counter,
        signed_at_unix_ms=at_ms,
        signature=key.sign(signed, ec.ECDSA(hashes.SHA256())),
    )
