# SPDX-License-Identifier: Apache-2.0
"""A real host under a control plane: revocation to the last byte, a small push, its memory."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tests.bench.control_cases import admin, percentile, rss_kib
from tests.bench.table import Row
from tests.kernel.harness.programs import PYTHON, Program, start
from tests.system.harness.controlplane import ControlPlane, Document, Host, binding, license

from licapi.control.v1 import admin_pb2

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.bench.context import Bench
    from tests.system.harness.adminapi import AdminClient

UID: Final = 70_000
SENDER: Final = str(Path(__file__).with_name("control_sender.py"))
PACE_S: Final = 0.001


@contextmanager
def host() -> Iterator[Host]:
    """A control plane and a host that joined it."""
    with ControlPlane() as plane:
        plane.make_keys()
        plane.start()
        with Host(plane) as found:
            found.agent.start()
            found.enroll()
            yield found


class Clock:
    """Takes connections and notes when the last byte of each came."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=16)
        self.port: int = self._listener.getsockname()[1]
        self.last_ns = 0
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                made, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._read, args=(made,), daemon=True).start()

    def _read(self, made: socket.socket) -> None:
        # The other end of a cut connection may never hear of it: it waits here until the end.
        with made, contextlib.suppress(OSError):
            while made.recv(65536):
                self.last_ns = time.monotonic_ns()

    def close(self) -> None:
        """Take no more."""
        self._listener.close()


def revocation(bench: Bench) -> list[Row]:
    """`license revoke` returns -> the last byte that a socket of this host got through."""
    rounds, typed = (20, 3) if bench.quick else (100, 10)
    clock = Clock()
    try:
        with host() as found:
            total = rounds + typed
            where = {"cidr": "127.0.0.1/32", "ports": [str(clock.port)], "protocol": "tcp"}
            table = {"name": "db", "kind": "network", "mode": "enforce", "destinations": [where]}
            found.plane.apply(
                Document("resource", table),
                *(license(f"round-{number}") for number in range(total)),
                *(binding(f"round-{number}", UID + number) for number in range(total)),
            )
            with admin(found.plane) as api:
                after_ms = [_round(found, clock, api, number) for number in range(rounds)]
            typed_ms = [_round(found, clock, None, rounds + number) for number in range(typed)]
    finally:
        clock.close()
    p99 = percentile(after_ms, 0.99)
    words = f"p50 {percentile(after_ms, 0.5):.1f} ms, most {max(after_ms):.1f} ms; over Admin"
    return [
        Row(
            f"license revoke returns -> last byte on a host on this machine, p99 of {rounds}",
            f"{p99:.1f} ms",
            f"{words}; below zero: it was cut before the answer came",
            "<= 50 ms",
            p99 <= 50,
            key="control-revocation",
        ),
        Row(
            f"the same, after the command `licplane license revoke` has ended, most of {typed}",
            f"{max(typed_ms):.1f} ms",
            f"p50 {percentile(typed_ms, 0.5):.1f} ms",
        ),
    ]


def _round(found: Host, clock: Clock, api: AdminClient | None, number: int) -> float:
    """Milliseconds from the end of the revocation to the last byte."""
    name = f"round-{number}"
    with _sender(found, clock.port, UID + number):
        time.sleep(0.1)
        if api is not None:
            api.set_license_state(name)
        else:
            found.plane.do("license", "revoke", name)
        done_ns = time.monotonic_ns()
        time.sleep(0.4)
        last_ns = clock.last_ns
    if last_ns > done_ns + 300_000_000:
        raise RuntimeError(f"bytes still come after the revocation:\n{found.agent.log()}")
    return (last_ns - done_ns) / 1e6


@contextmanager
def _sender(found: Host, port: int, uid: int) -> Iterator[Program]:
    """A program that sends a byte every millisecond, once its license is in force."""
    argv = [*PYTHON, SENDER, str(port), str(PACE_S)]
    end = time.monotonic() + 30
    while True:
        with start(found.agent.cgroup, argv, uid=uid) as program:
            if program.line() == {"connected": True}:
                yield program
                return
        if time.monotonic() > end:
            raise RuntimeError(f"user {uid} got no license: {found.state()}")
        time.sleep(0.1)


# ------------------------------------------------------------------------------------- pushes


def push(bench: Bench) -> list[Row]:
    """One changed binding among 100,000: what the host is sent, and until it is in the kernel."""
    sizes = (100, 2_000) if bench.quick else (1_000, 100_000)
    found_bytes, found_s = {}, {}
    for size in sizes:
        with host() as found, admin(found.plane) as api:
            _fill(found, api, size)
            found_bytes[size], found_s[size] = _push(found, api, 2 if bench.quick else 5)
    small, large = sizes
    ratio = found_s[large] / found_s[small]
    return [
        Row(
            f"a push with 1 changed binding out of {large:,}: sent to the host",
            f"{found_bytes[large]:,} bytes",
            f"{found_bytes[small]:,} bytes out of {small:,}",
            "of the change",
            found_bytes[large] <= 2 * found_bytes[small],
            key="push-bytes",
        ),
        Row(
            f"a push with 1 changed binding out of {large:,}: change requested -> in the kernel",
            f"{found_s[large] * 1000:.0f} ms",
            f"{found_s[small] * 1000:.0f} ms out of {small:,}: {ratio:.1f} x",
            "of the change: <= 3 x",
            ratio <= 3,
            key="push-time",
        ),
    ]


def _fill(found: Host, api: AdminClient, size: int) -> None:
    documents = [found.resource(), license(), *(binding(uid=UID + n) for n in range(size))]
    for at in range(0, len(documents), 5_000):
        _apply(api, documents[at : at + 5_000])
    revision = _apply(api, [binding(uid=UID)]).revision or _revision(found)
    _until_acked(found, api, revision, 600)


def _apply(api: AdminClient, documents: list[Document]) -> admin_pb2.ChangeResponse:
    made = [
        admin_pb2.Document(kind=d.kind, name=d.name, json=json.dumps(d.table)) for d in documents
    ]
    answer: admin_pb2.ChangeResponse = api.stub.Apply(
        admin_pb2.ApplyRequest(change=api.change(), documents=made), timeout=600
    )
    return answer


def _revision(found: Host) -> int:
    return max(int(row["revision"]) for row in found.plane.hosts().values())


def _until_acked(found: Host, api: AdminClient, revision: int, limit_s: float) -> None:
    end = time.monotonic() + limit_s
    while True:
        hosts = api.stub.ListHosts(admin_pb2.ListHostsRequest(), timeout=60).hosts
        if hosts and all(each.acked_revision >= revision for each in hosts):
            return
        if time.monotonic() > end:
            raise RuntimeError(f"revision {revision} is not in the kernel: {found.state()}")
        time.sleep(0.01)


def _until_in_kernel(found: Host, revision: int, limit_s: float) -> None:
    """As the daemon itself says: what the server has on record comes with the next sweep."""
    end = time.monotonic() + limit_s
    while found.agent.call("status")["control"]["revision"] < revision:
        if time.monotonic() > end:
            raise RuntimeError(f"revision {revision} is not in the kernel: {found.state()}")
        time.sleep(0.001)


def _push(found: Host, api: AdminClient, rounds: int) -> tuple[int, float]:
    """Bytes to the host and seconds, the medians over some changes."""
    spent, sent = [], []
    for number in range(rounds):
        changed = binding(uid=UID + 7, selectors=[f"unix:uid:{UID * 2 + number}"])
        before = _received(found)
        begun = time.monotonic()
        answer = _apply(api, [changed])
        _until_in_kernel(found, answer.revision, 120)
        spent.append(time.monotonic() - begun)
        sent.append(_received(found) - before)
        time.sleep(0.5)
    return int(percentile([float(n) for n in sent], 0.5)), percentile(spent, 0.5)


def _received(found: Host) -> int:
    """Bytes that the kernel delivered on the daemon's connections to the control plane."""
    import subprocess

    assert found.agent.process is not None
    ours = f"pid={found.agent.process.pid},"
    port = found.plane.control.rpartition(":")[2]
    done = subprocess.run(
        ["ss", "-tinpHO", "state", "established", f"dport = :{port}"],
        capture_output=True,
        text=True,
        check=True,
    )
    words = [word for line in done.stdout.splitlines() if ours in line for word in line.split()]
    assert words, f"no connection of the daemon is among:\n{done.stdout}"
    return sum(int(w.partition(":")[2]) for w in words if w.startswith("bytes_received:"))


# ------------------------------------------------------------------------------------- memory


def memory(bench: Bench) -> list[Row]:
    """The daemon's resident memory with the link up and 1,000 bindings from it."""
    with host() as found, admin(found.plane) as api:
        _fill(found, api, 1_000)
        time.sleep(5 if bench.quick else 30)
        kib = rss_kib(found.agent.pid)
    return [
        Row(
            "daemon's resident memory with the link up, 1,000 bindings from the control plane",
            f"{kib / 1024:.1f} MiB",
            "",
            "<= 80 MiB",
            kib <= 80 * 1024,
            key="linked-memory",
        )
    ]
