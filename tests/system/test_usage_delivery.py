# SPDX-License-Identifier: Apache-2.0
"""Usage from a real ledger into a real control plane on PostgreSQL: each record once, always.

The agent's side is a process of its own (tests/support/usage_agent.py), so that it can be killed;
hostile hosts are written straight from the .proto files.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio
import psycopg
import pytest
from psycopg import sql
from tests.bench.control_peer import OPTIONS, Identity, target
from tests.bench.usage_throughput import (
    check_exactly_once,
    enrolled,
    issue_licenses,
    run_agent,
    start_agent,
    stored,
)
from tests.support.usage import Spool, SpoolBatch, record, sums
from tests.support.usage_agent import Outcome, Settings
from tests.system.harness.controlplane import ControlPlane
from tests.system.harness.peers import joined
from tests.system.harness.scene import eventually

from licapi.control.v1 import telemetry_pb2, telemetry_pb2_grpc
from licplane.api.usage_reading import RecordReader
from licplane.service.usage.verify import UsageVerify
from licplane.service.values import Actor, Role

if TYPE_CHECKING:
    from tests.support.postgres import Postgres

pytest_plugins = ["tests.support.postgres"]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

MORE_S = 200.0


@pytest.fixture(scope="module")
def plane(postgres: Postgres) -> Iterator[ControlPlane]:
    """One control plane on PostgreSQL for the module; each test has hosts of its own."""
    with postgres.database() as url, ControlPlane(database=url) as made:
        made.make_keys()
        # Records of tests have dates of their own: none may be too old to be kept.
        made.do("usage", "retention", "--records", "0", "--hourly", "0")
        made.start()
        issue_licenses(made, "acme-db")  # what tests.support.usage.record charges to
        yield made


@pytest.fixture(scope="module")
def other(plane: ControlPlane) -> Iterator[ControlPlane]:
    """Another server over the same database."""
    with ControlPlane(replica_of=plane) as made:
        made.start()
        yield made


def rows(plane: ControlPlane, statement: str, *values: object) -> list[tuple[Any, ...]]:
    url = plane.database.replace("postgresql+psycopg", "postgresql")
    with psycopg.connect(url, autocommit=True) as connection:
        cursor = connection.execute(statement, values)  # type: ignore[call-overload]
        return cursor.fetchall() if cursor.description else []


def acked(plane: ControlPlane, host_id: str) -> int:
    found = rows(
        plane,
        "SELECT coalesce(sum(acked_sequence), 0) FROM usage_epochs WHERE host_id = %s",
        host_id,
    )
    return int(found[0][0])


def problems(plane: ControlPlane, host_id: str) -> list[str]:
    """What `usage verify` finds."""
    with plane.opened() as service:
        check = UsageVerify(service._core).verify(
            Actor("local:test", Role.ADMIN), RecordReader().read, host_id
        )
    return check.problems


def alarms(plane: ControlPlane, host_id: str) -> dict[str, int]:
    """What the control plane complains of, and how often."""
    found = rows(plane, "SELECT code, count FROM usage_alarms WHERE host_id = %s", host_id)
    return {code: int(count) for code, count in found}


# ------------------------------------------------------------- a real ledger, and what is killed


def test_each_record_once_through_every_death(
    plane: ControlPlane, postgres: Postgres, tmp_path: Path
) -> None:
    """kill -9 of the agent and of the server, a crash of PostgreSQL, cut connections."""
    identity = enrolled(plane)
    total = 45_000
    settings = Settings(
        str(tmp_path / "spool"), identity.write(), plane.control, total, each=500, a_second=8_000
    )

    def kill_agent(process: Any) -> None:
        process.kill()

    def kill_server(_: Any) -> None:
        plane.kill()
        plane.start()

    def crash_postgres(_: Any) -> None:
        postgres.restart()

    def cut_connections(_: Any) -> None:
        postgres.run(
            sql.SQL(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE application_name = 'licplane'"
            )
        )

    deaths = [kill_agent, kill_server, crash_postgres, cut_connections, kill_agent]
    has_ended = False
    while deaths or not has_ended:
        if has_ended:  # too soon to be killed: more is used
            total += 9_000
            settings = dataclasses.replace(settings, records=total)
        with start_agent(settings) as process:
            while deaths and process.poll() is None:
                before = _acked_or_less(plane, identity.host_id)
                wanted = min(before + 2_000, total)
                _until(
                    lambda wanted=wanted: (
                        process.poll() is not None
                        or _acked_or_less(plane, identity.host_id) >= wanted
                    )
                )
                if process.poll() is None:
                    deaths.pop(0)(process)
            out, _ = process.communicate(timeout=300)
            has_ended = process.returncode == 0
            if has_ended:
                assert Outcome(**json.loads(out)).alarms == []
    check_exactly_once(plane.database, identity.host_id, total)
    assert problems(plane, identity.host_id) == []
    assert alarms(plane, identity.host_id) == {}


def _acked_or_less(plane: ControlPlane, host_id: str) -> int:
    """0 while PostgreSQL does not answer."""
    with contextlib.suppress(psycopg.OperationalError):
        return acked(plane, host_id)
    return 0


def _until(condition: Callable[[], object]) -> None:
    end_s = time.monotonic() + MORE_S
    while not condition():
        assert time.monotonic() < end_s
        time.sleep(0.05)


def test_an_outage_and_what_is_used_meanwhile(plane: ControlPlane, tmp_path: Path) -> None:
    """Records wait in the ledger; afterwards the newest are delivered beside the backlog."""
    identity = enrolled(plane)
    away = Settings(str(tmp_path / "spool"), "", records=20_000)
    assert run_agent(away, 300).epochs
    back = dataclasses.replace(
        away,
        identity=identity.write(),
        control=plane.control,
        records=21_000,
        each=100,
        beside=True,
    )
    run_agent(back, 300)
    check_exactly_once(plane.database, identity.host_id, 21_000)
    found = rows(
        plane, "SELECT acked_sequence FROM usage_epochs WHERE host_id = %s", identity.host_id
    )
    assert sorted(found) == [(1_000,), (20_000,)]
    assert problems(plane, identity.host_id) == []


def test_two_servers_over_one_database(
    plane: ControlPlane, other: ControlPlane, tmp_path: Path
) -> None:
    """The host changes servers in the middle, with batches on their way to both."""
    identity = enrolled(plane)
    settings = Settings(
        str(tmp_path / "spool"), identity.write(), plane.control, 20_000, a_second=8_000
    )
    servers = [plane, other]
    for number in range(3):
        at = dataclasses.replace(settings, control=servers[number % 2].control)
        with start_agent(at) as process:
            wanted = min(acked(plane, identity.host_id) + 4_000, 20_000)
            _until(
                lambda process=process, wanted=wanted: (
                    process.poll() is not None or acked(plane, identity.host_id) >= wanted
                )
            )
            assert not process.poll(), "the agent's side failed"
            process.kill()
    run_agent(settings, 300)
    check_exactly_once(plane.database, identity.host_id, 20_000)
    assert problems(plane, identity.host_id) == []


def test_rows_that_somebody_altered_are_found(plane: ControlPlane, tmp_path: Path) -> None:
    identity = enrolled(plane)
    run_agent(Settings(str(tmp_path / "s"), identity.write(), plane.control, 1_000, each=100), 300)
    assert problems(plane, identity.host_id) == []
    where = f"WHERE host_id = '{identity.host_id}' AND"
    batch = f"{where} first_sequence = 201"
    for change, back, words in (
        (
            f"UPDATE usage_records SET cpu_ns = cpu_ns + 1 {where} sequence = 7",
            f"UPDATE usage_records SET cpu_ns = cpu_ns - 1 {where} sequence = 7",
            "record 7: its row has another cpu_ns than the host signed",
        ),
        (
            f"UPDATE usage_records SET license = 'mine' {where} sequence = 9",
            f"UPDATE usage_records SET license = 'license-9' {where} sequence = 9",
            "record 9: its row has another license than the host signed",
        ),
        (
            f"UPDATE usage_batches SET boot_id = 'x' {batch}",
            f"UPDATE usage_batches SET boot_id = '{Settings('', '').boot_id}' {batch}",
            "records 201 to 300: the signature is not the host's",
        ),
        (
            f"UPDATE usage_batches SET payload = payload || 'x' {batch}",
            f"UPDATE usage_batches SET payload = substr(payload, 1, length(payload) - 1) {batch}",
            "records of a batch cannot be read",
        ),
        (f"DELETE FROM usage_records {where} sequence = 1000", "", "its row is missing"),
        (f"DELETE FROM usage_batches {batch}", "", "the ones from 201 on are missing"),
    ):
        rows(plane, change)
        found = problems(plane, identity.host_id)
        assert any(words in one for one in found), (change, found)
        if back:
            rows(plane, back)
            assert problems(plane, identity.host_id) == []


# ------------------------------------------------------------------------- hosts of other people


class UsagePeer:
    """A host on the stream, one message at a time."""

    def __init__(self, identity: Identity, spool: Spool) -> None:
        self.identity = identity
        self.spool = spool
        self._channel: grpc.aio.Channel | None = None
        self.call: Any = None

    async def open(self, address: str = "", **hello: Any) -> telemetry_pb2.UsageWelcome:
        await self.close()
        self._channel = grpc.aio.secure_channel(
            target(address or self.identity.control),
            self.identity.credentials(),
            options=[*OPTIONS, ("grpc.max_send_message_length", 64 << 20)],
        )
        self.call = telemetry_pb2_grpc.TelemetryStub(self._channel).Usage()
        message = self.spool.hello()
        for name, value in hello.items():
            setattr(message.hello, name, value)
        await self.call.write(message)
        return (await self.receive()).welcome

    async def receive(self) -> telemetry_pb2.UsageDown:
        found = await asyncio.wait_for(self.call.read(), 30)
        assert found is not grpc.aio.EOF
        return found

    async def send(self, item: Any) -> telemetry_pb2.UsageAck:
        await self.call.write(item if isinstance(item, telemetry_pb2.UsageUp) else item.message())
        return (await self.receive()).ack

    async def refused(self, item: Any) -> grpc.StatusCode:
        """How the stream ends because of this."""
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await self.send(item)
        return error.value.code()

    async def close(self) -> None:
        if self.call is not None:
            self.call.cancel()
        if self._channel is not None:
            await self._channel.close()


@contextlib.asynccontextmanager
async def peer_of(plane: ControlPlane, **labels: str) -> AsyncIterator[UsagePeer]:
    # Join tokens name the server that was started last.
    identity = dataclasses.replace(await joined(plane, **labels), control=plane.control)
    peer = UsagePeer(identity, Spool(host_id=identity.host_id))
    try:
        yield peer
    finally:
        await peer.close()


def filled(spool: Spool, batches: int, each: int = 20) -> list[SpoolBatch]:
    return [
        spool.commit([record(number * each + k) for k in range(each)]) for number in range(batches)
    ]


def assert_stored(plane: ControlPlane, peer: UsagePeer) -> None:
    found = stored(plane.database, peer.identity.host_id)
    records = peer.spool.records
    counts = dict.fromkeys(("rows", "licensed", "sequences"), len(records))
    assert found == {**counts, **sums(records)}


async def test_repeated_reordered_and_lost_acks(plane: ControlPlane) -> None:
    async with peer_of(plane) as peer:
        first, second, third, fourth = filled(peer.spool, 4)
        assert (await peer.open()).acked_sequence == 0
        ack = await peer.send(first)
        assert (ack.epoch, ack.sequence, ack.hash) == (1, 20, first.hash)
        # Again, on the same stream: no row, and the same word.
        assert (await peer.send(first)).sequence == 20
        # The ack of this one is lost with the connection; the host sends it again.
        await peer.call.write(second.message())
        await asyncio.sleep(0)
        welcome = await peer.open()
        if welcome.acked_sequence == 20:
            # The one whose ack was lost may still be on its way into the database.
            with contextlib.suppress(grpc.aio.AioRpcError):
                await peer.send(second)
        eventually(lambda: acked(plane, peer.identity.host_id) == 40, "the second is stored")
        # Out of order: not taken, and the next try is told where to go on.
        welcome = await peer.open()
        assert (welcome.acked_sequence, welcome.acked_hash) == (40, second.hash)
        assert await peer.refused(fourth) is grpc.StatusCode.ABORTED
        await peer.open()
        for one in (third, fourth, second, first):
            await peer.send(one)
        assert_stored(plane, peer)
    assert alarms(plane, peer.identity.host_id) == {}
    assert problems(plane, peer.identity.host_id) == []


async def test_two_streams_to_two_servers_at_once(plane: ControlPlane, other: ControlPlane) -> None:
    async with peer_of(plane) as peer:
        batches = filled(peer.spool, 30)
        twin = UsagePeer(peer.identity, peer.spool)

        async def deliver(one: UsagePeer, address: str) -> None:
            while True:
                welcome = await one.open(address)
                if welcome.acked_sequence == batches[-1].last:
                    return
                with contextlib.suppress(grpc.aio.AioRpcError):
                    for batch in batches:
                        if batch.first > welcome.acked_sequence:
                            await one.send(batch)

        await asyncio.gather(deliver(peer, plane.control), deliver(twin, other.control))
        await twin.close()
        assert_stored(plane, peer)
    assert problems(plane, peer.identity.host_id) == []


async def test_what_is_not_as_the_host_signed_it_is_refused(plane: ControlPlane) -> None:
    async with peer_of(plane) as peer:
        spool = peer.spool
        true = spool.made([record(1), record(2)])
        falsified = {
            "hash": dataclasses.replace(true, records=(record(1), record(3))),
            "chain": spool.made(true.records, previous_hash=b"\1" * 32),
            "signature": dataclasses.replace(true, signature=bytes(64)),
        }
        for batch in falsified.values():
            await peer.open()
            assert await peer.refused(batch) is grpc.StatusCode.FAILED_PRECONDITION
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await peer.open(public_key=bytes(31) + b"\1")
        assert error.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        # A neighbour's records, with a neighbour's certificate.
        async with peer_of(plane) as thief:
            thief.spool = dataclasses.replace(spool, items=[])
            await thief.open()
            assert await thief.refused(true) is grpc.StatusCode.FAILED_PRECONDITION
            thief.spool.host_id = peer.identity.host_id
        assert {*falsified, "key"} == alarms(plane, peer.identity.host_id).keys()
        await peer.open()
        await peer.send(spool.commit(true.records))
        # Other records under sequences that are stored.
        other = Spool(spool.host_id, key=spool.key).commit([record(8), record(9)])
        assert await peer.refused(other) is grpc.StatusCode.FAILED_PRECONDITION
        assert alarms(plane, peer.identity.host_id)["rewritten"] == 1
        assert_stored(plane, peer)
    assert plane.metric("licplane_usage_alarms_total") >= 5


async def test_bad_records_are_set_aside_and_the_rest_goes_through(plane: ControlPlane) -> None:
    async with peer_of(plane) as peer:
        good = [record(number) for number in range(50)]
        oversized = record(1, detail="x" * 900_000)
        batch = peer.spool.commit([*good[:25], b"\xff\xff", oversized, *good[25:]])
        await peer.open()
        ack = await peer.send(batch)
        assert ack.sequence == 52
        assert [(one.sequence, one.reason) for one in ack.refused] == [
            (26, "it is no usage record"),
            (27, "it is too long"),
        ]
        found = stored(plane.database, peer.identity.host_id)
        assert found["rows"] == 50
        assert {name: found[name] for name in sums(good)} == sums(good)
        # A gap that the host names is an alarm too, and the chain goes on behind it.
        assert (await peer.send(peer.spool.lose(3))).sequence == 55
        assert (await peer.send(peer.spool.commit([record(56)]))).sequence == 56
    assert alarms(plane, peer.identity.host_id) == {"refused": 2, "gap": 1}
    assert problems(plane, peer.identity.host_id) == []
    kept = rows(
        plane,
        "SELECT sequence, payload FROM usage_refused WHERE host_id = %s"
        " AND reason NOT LIKE '%%license%%' ORDER BY sequence",
        peer.identity.host_id,
    )
    assert [(number, bytes(payload)) for number, payload in kept] == [
        (26, b"\xff\xff"),
        (27, oversized),
    ]


async def test_messages_that_no_host_sends_end_the_stream_only(plane: ControlPlane) -> None:
    async with peer_of(plane) as peer:
        up = telemetry_pb2.UsageUp
        batch = telemetry_pb2.UsageBatch
        (first,) = filled(peer.spool, 1)
        refusals = {
            grpc.StatusCode.INVALID_ARGUMENT,
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            grpc.StatusCode.ABORTED,
            grpc.StatusCode.FAILED_PRECONDITION,
        }
        for nonsense in (
            up(),
            up(batch=batch()),
            up(batch=batch(epoch=1, first_sequence=1)),
            up(batch=batch(epoch=9, first_sequence=1, records=[b"x"])),
            up(batch=batch(epoch=1, first_sequence=0, records=[b"x"])),
            up(batch=batch(epoch=1, first_sequence=2**64 - 1, records=[b"x"])),
            up(batch=batch(epoch=1, first_sequence=1, records=[b"x"], boot_id="\n" * 99)),
            up(batch=batch(epoch=1, first_sequence=1, records=[b"x" * (5 << 20)])),
            up(batch=batch(epoch=1, first_sequence=1, records=[b""] * 2_000_000)),
            up(gap=telemetry_pb2.UsageGap(epoch=1, first_sequence=1, last_sequence=2**64 - 1)),
            up(gap=telemetry_pb2.UsageGap(epoch=1, first_sequence=1, last_sequence=5)),
            peer.spool.hello(),
        ):
            await peer.open()
            assert await peer.refused(nonsense) in refusals, nonsense
        for epoch in (0, 2**64 - 1):
            with pytest.raises(grpc.aio.AioRpcError) as error:
                await peer.open(epoch=epoch)
            assert error.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        await peer.open()
        await peer.send(first)
        assert_stored(plane, peer)


async def test_a_host_that_was_evicted_is_not_heard(plane: ControlPlane) -> None:
    async with peer_of(plane) as peer:
        first, second = filled(peer.spool, 2)
        await peer.open()
        await peer.send(first)
        await asyncio.to_thread(plane.do, "host", "evict", peer.identity.host_id)
        assert await peer.refused(second) in {
            grpc.StatusCode.PERMISSION_DENIED,
            grpc.StatusCode.UNAUTHENTICATED,
        }
        assert acked(plane, peer.identity.host_id) == first.last
