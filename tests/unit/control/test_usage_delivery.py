# SPDX-License-Identifier: Apache-2.0
"""What the host's side of delivery makes of a control plane that is slow, broken or lies."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import grpc.aio
import pytest
from tests.support.usage import Spool, record

from licagent.control import usage
from licagent.control.interface import ControlSettings
from licagent.control.usage_source import UsageProgress
from licapi.control.v1 import telemetry_pb2

SETTINGS = ControlSettings(boot_id="b", agent_version="0", backoff_first_ms=5, backoff_cap_ms=20)
Script = Callable[["Call"], Awaitable[None]]


class Call:
    """One stream, as the control plane sees it."""

    def __init__(self, context: Any, service: Server) -> None:
        self.context = context
        self.server = service

    async def read(self) -> telemetry_pb2.UsageUp:
        message = await self.context.read()
        assert message is not grpc.aio.EOF, "the host ended the stream"
        self.server.heard.append(message)
        return message

    async def batch(self) -> telemetry_pb2.UsageBatch:
        return (await self.read()).batch

    async def welcome(self, sequence: int = 0, chain: bytes = b"", window: int = 4) -> None:
        hello = (await self.read()).hello
        self.server.hellos.append(hello)
        welcome = telemetry_pb2.UsageWelcome(
            epoch=hello.epoch, acked_sequence=sequence, acked_hash=chain, window=window
        )
        await self.context.write(telemetry_pb2.UsageDown(welcome=welcome))

    async def ack(self, sequence: int, chain: bytes, **more: Any) -> None:
        ack = telemetry_pb2.UsageAck(
            **{"epoch": self.server.hellos[-1].epoch, "sequence": sequence, "hash": chain, **more}
        )
        await self.context.write(telemetry_pb2.UsageDown(ack=ack))

    async def take(self, **more: Any) -> telemetry_pb2.UsageBatch:
        """Read a batch and acknowledge it."""
        batch = await self.batch()
        await self.ack(batch.first_sequence + len(batch.records) - 1, batch.hash, **more)
        return batch


class Server:
    """Plays one script after the other, one for each stream; the last one goes on."""

    def __init__(self, *scripts: Script) -> None:
        self.scripts = list(scripts)
        self.heard: list[telemetry_pb2.UsageUp] = []
        self.hellos: list[telemetry_pb2.UsageHello] = []
        self.streams = 0

    async def usage(self, _requests: Any, context: Any) -> None:
        self.streams += 1
        script = self.scripts.pop(0) if len(self.scripts) > 1 else self.scripts[0]
        await script(Call(context, self))

    @contextlib.asynccontextmanager
    async def serving(self, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[None]:
        server = grpc.aio.server()
        handler = grpc.stream_stream_rpc_method_handler(
            self.usage,
            request_deserializer=telemetry_pb2.UsageUp.FromString,
            response_serializer=telemetry_pb2.UsageDown.SerializeToString,
        )
        name = "licapi.control.v1.Telemetry"
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(name, {"Usage": handler}),)
        )
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()

        def channel(*_: object) -> grpc.aio.Channel:
            return grpc.aio.insecure_channel(
                f"127.0.0.1:{port}", [("grpc.use_local_subchannel_pool", 1)]
            )

        monkeypatch.setattr(usage, "control_channel", channel)
        monkeypatch.setattr("licagent.control.usage_stream._LOOK_S", 0.02)
        try:
            yield
        finally:
            await server.stop(None)


class Delivery:
    """Delivery of a spool to a server, running."""

    def __init__(self, spool: Spool) -> None:
        self.spool = spool
        self.progress = UsageProgress()
        self.alarms: list[str] = []

    def told(self, progress: UsageProgress) -> None:
        self.progress = progress
        if progress.alarm and progress.alarm not in self.alarms:
            self.alarms.append(progress.alarm)

    async def until(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(20):
            while not condition():  # noqa: ASYNC110 -- what it looks at is not ours
                await asyncio.sleep(0.01)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        task = asyncio.ensure_future(
            usage.deliver_for_ever(None, "plane", SETTINGS, self.spool, told=self.told)  # type: ignore[arg-type]
        )
        try:
            yield
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task


@pytest.fixture
def spool() -> Spool:
    made = Spool(host_id="h")
    for number in range(6):
        made.commit([record(number * 3 + k) for k in range(3)])
    return made


async def takes_all(call: Call) -> None:
    state = call.server.__dict__.setdefault("at", [0, b""])
    await call.welcome(*state)
    while True:
        message = await call.read()
        if message.HasField("gap"):
            state[:] = message.gap.last_sequence, message.gap.next_previous_hash
        else:
            batch = message.batch
            state[:] = batch.first_sequence + len(batch.records) - 1, batch.hash
        await call.ack(*state)


async def test_all_is_delivered_and_what_comes_later(monkeypatch: Any, spool: Spool) -> None:
    server, delivery = Server(takes_all), Delivery(spool)
    async with server.serving(monkeypatch), delivery.running():
        await delivery.until(lambda: spool.acked[0] == 18)
        spool.lose(4)
        spool.commit([record(99)])
        await delivery.until(lambda: spool.acked[0] == 23)
        await delivery.until(lambda: delivery.progress.in_flight_records == 0)
        assert delivery.progress.is_connected
        assert delivery.progress.acknowledged_records == 23
    assert server.streams == 1
    assert delivery.alarms == []


async def test_an_ack_may_come_before_the_write_returns(monkeypatch: Any, spool: Spool) -> None:
    """On a busy machine the control plane is faster than our own event loop."""
    write = grpc.aio._call.StreamStreamCall.write

    async def slow(self: Any, message: Any) -> None:
        await write(self, message)
        await asyncio.sleep(0.05)

    monkeypatch.setattr("grpc.aio._call.StreamStreamCall.write", slow, raising=False)

    async def script(call: Call) -> None:
        await call.welcome()
        while True:
            await call.take()

    server = Server(script)
    delivery = Delivery(spool)
    async with server.serving(monkeypatch), delivery.running():
        await delivery.until(lambda: delivery.progress.acknowledged_records == 18)
    assert delivery.alarms == []
    assert server.streams == 1


async def test_no_more_than_the_window_is_on_its_way(monkeypatch: Any, spool: Spool) -> None:
    async def slow(call: Call) -> None:
        await call.welcome(window=2)
        first, _ = await call.batch(), await call.batch()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                await call.read()
        await call.ack(3, first.hash)
        await asyncio.sleep(60)

    server, delivery = Server(slow), Delivery(spool)
    async with server.serving(monkeypatch), delivery.running():
        await delivery.until(lambda: spool.acked[0] == 3)


async def test_a_pause_is_kept(monkeypatch: Any, spool: Spool) -> None:
    async def tired(call: Call) -> None:
        await call.welcome(window=1)
        batch = await call.batch()
        began_s = asyncio.get_running_loop().time()  # no later than the host hears of the pause
        await call.ack(3, batch.hash, pause_ms=700)
        await call.batch()
        waits.append(asyncio.get_running_loop().time() - began_s)
        await asyncio.sleep(60)

    waits: list[float] = []
    server, delivery = Server(tired), Delivery(spool)
    async with server.serving(monkeypatch), delivery.running():
        await delivery.until(lambda: waits)
    assert waits[0] >= 0.69


async def test_a_lost_ack_costs_another_sending(monkeypatch: Any, spool: Spool) -> None:
    async def dies(call: Call) -> None:
        await call.welcome()
        await call.batch()
        await call.context.abort(grpc.StatusCode.UNAVAILABLE, "gone")

    server, delivery = Server(dies, dies, takes_all), Delivery(spool)
    async with server.serving(monkeypatch), delivery.running():
        await delivery.until(lambda: spool.acked[0] == 18)
    firsts = [one.batch.first_sequence for one in server.heard if one.HasField("batch")]
    assert firsts.count(1) == 3
    assert delivery.alarms == []


@pytest.mark.parametrize(
    ("words", "lie"),
    [
        ("end of nothing", lambda b: {"sequence": 10_000, "hash": b.hash}),
        ("end of nothing", lambda b: {"sequence": 2, "hash": b.hash}),
        ("end of nothing", lambda b: {"sequence": 3, "hash": b.hash, "epoch": 2}),
        ("another hash", lambda b: {"sequence": 3, "hash": bytes(32)}),
        ("another hash", lambda b: {"sequence": 3, "hash": b""}),
    ],
)
async def test_no_ack_is_believed_that_cannot_be_true(
    monkeypatch: Any, spool: Spool, words: str, lie: Callable[[Any], dict[str, Any]]
) -> None:
    async def lies(call: Call) -> None:
        await call.welcome(window=1)
        fields = lie(await call.batch())
        await call.ack(fields.pop("sequence"), b"", **fields)
        await asyncio.sleep(60)

    server, delivery = Server(lies, takes_all), Delivery(spool)
    async with server.serving(monkeypatch), delivery.running():
        await delivery.until(lambda: delivery.alarms)
        await delivery.until(lambda: spool.acked[0] == 18)
    assert words in delivery.alarms[0]
    assert server.streams == 2


@pytest.mark.parametrize("at", [(3, bytes(32)), (10_000, bytes(32)), (2, bytes(32))])
async def test_another_chain_is_given_up_only_after_several_words(
    monkeypatch: Any, spool: Spool, at: tuple[int, bytes]
) -> None:
    async def has_another(call: Call) -> None:
        await call.welcome(*at)
        await asyncio.sleep(60)

    async def takes_the_new_epoch(call: Call) -> None:
        await call.welcome()
        assert call.server.hellos[-1].epoch == 2
        await call.take()
        await asyncio.sleep(60)

    server = Server(has_another, has_another, has_another, takes_the_new_epoch)
    delivery = Delivery(spool)
    async with server.serving(monkeypatch), delivery.running():
        await delivery.until(lambda: spool.given_up)
        assert "never sent" in delivery.alarms[0]
        spool.commit([record(1)])
        await delivery.until(lambda: spool.acked[0] == 1)
    assert [hello.epoch for hello in server.hellos] == [1, 1, 1, 2]


async def test_an_older_copy_of_the_control_plane_gets_it_again(
    monkeypatch: Any, spool: Spool
) -> None:
    batch = spool.items[-1]
    spool.acknowledge(batch.last, spool.hash)
    server, delivery = Server(takes_all), Delivery(spool)
    async with server.serving(monkeypatch), delivery.running():
        await delivery.until(lambda: len(server.heard) == 7)
    assert delivery.alarms == []


async def test_refused_records_raise_an_alarm(monkeypatch: Any, spool: Spool) -> None:
    async def refuses(call: Call) -> None:
        await call.welcome()
        refused = [telemetry_pb2.UsageRefusal(sequence=2, reason="too\nlong")]
        await call.take(refused=refused)
        await asyncio.sleep(60)

    server, delivery = Server(refuses), Delivery(spool)
    async with server.serving(monkeypatch), delivery.running():
        await delivery.until(lambda: delivery.progress.refused_records == 1)
    assert "record 2 of epoch 1: too?long" in delivery.alarms[0]
    assert spool.acked[0] == 3


async def test_nonsense_is_another_try(monkeypatch: Any, spool: Spool) -> None:
    async def silent(call: Call) -> None:
        await call.read()

    async def acks_first(call: Call) -> None:
        await call.read()
        await call.context.write(telemetry_pb2.UsageDown(ack=telemetry_pb2.UsageAck()))
        await asyncio.sleep(60)

    async def other_epoch(call: Call) -> None:
        await call.read()
        welcome = telemetry_pb2.UsageWelcome(epoch=7)
        await call.context.write(telemetry_pb2.UsageDown(welcome=welcome))
        await asyncio.sleep(60)

    async def empty(call: Call) -> None:
        await call.welcome()
        await call.context.write(telemetry_pb2.UsageDown())
        await asyncio.sleep(60)

    server = Server(silent, acks_first, other_epoch, empty, takes_all)
    delivery = Delivery(spool)
    async with server.serving(monkeypatch), delivery.running():
        await delivery.until(lambda: spool.acked[0] == 18)
    assert spool.given_up == []


async def test_a_spool_that_cannot_be_read_is_tried_again(monkeypatch: Any, spool: Spool) -> None:
    broken = [True, True]
    batches = spool.batches

    def fails(*args: Any, **more: Any) -> Any:
        if broken:
            broken.pop()
            raise OSError(5, "Input/output error")
        return batches(*args, **more)

    spool.batches = fails  # type: ignore[method-assign]
    server, delivery = Server(takes_all), Delivery(spool)
    async with server.serving(monkeypatch), delivery.running():
        await delivery.until(lambda: spool.acked[0] == 18)
    assert server.streams == 3
