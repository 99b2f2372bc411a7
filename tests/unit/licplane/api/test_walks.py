# SPDX-License-Identifier: Apache-2.0
"""Random walks: whatever hosts refuse, lose or repeat, they end with what the plane has."""

from __future__ import annotations

import asyncio
import os
import random
from dataclasses import replace

import grpc
import pytest
from tests.unit.licplane.api.conftest import Site, eventually

from licapi.control.v1 import common_pb2, sync_pb2
from licplane.service.values import EVERYWHERE, Kind, Scope, View
from lictoken.digest import digest_of

SCOPES = (EVERYWHERE, Scope("acme"), Scope("other"), Scope("acme", regions=("eu",)))
LABELS = ({"org": "acme"}, {"org": "other"}, {"org": "acme", "region": "eu"}, {})


class Host:
    """Takes deltas by the rules of sync.proto, and breaks the link or refuses at times."""

    def __init__(self, site: Site, rng: random.Random) -> None:
        self.site = site
        self.rng = rng
        self.peer = site.host(**rng.choice(LABELS))
        self.revision = 0
        self.digest = b""
        self.view = View()
        self.objects: dict[tuple[int, str], bytes] = {}
        self.faults = 0.4
        self.parts: list[sync_pb2.Delta] = []
        self.bases: set[int] = set()

    async def live(self) -> None:
        """Connect, listen, and come back."""
        while True:
            try:
                await self.peer.open()
                self.parts = []
                await self.peer.hello(
                    revision=self.revision,
                    digest=self.digest,
                    view=_message(self.view),
                    assignment_sequence=1,
                )
                while (message := await self.peer.receive(60)) is not None:
                    if not await self.hear(message):
                        break
            except grpc.aio.AioRpcError:
                await asyncio.sleep(0.01)
            await self.peer.close()

    async def hear(self, message: sync_pb2.ServerMessage) -> bool:
        """Handle one message; False: the link breaks here."""
        if self.rng.random() < self.faults / 4:
            return False
        kind = message.WhichOneof("message")
        if kind == "welcome":
            counter = message.welcome.counter
            self.peer.identity = replace(self.peer.identity, counter=counter)
            if self.rng.random() > self.faults:  # else the confirmation is lost
                await self.peer.send(counter_kept=sync_pb2.CounterKept(counter=counter))
        elif kind == "delta":
            self.parts.append(message.delta)
            if not message.delta.more:
                await self.take(message.nonce)
        return True

    async def take(self, nonce: int) -> None:
        parts, self.parts = self.parts, []
        last = parts[-1]
        manifest = sync_pb2.SnapshotManifest.FromString(last.manifest.payload)
        if not last.reset and last.from_revision != self.revision:
            await self.refuse(nonce, sync_pb2.NACK_REASON_BASE)
            return
        objects = {} if last.reset else dict(self.objects)
        for one in (one for part in parts for one in part.objects):
            if one.removed:
                objects.pop((one.kind, one.name), None)
            else:
                objects[one.kind, one.name] = one.payload
        digest = digest_of((kind, name, data) for (kind, name), data in objects.items())
        if digest != manifest.digest:
            assert not last.reset, "a whole view that is not what its manifest says"
            await self.refuse(nonce, sync_pb2.NACK_REASON_DIGEST)
            return
        if self.rng.random() < self.faults:
            reason = self.rng.choice([sync_pb2.NACK_REASON_POLICY, sync_pb2.NACK_REASON_DIGEST])
            await self.refuse(nonce, reason)
            return
        self.objects, self.digest, self.revision = objects, digest, last.to_revision
        self.view = self.site.plane.hosts[self.peer.identity.host_id].view
        await self.peer.send(ack=sync_pb2.Ack(nonce=nonce, revision=self.revision))

    async def refuse(self, nonce: int, reason: sync_pb2.NackReason.ValueType) -> None:
        await self.peer.send(nack=sync_pb2.Nack(nonce=nonce, revision=self.revision, reason=reason))

    def has_all(self) -> bool:
        """Whether it holds exactly what its view has."""
        view = self.site.plane.hosts[self.peer.identity.host_id].view
        wanted = {
            (int(kind), name): one.payload
            for (kind, name), one in self.site.plane.objects.items()
            if one.scope.visible_in(view)
        }
        return self.objects == wanted


def _message(view: View) -> common_pb2.View:
    return common_pb2.View(
        org=view.org, project=view.project, environment=view.environment, region=view.region
    )


@pytest.mark.parametrize("seed", range(6))
async def test_every_walk_ends_in_the_same_tables(site: Site, seed: int) -> None:
    rng = random.Random(seed)
    hosts = [Host(site, rng) for _ in range(4)]
    lives = [asyncio.create_task(host.live()) for host in hosts]
    try:
        for _ in range(60):
            name = f"object-{rng.randrange(8)}"
            step = rng.random()
            if step < 0.2:
                site.plane.put(name, None)
            elif step < 0.3:
                host = rng.choice(hosts)
                labels = dict(rng.choice(LABELS))
                site.plane.change_host(host.peer.identity.host_id, labels=labels)
            else:
                kind = rng.choice([Kind.BINDING, Kind.BINDING, Kind.REVOCATION])
                site.plane.put(name, os.urandom(20), kind, rng.choice(SCOPES))
            await asyncio.sleep(rng.choice([0, 0, 0.005, 0.02]))
        for host in hosts:
            host.faults = 0.0
        site.plane.put("last", b"one")  # a refused delta waits for something new
        await eventually(lambda: all(host.has_all() for host in hosts))
    finally:
        for task in lives:
            task.cancel()
        await asyncio.gather(*lives, return_exceptions=True)
    for task in lives:
        assert task.cancelled(), task.exception()
