# SPDX-License-Identifier: Apache-2.0
"""The text that Prometheus reads, and the small server that gives it out."""

from __future__ import annotations

import asyncio
import socket
from typing import Any, cast

import pytest
from tests.unit.licplane.api.conftest import Start
from tests.unit.licplane.api.stand_in import StandIn

from licplane.api.metrics import FAMILIES, Metrics
from licplane.api.probes import Page, serve_pages
from licplane.api.server import Opened
from licplane.api.settings import Addresses, ServerSettings
from licplane.api.worker import Worker
from licplane.errors import PlaneError


def test_counters_gauges_and_histograms_as_text() -> None:
    metrics = Metrics()
    metrics.count("licplane_refused_total", why='a "quoted"\nword')
    metrics.count("licplane_refused_total", 2, why="b")
    metrics.gauge("licplane_sync_streams", lambda: 7)
    metrics.gauges(lambda: [("licplane_licenses", {"standing": "active"}, 3)])
    metrics.observe("licplane_push_seconds", 0.004)
    metrics.observe("licplane_push_seconds", 99.0)
    lines = metrics.text().splitlines()
    assert 'licplane_refused_total{why="a \\"quoted\\"\\nword"} 1.0' in lines
    assert 'licplane_refused_total{why="b"} 2.0' in lines
    assert "licplane_sync_streams 7.0" in lines
    assert 'licplane_licenses{standing="active"} 3.0' in lines
    assert 'licplane_push_seconds_bucket{le="0.0025"} 0.0' in lines
    assert 'licplane_push_seconds_bucket{le="0.005"} 1.0' in lines
    assert 'licplane_push_seconds_bucket{le="10.0"} 1.0' in lines
    assert 'licplane_push_seconds_bucket{le="+Inf"} 2.0' in lines
    assert "licplane_push_seconds_count 2.0" in lines
    assert "# TYPE licplane_refused_total counter" in lines
    assert "licplane_sync_opened_total 0.0" in lines  # nothing yet is a number, too
    assert metrics.total("licplane_refused_total") == 3


def test_openmetrics_is_given_to_who_asks_for_it() -> None:
    metrics = Metrics()
    metrics.count("licplane_refused_total", why="b")
    text, content_type = metrics.exposition("application/openmetrics-text;version=1.0.0,*/*;q=0.1")
    assert content_type.startswith("application/openmetrics-text; version=1.0.0")
    assert b"# TYPE licplane_refused counter\n" in text
    assert text.endswith(b"# EOF\n")
    assert metrics.exposition("application/openmetrics-text;version=nonsense")[0]


def test_a_metric_without_help_or_of_another_kind_is_a_mistake() -> None:
    metrics = Metrics()
    with pytest.raises(KeyError):
        metrics.count("licplane_new_total")
    with pytest.raises(ValueError, match="gauge"):
        metrics.count("licplane_sync_streams")
    with pytest.raises(ValueError, match="labels"):
        metrics.count("licplane_refused_total", pid="1")


def test_the_table_keeps_to_the_conventions() -> None:
    for name, family in FAMILIES.items():
        assert name.startswith("licplane_")
        assert (family.kind == "counter") == name.endswith("_total"), name
        assert bool(family.labels) == bool(family.bound), name
        assert not {"pid", "host", "host_id", "address"} & set(family.labels), name
        assert "timestamp" not in name or name.endswith("_timestamp_seconds"), name


async def ask(port: int, request: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    answer = await asyncio.wait_for(reader.read(), 20)
    writer.close()
    await writer.wait_closed()
    return answer


async def test_the_pages_are_served_and_nothing_else() -> None:
    metrics = Metrics()
    metrics.count("licplane_sync_opened_total")

    async def page(accept: str) -> Page:
        return Page(*metrics.exposition(accept))

    async def unready(_accept: str) -> Page:
        return Page.words("not ready", ok=False)

    server = await serve_pages({"/metrics": page, "/-/ready": unready}, "127.0.0.1", 0)
    try:
        port = server.sockets[0].getsockname()[1]
        found = await ask(port, b"GET /metrics?x=1 HTTP/1.1\r\nHost: x\r\n\r\n")
        assert found.startswith(b"HTTP/1.1 200 OK\r\n")
        assert b"text/plain; version=0.0.4" in found
        assert b"\nlicplane_sync_opened_total 1.0\n" in found
        asked = b"GET /metrics HTTP/1.1\r\nACCEPT: application/openmetrics-text\r\n\r\n"
        assert (await ask(port, asked)).endswith(b"# EOF\n")
        headed = await ask(port, b"HEAD /metrics HTTP/1.1\r\n\r\n")
        assert headed.startswith(b"HTTP/1.1 200 OK\r\n")
        assert headed.endswith(b"\r\n\r\n")
        assert b" 503 " in await ask(port, b"GET /-/ready HTTP/1.1\r\n\r\n")
        assert b" 404 " in await ask(port, b"GET /../../etc/passwd HTTP/1.1\r\n\r\n")
        assert b" 404 " in await ask(port, b"GET\r\n\r\n")
        assert b" 405 " in await ask(port, b"POST /metrics HTTP/1.1\r\n\r\n")
        assert await ask(port, b"x" * 100_000) == b""
    finally:
        server.close()
        await server.wait_closed()


async def test_a_worker_tells_of_the_fleet_and_whether_it_is_ready(start: Start) -> None:
    site = await start(ServerSettings(metrics_listen="127.0.0.1:0"))
    port = int(site.worker.metrics_address.rsplit(":", 1)[1])
    text = (await ask(port, b"GET /metrics HTTP/1.1\r\n\r\n")).decode()
    assert "\nlicplane_database_up 1.0\n" in text
    assert '\nlicplane_hosts{connected="true",status="active"} 2.0\n' in text
    assert '\nlicplane_license_expiry_timestamp_seconds{license="acme"} ' in text
    assert '\nlicplane_licenses{standing="expired"} 1.0\n' in text
    assert '{license="old"}' not in text
    assert " 200 " in (await ask(port, b"GET /-/healthy HTTP/1.1\r\n\r\n")).decode()
    assert b" 200 " in await ask(port, b"GET /-/ready HTTP/1.1\r\n\r\n")
    site.plane.watch.fails = True
    assert b" 503 " in await ask(port, b"GET /-/ready HTTP/1.1\r\n\r\n")
    site.worker._watching._read_at_s = -1e9
    text = (await ask(port, b"GET /metrics HTTP/1.1\r\n\r\n")).decode()
    assert "\nlicplane_database_up 0.0\n" in text
    assert "licplane_hosts{" not in text, "what is old is not shown as new"


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
