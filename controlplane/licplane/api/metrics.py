# SPDX-License-Identifier: Apache-2.0
"""What the server counts, as Prometheus text (exposition format 0.0.4) over plain HTTP."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable
from typing import Final

_HELP: Final[dict[str, tuple[str, str]]] = {
    "licplane_sync_streams": ("gauge", "Sync streams that said Hello."),
    "licplane_sync_streams_waiting": ("gauge", "Sync streams without a Hello."),
    "licplane_sync_opened_total": ("counter", "Sync streams that were let in."),
    "licplane_sync_ended_total": ("counter", "Sync streams that ended, by why."),
    "licplane_sync_refused_total": ("counter", "Sync streams turned away, by why."),
    "licplane_sync_messages_total": ("counter", "Messages to hosts, by kind."),
    "licplane_sync_bytes_total": ("counter", "Bytes of the messages to hosts."),
    "licplane_sync_acks_total": ("counter", "Messages that hosts put in force."),
    "licplane_sync_nacks_total": ("counter", "Messages that hosts refused, by reason."),
    "licplane_deltas_encoded_total": ("counter", "Deltas encoded and signed."),
    "licplane_delta_resets_total": ("counter", "Whole views sent, by why."),
    "licplane_catalog_revision": ("gauge", "Revision of the catalog that is served."),
    "licplane_catalog_intact": ("gauge", "0: the catalog's rows are not those that were signed."),
    "licplane_cold_syncs": ("gauge", "Hosts being brought to the newest revision."),
    "licplane_push_seconds": ("histogram", "From an announcement to the last stream's queue."),
    "licplane_telemetry_reports_total": ("counter", "Host reports, by what became of them."),
    "licplane_usage_streams": ("gauge", "Streams of usage."),
    "licplane_usage_batches_total": ("counter", "Usage batches, by what became of them."),
    "licplane_usage_records_total": ("counter", "Usage records: stored, or set aside (refused)."),
    "licplane_usage_alarms_total": ("counter", "Usage that was altered or is not its host's."),
    "licplane_usage_commit_seconds": ("histogram", "From a batch's arrival to its commit."),
    "licplane_calls_total": ("counter", "Unary calls, by method and status."),
    "licplane_call_seconds": ("histogram", "Unary calls, by method."),
    "licplane_refused_total": ("counter", "Refused for what the peer is or sent, by why."),
    "licplane_clones_total": (
        "counter",
        "Streams that ended because two machines speak for their host.",
    ),
    "licplane_leases_total": ("counter", "Lease bundles, by what became of the request."),
    "licplane_errors_total": ("counter", "Faults of the server itself, by where."),
    "licplane_server_certificate_not_after_seconds": ("gauge", "End of the server's certificate."),
}
_BOUNDS_S: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_REQUEST_MAX_BYTES: Final = 8192
_REQUEST_TIMEOUT_S: Final = 5.0
_CONNECTIONS_MAX: Final = 16

_Labels = tuple[tuple[str, str], ...]


class Metrics:
    """Counters, gauges and histograms of one process. Used on the event loop's thread only."""

    def __init__(self) -> None:
        self._values: dict[str, dict[_Labels, float]] = {}
        self._gauges: dict[str, Callable[[], float]] = {}
        self._histograms: dict[str, dict[_Labels, list[float]]] = {}

    def count(self, name: str, by: float = 1, **labels: str) -> None:
        """Add to a counter."""
        _check(name, "counter")
        series = self._values.setdefault(name, {})
        key = tuple(labels.items())
        series[key] = series.get(key, 0) + by

    def total(self, name: str, **labels: str) -> float:
        """A counter's value, over all series that have these labels."""
        wanted = set(labels.items())
        found = self._values.get(name, {})
        return sum(value for key, value in found.items() if wanted <= set(key))

    def gauge(self, name: str, read: Callable[[], float]) -> None:
        """Where a gauge's value is read when somebody asks."""
        _check(name, "gauge")
        self._gauges[name] = read

    def observe(self, name: str, seconds: float, **labels: str) -> None:
        """Add a duration to a histogram."""
        _check(name, "histogram")
        series = self._histograms.setdefault(name, {})
        row = series.setdefault(tuple(labels.items()), [0.0] * (len(_BOUNDS_S) + 2))
        for at, bound in enumerate(_BOUNDS_S):
            if seconds <= bound:
                row[at] += 1
        row[-2] += 1
        row[-1] += seconds

    def text(self) -> str:
        """Everything, as Prometheus reads it."""
        lines: list[str] = []
        for name, (kind, words) in _HELP.items():
            lines += (f"# HELP {name} {words}", f"# TYPE {name} {kind}")
            if name in self._gauges:
                lines.append(f"{name} {_number(self._gauges[name]())}")
            for labels, value in self._values.get(name, {}).items():
                lines.append(f"{name}{_braces(labels)} {_number(value)}")
            for labels, row in self._histograms.get(name, {}).items():
                lines += _histogram(name, labels, row)
        return "\n".join(lines) + "\n"


async def serve_metrics(metrics: Metrics, host: str, port: int) -> asyncio.Server:
    """Answer GET /metrics at an address. Raises OSError when it cannot be had."""
    open_now = 0

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal open_now
        open_now += 1
        try:
            if open_now <= _CONNECTIONS_MAX:
                async with asyncio.timeout(_REQUEST_TIMEOUT_S):
                    head = await reader.readuntil(b"\r\n\r\n")
                    writer.write(_response(head, metrics))
                    await writer.drain()
        except (TimeoutError, OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # a scraper that went away or talks something else gets nothing
        finally:
            open_now -= 1
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    return await asyncio.start_server(answer, host, port, limit=_REQUEST_MAX_BYTES)


def _check(name: str, kind: str) -> None:
    if _HELP[name][0] != kind:
        raise ValueError(f"{name} is a {_HELP[name][0]}, not a {kind}")


def _response(head: bytes, metrics: Metrics) -> bytes:
    words = head.split(b"\r\n", 1)[0].split(b" ")
    if words[0] not in {b"GET", b"HEAD"}:
        return _page("405 Method Not Allowed", "Use GET.\n")
    if len(words) != 3 or words[1].split(b"?")[0] != b"/metrics":
        return _page("404 Not Found", "Metrics are at /metrics.\n")
    return _page("200 OK", metrics.text(), with_body=words[0] == b"GET")


def _page(status: str, text: str, *, with_body: bool = True) -> bytes:
    body = text.encode()
    head = (
        f"HTTP/1.1 {status}\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + (body if with_body else b"")


def _histogram(name: str, labels: _Labels, row: list[float]) -> Iterable[str]:
    for at, bound in enumerate(_BOUNDS_S):
        yield f"{name}_bucket{_braces((*labels, ('le', str(bound))))} {_number(row[at])}"
    yield f"{name}_bucket{_braces((*labels, ('le', '+Inf')))} {_number(row[-2])}"
    yield f"{name}_sum{_braces(labels)} {row[-1]:.6f}"
    yield f"{name}_count{_braces(labels)} {_number(row[-2])}"


def _braces(labels: _Labels) -> str:
    if not labels:
        return ""
    inner = ",".join(f'{name}="{_escaped(value)}"' for name, value in labels)
    return "{" + inner + "}"


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else repr(value)
