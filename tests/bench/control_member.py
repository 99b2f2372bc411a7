# SPDX-License-Identifier: Apache-2.0
"""One of several processes that hold the bench's simulated hosts: `python -m ... control_member`.

Reads commands as lines of JSON, answers each with one line. Times are CLOCK_MONOTONIC in ns, which
is one clock for all processes of the machine.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import sys
import time
from pathlib import Path
from typing import Any, Final

import grpc
import grpc.aio
from tests.bench.control_peer import Identity, Join, Peer, enroll, public_channel

from licagent.control.backoff import Backoff
from licapi.control.v1 import sync_pb2

AT_ONCE: Final = 32
"""Handshakes that a process has under way at once when it opens its streams."""
BACK_OFF_FIRST_MS: Final = 1_000
BACK_OFF_CAP_MS: Final = 8 * 60_000
"""As the agent's own (licagent.control.interface.ControlSettings)."""


class Member:
    """A host that comes back whenever its stream ends, as the agent does."""

    def __init__(self, identity: Identity, random_source: random.Random) -> None:
        self.peer = Peer(identity, keep_payloads=False, on_message=self._note)
        self.random = random_source
        self.acked: dict[str, int] = {}
        """Name of a statement -> when its ACK was handed over."""
        self.revisions: dict[int, int] = {}
        self.reconnects = 0
        self.refusals: dict[str, int] = {}
        self.opened_ns = 0
        self.synced = asyncio.Event()
        self._retry_after_s = 0.0
        self._task: asyncio.Task[None] | None = None

    def _note(self, peer: Peer, message: sync_pb2.ServerMessage) -> None:
        now_ns = time.monotonic_ns()
        if message.HasField("revocations"):
            for each in message.revocations.objects:
                self.acked.setdefault(each.name, now_ns)
        elif message.HasField("delta") and not message.delta.more:
            self.revisions.setdefault(message.delta.to_revision, now_ns)
            self.synced.set()
        elif message.HasField("notice"):
            self._retry_after_s = message.notice.retry_after_ms / 1000

    def start(self, gate: asyncio.Semaphore, *, leases: bool) -> None:
        """Live from now on; the first handshake waits for the gate."""
        self._task = asyncio.create_task(self._live(gate, leases=leases))

    async def stop(self) -> None:
        """End the stream."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        await self.peer.close()

    def forget(self) -> None:
        """Come back with empty tables at the next connection."""
        self.peer.held.objects.clear()
        self.peer.held.revision = 0
        self.peer.held.digest = b""
        self.peer.held.synced_ns = 0
        self.revisions.clear()
        self.synced.clear()

    async def _live(self, gate: asyncio.Semaphore, *, leases: bool) -> None:
        back_off = Backoff(BACK_OFF_FIRST_MS, BACK_OFF_CAP_MS, self.random)
        while True:
            self._retry_after_s = 0.0
            before = self.peer.messages
            try:
                async with gate:
                    await self.peer.open()
                    await self.peer.hello()
                    self.opened_ns = time.monotonic_ns()
                if leases:
                    await self.peer.request_leases()
                await self.peer.run()
            except grpc.aio.AioRpcError as error:
                name = error.code().name
                self.refusals[name] = self.refusals.get(name, 0) + 1
                for key, value in error.trailing_metadata() or ():
                    if key == "retry-after-ms":
                        self._retry_after_s = int(value) / 1000
            except asyncio.InvalidStateError:  # the stream ended while we wrote
                pass
            finally:
                await self.peer.close()
            self.reconnects += 1
            if self.peer.messages > before:
                back_off.succeeded()
            await asyncio.sleep(back_off.next_ms(int(self._retry_after_s * 1000)) / 1000)


class Process:
    """The members of this process, and what the bench asks of them."""

    def __init__(self) -> None:
        self.members: list[Member] = []
        self.random = random.Random()
        self.gate = asyncio.Semaphore(AT_ONCE)

    async def enroll(self, join: str, count: int, name: str) -> dict[str, Any]:
        """Make hosts over one connection, some at a time."""
        parsed = Join.parse(join)
        channel = public_channel(parsed)
        gate = asyncio.Semaphore(8)

        async def one(number: int) -> None:
            async with gate:
                identity = await enroll(parsed, hostname=f"{name}-{number}", channel=channel)
            self.members.append(Member(identity, self.random))

        try:
            await asyncio.gather(*(one(number) for number in range(count)))
        finally:
            await channel.close()
        return {"hosts": len(self.members)}

    async def save(self, path: str) -> dict[str, Any]:
        """Keep the identities for another process."""
        lines = [member.peer.identity.write() for member in self.members]
        await asyncio.to_thread(Path(path).write_text, "\n".join(lines) + "\n")
        return {"hosts": len(lines)}

    async def load(self, path: str) -> dict[str, Any]:
        """Take identities that were kept."""
        text = await asyncio.to_thread(Path(path).read_text)
        self.members = [Member(Identity.read(line), self.random) for line in text.splitlines()]
        return {"hosts": len(self.members)}

    async def start(self, *, leases: bool = False) -> dict[str, Any]:
        """Open all streams; answers at once."""
        for member in self.members:
            member.start(self.gate, leases=leases)
        return {}

    async def stop(self) -> dict[str, Any]:
        """End all streams."""
        await asyncio.gather(*(member.stop() for member in self.members))
        return {}

    async def forget(self) -> dict[str, Any]:
        """Let all come back with empty tables."""
        for member in self.members:
            member.forget()
        return {}

    async def state(self) -> dict[str, Any]:
        """How many are in sync, and what happened on the way."""
        refusals: dict[str, int] = {}
        for member in self.members:
            for name, count in member.refusals.items():
                refusals[name] = refusals.get(name, 0) + count
        return {
            "synced": sum(member.synced.is_set() for member in self.members),
            "synced_ns": [member.peer.held.synced_ns for member in self.members],
            "reconnects": [member.reconnects for member in self.members],
            "revision": min((m.peer.held.revision for m in self.members), default=0),
            "received_bytes": sum(m.peer.received_bytes for m in self.members),
            "refusals": refusals,
        }

    async def revoked(self, after_ns: int) -> dict[str, Any]:
        """For each host, when it acknowledged the first statement that came after a moment."""
        return {
            "at_ns": [
                min((at for at in member.acked.values() if at >= after_ns), default=0)
                for member in self.members
            ]
        }

    async def reached(self, revision: int) -> dict[str, Any]:
        """For each host, when it acknowledged this revision or a later one."""
        return {
            "at_ns": [
                min((at for at_rev, at in m.revisions.items() if at_rev >= revision), default=0)
                for m in self.members
            ]
        }


async def main() -> None:
    """Serve commands until standard input ends."""
    process = Process()
    reader = asyncio.StreamReader(limit=1 << 24)
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        request: dict[str, Any] = json.loads(line)
        name = request.pop("do")
        try:
            answer = await getattr(process, name)(**request)
        except Exception as error:  # noqa: BLE001 - the bench says it, with the command
            answer = {"error": f"{type(error).__name__}: {error}"}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()
    await process.stop()


if __name__ == "__main__":
    asyncio.run(main())
