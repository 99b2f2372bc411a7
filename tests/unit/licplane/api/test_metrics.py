# SPDX-License-Identifier: Apache-2.0
"""The text that Prometheus reads, and the small server that gives it out."""

from __future__ import annotations

import asyncio
import socket
from typing import Any, cast

import pytest
from tests.unit.licplane.api.conftest import Start
from tests.unit.licplane.api.stand_in import StandIn

from licplane.api.metrics import Metrics, serve_metrics
from licplane.api.server import Opened
from licplane.api.settings import Addresses, ServerSettings
from licplane.api.worker import Worker
from licplane.errors import PlaneError


def test_counters_gauges_and_histograms_as_text() -> None:
    metrics = Metrics()
    metrics.count("licplane_refused_total", why='a "quoted"\nword')
    metrics.count("licplane_refused_total", 2, why="b")
    metrics.gauge("licplane_sync_streams", lambda: 7)
    metrics.observe("licplane_push_seconds", 0.004)
    metrics.observe("licplane_push_seconds", 99.0)
    lines = metrics.text().splitlines()
    assert 'licplane_refused_total{why="a \\"quoted\\"\\nword"} 1' in lines
    assert 'licplane_refused_total{why="b"} 2' in lines
    assert "licplane_sync_streams 7" in lines
    assert 'licplane_push_seconds_bucket{le="0.0025"} 0' in lines
    assert 'licplane_push_seconds_bucket{le="0.005"} 1' in lines
    assert 'licplane_push_seconds_bucket{le="10.0"} 1' in lines
    assert 'licplane_push_seconds_bucket{le="+Inf"} 2' in lines
    assert "licplane_push_seconds_count 2" in lines
    assert "# TYPE licplane_refused_total counter" in lines
    assert metrics.total("licplane_refused_total") == 3


def test_a_metric_without_help_or_of_another_kind_is_a_mistake() -> None:
    metrics = Metrics()
    with pytest.raises(KeyError):
        metrics.count("licplane_new_total")
    with pytest.raises(ValueError, match="gauge"):
        metrics.count("licplane_sync_streams")


async def ask(port: int, request: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    answer = await asyncio.wait_for(reader.read(), 20)
    writer.close()
    await writer.wait_closed()
    return answer


async def test_the_metrics_are_served_and_nothing_else() -> None:
    metrics = Metrics()
    metrics.count("licplane_sync_opened_total")
    server = await serve_metrics(metrics, "127.0.0.1", 0)
    try:
        port = server.sockets[0].getsockname()[1]
        found = await ask(port, b"GET /metrics?x=1 HTTP/1.1\r\nHost: x\r\n\r\n")
        assert found.startswith(b"HTTP/1.1 200 OK\r\n")
        assert b"text/plain; version=0.0.4" in found
        assert found.endswith(metrics.text().encode())
        assert b" 404 " in await ask(port, b"GET /../../etc/passwd HTTP/1.1\r\n\r\n")
        assert b" 405 " in await ask(port, b"POST /metrics HTTP/1.1\r\n\r\n")
        assert await ask(port, b"x" * 100_000) == b""
    finally:
        server.close()
        await server.wait_closed()


async def test_a_worker_that_cannot_have_its_addresses_says_so_and_leaves_nothing(
    start: Start,
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(PlaneError, match="--metrics-listen"):
            await start(ServerSettings(metrics_listen=address))
        plane = StandIn()
        opened = Opened(cast("Any", plane), cast("Any", plane))
        worker = Worker(ServerSettings(), opened, Addresses("127.0.0.1:0", address))
        with pytest.raises(PlaneError, match="cannot be had"):
            await worker.start()
        await worker.stop()
        assert plane.store_closed
