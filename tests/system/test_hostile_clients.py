# SPDX-License-Identifier: Apache-2.0
"""Clients that mean harm, on the real daemon's socket, while it enforces and answers root."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
from tests.system.harness.scene import HOLDER, STRANGER, Scene, eventually


def connect(scene: Scene) -> socket.socket:
    found = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    found.settimeout(20)
    try:
        found.connect(str(scene.agent.folder / "run" / "licagent.sock"))
    except OSError:  # its backlog is full
        found.close()
        raise
    return found


def works(scene: Scene) -> None:
    """The daemon answers root, a revocation takes effect, and who may connect may."""
    assert scene.cli("status", "--timeout", "20").status == 0
    assert (scene.connect(HOLDER), scene.connect(STRANGER)) == ("ok", "ENOKEY")
    jti = f"short-{time.monotonic_ns()}"
    text = scene.agent.token(jti, ["db"])
    assert scene.cli("license", "add", "-", "--timeout", "20", stdin=text).status == 0
    assert scene.ask("license", "revoke", jti, "--reason", "t", "--timeout", "20")["changed"]
    assert scene.cli("license", "remove", jti, "--timeout", "20").status == 0


MALFORMED = {
    "no JSON": b"hello\n",
    "no UTF-8": b"\xff\xfe\n",
    "zeros": b"\0" * 1000 + b"\n",
    "an array": b"[1, 2]\n",
    "deep": b"[" * 60_000 + b"\n",
    "too long": b"x" * 200_000,
    "unknown method": b'{"id": 1, "method": "no.such", "params": {}}\n',
    "wrong types": b'{"id": 1, "method": "explain", "params": {"pid": "x"}}\n',
    "numbers": b'{"id": 1, "method": "explain", "params": {"pid": 1e999}}\n',
    "twice": b'{"id": 1, "id": 2, "method": "status", "method": "detach"}\n',
}


@pytest.mark.parametrize("what", MALFORMED)
def test_what_is_malformed_is_refused_and_harms_nobody(scene: Scene, what: str) -> None:
    with connect(scene) as client:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            client.sendall(MALFORMED[what])
        reply = b""
        with contextlib.suppress(ConnectionResetError):
            while not reply.endswith(b"\n"):
                part = client.recv(65536)
                if not part:
                    break
                reply += part
    assert b'"error"' in reply
    assert json.loads(reply)["error"]["code"] in {
        "PROTOCOL",
        "UNKNOWN_METHOD",
        "INVALID_PARAMS",
    }
    works(scene)


@contextlib.contextmanager
def silent(scene: Scene) -> Iterator[None]:
    """Clients that say nothing, or half a line, or ask and never read."""
    with ExitStack() as stack:
        for number in range(40):
            client = stack.enter_context(connect(scene))
            if number % 3 == 1:
                client.sendall(b'{"id": 1, "met')
            elif number % 3 == 2:
                client.sendall(
                    b'{"id": 1, "method": "events", "params": {"follow": true, "limit": 1000000}}\n'
                )
        yield


@contextlib.contextmanager
def flooding(scene: Scene) -> Iterator[None]:
    """Clients that connect and leave, and clients that ask without end."""
    stop = threading.Event()

    def come_and_go() -> None:
        while not stop.is_set():
            with contextlib.suppress(OSError), connect(scene) as client:
                client.sendall(b'{"id": 1, "method": "status", "params": {}}\n')

    def ask() -> None:
        line = b'{"id": 1, "method": "policy.show", "params": {}}\n'
        while not stop.is_set():
            with contextlib.suppress(OSError), connect(scene) as client:
                client.settimeout(2)
                while not stop.is_set():
                    client.sendall(line * 5)
                    for _reply in range(5):
                        client.recv(1 << 20)

    threads = [threading.Thread(target=work) for work in (come_and_go, ask)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()


@pytest.mark.parametrize("harm", [silent, flooding])
def test_the_daemon_goes_on_beside_them(
    scene: Scene, harm: Callable[[Scene], contextlib.AbstractContextManager[None]]
) -> None:
    descriptors = len(os.listdir(f"/proc/{scene.agent.pid}/fd"))
    with harm(scene):
        works(scene)
    eventually(
        lambda: len(os.listdir(f"/proc/{scene.agent.pid}/fd")) <= descriptors + 2,
        "their connections are closed",
    )
    assert scene.agent.process is not None
    assert scene.agent.process.poll() is None
