# SPDX-License-Identifier: Apache-2.0
"""Deliveries: signed, again until taken, never as another one; commands from one folder only."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import json
import socket
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from tests.unit.licplane.service.world import ROOT, World

from licplane.service.core import Core
from licplane.service.events import cloud_event, outbox
from licplane.service.outbox import GIVEN_UP_MS, Outbox, retry_ms, secret_bytes, signed_headers
from licplane.service.requests import Change, Document
from licplane.store.deliveries import Delivery

SECRET = "0123456789abcdef"


class Receiver:
    """Somebody's webhook."""

    def __init__(self) -> None:
        self.answers: list[int] = []
        self.got: list[tuple[dict[str, str], bytes]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                headers = {name.lower(): value for name, value in self.headers.items()}
                outer.got.append((headers, body))
                self.send_response(outer.answers.pop(0) if outer.answers else 204)
                self.send_header("location", outer.url)
                self.end_headers()

            def log_message(self, *unused: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/hook"


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    made = Receiver()
    thread = threading.Thread(target=made.server.serve_forever, daemon=True)
    thread.start()
    yield made
    made.server.shutdown()
    made.server.server_close()
    thread.join()


def waiting(world: World, notify: dict[str, object]) -> Delivery:
    """A delivery of a trigger that notifies so."""
    trigger = {
        "name": "t", "meters": ["cpu_ns"], "unit": "core-hour", "thresholds": [1],
        "notify": [notify],
    }  # fmt: skip
    document = Document("trigger", "t", json.dumps(trigger))
    world.plane.money.apply(ROOT, Change(), [document], delete=False)
    from licplane.service.billing.reading import read_trigger

    event = cloud_event("x", "id-1", "acme", world.clock.now_ms, {"n": 1})
    (made,) = outbox("trigger", "t", event, read_trigger(trigger).notify, world.clock.now_ms)
    with world.store.recording() as recorder:
        assert recorder.put_deliveries([made]) == 1
        assert recorder.put_deliveries([replace(made, event="{}")]) == 0
    return made


def state(world: World) -> Delivery:
    with world.store.reading() as reader:
        (found,) = reader.deliveries()
    return found


def sender(world: World, commands: str = "") -> Outbox:
    settings = replace(world.plane.settings, commands_folder=commands)
    return Outbox(Core(world.store, None, settings, world.clock))


def test_a_webhook_is_signed_and_tried_again_as_the_same(world: World, receiver: Receiver) -> None:
    made = waiting(world, {"webhook": receiver.url, "secret": SECRET})
    receiver.answers = [500, 302, 200]
    box = sender(world)
    for attempt in range(1, 4):
        assert box.deliver() == 1
        assert state(world).attempts == attempt
        assert box.deliver() == 0  # not before its time
        world.clock.pass_s(60)
    assert (state(world).state, state(world).problem) == ("delivered", "")
    assert len(receiver.got) == 3
    assert {body for _, body in receiver.got} == {made.event.encode()}
    for headers, body in receiver.got:
        assert headers["webhook-id"] == headers["idempotency-key"] == made.delivery
        assert headers["content-type"] == "application/cloudevents+json"
        words = f"{made.delivery}.{headers['webhook-timestamp']}.".encode() + body
        digest = hmac.new(SECRET.encode(), words, hashlib.sha256).digest()
        assert headers["webhook-signature"] == f"v1,{base64.b64encode(digest).decode()}"


def test_nobody_there_is_tried_until_it_is_given_up(world: World, receiver: Receiver) -> None:
    waiting(world, {"webhook": "http://127.0.0.1:1/", "secret": SECRET})
    box = sender(world)
    box.deliver()
    assert state(world).state == "waiting"
    assert "ConnectError" in state(world).problem
    world.clock.pass_s(GIVEN_UP_MS / 1000)
    box.deliver()
    assert state(world).state == "failed"


def test_what_is_delivered_stays_so_whoever_is_slower(world: World, receiver: Receiver) -> None:
    made = waiting(world, {"webhook": receiver.url, "secret": SECRET})
    sender(world).deliver()
    with world.store.recording() as recorder:
        recorder.mark_delivery(replace(made, attempts=1, problem="no answer"))
    assert (state(world).state, state(world).problem) == ("delivered", "")


def test_who_no_longer_leads_delivers_nothing(world: World, receiver: Receiver) -> None:
    waiting(world, {"webhook": receiver.url, "secret": SECRET})
    assert sender(world).deliver(lambda _: False) == 0
    assert (receiver.got, state(world).attempts) == ([], 0)


def test_a_round_ends_though_receivers_are_slow(
    world: World, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = waiting(world, {"webhook": receiver.url, "secret": SECRET})
    with world.store.recording() as recorder:
        recorder.put_deliveries([replace(made, delivery=f"{n:064x}") for n in range(3)])
    monkeypatch.setattr("licplane.service.outbox.ROUND_S", 0.0)
    assert [sender(world).deliver() for _ in range(5)] == [1, 1, 1, 1, 0]


def test_the_lead_holds_while_something_is_delivered(world: World, receiver: Receiver) -> None:
    """Another replica that looks while a receiver takes its time leaves it alone."""
    other = world.again()
    seen: list[bool] = []
    waiting(world, {"webhook": receiver.url, "secret": SECRET})
    real = Outbox._send

    def slow(box: Outbox, one: Delivery, notify: Any) -> None:
        world.clock.pass_s(19)
        seen.append(other.money.keep())
        real(box, one, notify)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Outbox, "_send", slow)
        assert world.plane.money.keep()
    assert seen == [False]
    assert state(world).state == "delivered"


def test_a_receiver_that_never_stops_talking_is_not_listened_to(world: World) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}/"
        ended = threading.Event()

        def talk() -> None:
            connection, _ = server.accept()
            with connection, contextlib.suppress(OSError):
                connection.recv(65_536)
                connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\n")
                while not ended.wait(0.05):
                    connection.sendall(b"x")

        thread = threading.Thread(target=talk)
        thread.start()
        waiting(world, {"webhook": url, "secret": SECRET})
        sender(world).deliver()
        ended.set()
        thread.join()
    assert state(world).state == "delivered"


def test_410_ends_it(world: World, receiver: Receiver) -> None:
    waiting(world, {"webhook": receiver.url, "secret": SECRET})
    receiver.answers = [410]
    sender(world).deliver()
    assert state(world).state == "failed"


def test_a_secret_in_a_file(world: World, receiver: Receiver, tmp_path: Path) -> None:
    file = tmp_path / "secret"
    waiting(world, {"webhook": receiver.url, "secret_file": str(file)})
    sender(world).deliver()
    assert "its secret cannot be read" in state(world).problem
    file.write_text("whsec_" + base64.b64encode(b"k" * 24).decode() + "\n")
    world.clock.pass_s(60)
    sender(world).deliver()
    headers, body = receiver.got[0]
    at = int(headers["webhook-timestamp"])
    assert signed_headers(b"k" * 24, headers["webhook-id"], at, body) == {
        name: value for name, value in headers.items() if name.startswith("webhook-")
    }


def test_commands_run_from_the_servers_folder_only(world: World, tmp_path: Path) -> None:
    made = waiting(world, {"command": "tell"})
    sender(world).deliver()
    assert "runs no commands" in state(world).problem
    folder, told = tmp_path / "commands", tmp_path / "told"
    folder.mkdir()
    program = folder / "tell"
    program.write_text(f'#!/bin/sh\necho failed >&2\ncat > "{told}"\n[ -e "{told}.ok" ]\n')
    program.chmod(0o755)
    world.clock.pass_s(60)
    sender(world, str(folder)).deliver()
    assert state(world).problem == "it ended with 1: failed"
    (tmp_path / "told.ok").touch()
    world.clock.pass_s(60)
    sender(world, str(folder)).deliver()
    assert state(world).state == "delivered"
    assert told.read_text() == made.event


def test_retries_come_later_each_time_and_secrets_are_read() -> None:
    assert all(3_750 <= retry_ms(1) <= 6_250 for _ in range(20))
    assert retry_ms(50) <= 4_500_000
    assert secret_bytes("whsec_!!") == b"whsec_!!"
    assert secret_bytes("plain text") == b"plain text"
