# SPDX-License-Identifier: Apache-2.0
"""A worker with real listeners on loopback, over a plane in memory."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, cast

import licplane.api  # before gRPC: it settles what TLS may negotiate

import grpc  # isort: skip
import pytest
from tests.bench.control_peer import Identity, Peer
from tests.unit.licplane.api.stand_in import Issued, StandIn

from licplane.api.addresses import advertised, hold
from licplane.api.server import Opened
from licplane.api.settings import Addresses, ServerSettings
from licplane.api.worker import Worker

assert os.environ["GRPC_SSL_CIPHER_SUITES"] == licplane.api.TLS_CIPHER_SUITES

DEADLINE_S = 20.0


async def eventually(true: Callable[[], Any]) -> None:
    """Wait until something holds; fail when it does not come to it."""
    end_s = time.monotonic() + DEADLINE_S
    while not true():
        assert time.monotonic() < end_s, "it never came to that"
        await asyncio.sleep(0.01)


@dataclass
class Site:
    """A running worker, and what tests need around it."""

    plane: StandIn
    worker: Worker
    addresses: Addresses
    peers: list[Peer] = field(default_factory=list)
    channels: list[grpc.aio.Channel] = field(default_factory=list)

    def identity(self, host_id: str, issued: Issued) -> Identity:
        row = self.plane.hosts[host_id]
        return Identity(
            host_id=host_id,
            key_pem=issued.key_pem,
            chain_pem=issued.chain_pem,
            ca_pem=self.plane.ca.pem,
            counter=row.current,
            control=self.addresses.control,
            view=(
                row.labels.get("org", ""),
                row.labels.get("project", ""),
                row.labels.get("environment", ""),
                row.labels.get("region", ""),
            ),
        )

    def host(self, **labels: str) -> Peer:
        """A new host, not connected yet."""
        return self.peer(*self.plane.enroll_host(**labels))

    def peer(self, host_id: str, issued: Issued, **kwargs: Any) -> Peer:
        peer = Peer(self.identity(host_id, issued), **kwargs)
        self.peers.append(peer)
        return peer

    def channel(self, issued: Issued | None = None, *, public: bool = False) -> grpc.aio.Channel:
        made = grpc.aio.secure_channel(
            self.addresses.public if public else self.addresses.control,
            grpc.ssl_channel_credentials(
                self.plane.ca.pem,
                issued.key_pem if issued else None,
                issued.chain_pem if issued else None,
            ),
            options=[("grpc.use_local_subchannel_pool", 1), ("grpc.enable_http_proxy", 0)],
        )
        self.channels.append(made)
        return made

    def refused(self, why: str) -> float:
        return self.worker.site.metrics.total("licplane_refused_total", why=why)


Start = Callable[..., Awaitable[Site]]


@pytest.fixture
async def start() -> AsyncIterator[Start]:
    """Starts workers; all are stopped at the end."""
    sites: list[Site] = []
    sockets = []

    async def make(settings: ServerSettings | None = None, plane: StandIn | None = None) -> Site:
        plane = plane or StandIn()
        control, public = hold("127.0.0.1:0", "control"), hold("127.0.0.1:0", "public")
        sockets.extend([control.socket, public.socket])
        addresses = Addresses(control.address, public.address)
        settings = advertised(settings or ServerSettings(stop_grace_s=0.5), addresses)
        opened = Opened(cast("Any", plane), cast("Any", plane))
        worker = Worker(settings, opened, addresses)
        site = Site(plane, worker, addresses)
        sites.append(site)
        await worker.start()
        return site

    try:
        yield make
    finally:
        for site in sites:
            for peer in site.peers:
                await peer.close()
            for channel in site.channels:
                await channel.close()
            await site.worker.stop()
        for one in sockets:
            one.close()


@pytest.fixture
async def site(start: Start) -> Site:
    """A worker with the usual settings."""
    return await start()
