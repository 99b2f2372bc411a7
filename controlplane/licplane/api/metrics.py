# SPDX-License-Identifier: Apache-2.0
"""What the server counts, in the official client library's form (docs/reference/metrics.md)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

from licplane.service.values import HostStatus

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric


@dataclass(frozen=True, slots=True)
class Family:
    """One metric. Names follow Prometheus' conventions; each label has a bound, said in words."""

    kind: Literal["counter", "gauge", "histogram"]
    help: str
    labels: tuple[str, ...] = ()
    bound: str = ""


LICENSES_MAX: Final = 200
"""Licenses that have series of their own, those that end first; the others are `other`."""

_CODES: Final = "the server's own words"
_LICENSES: Final = f"the {LICENSES_MAX} licenses that end first, the others are `other`"
_METHODS: Final = "the methods of the API"


def _counter(words: str, *labels: str, bound: str = _CODES) -> Family:
    return Family("counter", words, labels, bound if labels else "")


def _gauge(words: str, *labels: str, bound: str = _CODES) -> Family:
    return Family("gauge", words, labels, bound if labels else "")


def _histogram(words: str, *labels: str, bound: str = _CODES) -> Family:
    return Family("histogram", words, labels, bound if labels else "")


FAMILIES: Final[dict[str, Family]] = {
    # ------------------------------------------------------------------ this worker
    "licplane_build_info": _gauge("1; what runs here, as labels.", "version", bound="1"),
    "licplane_sync_streams": _gauge("Sync streams that said Hello."),
    "licplane_sync_streams_waiting": _gauge("Sync streams without a Hello."),
    "licplane_sync_opened_total": _counter("Sync streams that were let in."),
    "licplane_sync_ended_total": _counter("Sync streams that ended, by why.", "why"),
    "licplane_sync_refused_total": _counter("Sync streams turned away, by why.", "why"),
    "licplane_sync_messages_total": _counter("Messages to hosts, by kind.", "kind"),
    "licplane_sync_bytes_total": _counter("Bytes of the messages to hosts."),
    "licplane_sync_acks_total": _counter("Messages that hosts put in force."),
    "licplane_sync_nacks_total": _counter("Messages that hosts refused, by reason.", "reason"),
    "licplane_sync_longest_unanswered_seconds": _gauge(
        "How long the slowest connected host has owed an answer to what it was sent."
    ),
    "licplane_deltas_encoded_total": _counter("Deltas encoded and signed."),
    "licplane_delta_resets_total": _counter("Whole views sent, by why.", "why"),
    "licplane_catalog_revision": _gauge("Revision of the catalog that is served."),
    "licplane_catalog_intact": _gauge("0: the catalog's rows are not those that were signed."),
    "licplane_cold_syncs": _gauge("Hosts being brought to the newest revision."),
    "licplane_push_seconds": _histogram("From an announcement to the last stream's queue."),
    "licplane_telemetry_reports_total": _counter("Host reports, by result.", "result"),
    "licplane_usage_streams": _gauge("Streams of usage."),
    "licplane_usage_batches_total": _counter("Usage batches, by result.", "result"),
    "licplane_usage_records_total": _counter(
        "Usage records: stored, or set aside (refused).", "result"
    ),
    "licplane_usage_alarms_total": _counter("Usage that was altered or is not its host's.", "code"),
    "licplane_usage_commit_seconds": _histogram("From a batch's arrival to its commit."),
    "licplane_calls_total": _counter(
        "Unary calls, by method and status.", "method", "status", bound=_METHODS
    ),
    "licplane_call_seconds": _histogram("Unary calls, by method.", "method", bound=_METHODS),
    "licplane_refused_total": _counter("Refused for what the peer is or sent, by why.", "why"),
    "licplane_clones_total": _counter(
        "Streams that ended because two machines speak for their host."
    ),
    "licplane_remembered_total": _counter(
        "Statements that hosts handed back to a database that had forgotten them."
    ),
    "licplane_leases_total": _counter("Lease bundles, by what became of the request.", "result"),
    "licplane_errors_total": _counter("Faults of the server itself, by where.", "where"),
    "licplane_server_certificate_end_timestamp_seconds": _gauge(
        "End of the server's certificate; it is renewed at half of its life."
    ),
    # -------------------------------------------- the database: alike on every worker
    "licplane_database_up": _gauge("1: the database answered when the fleet was read last."),
    "licplane_fleet_read_seconds": _gauge("How long reading the fleet took."),
    "licplane_hosts": _gauge(
        "Hosts, by status, and whether their stream is open.",
        *("status", "connected"),
        bound=f"{len(HostStatus)} statuses",
    ),
    "licplane_hosts_silent": _gauge(
        "Hosts that nothing was heard of for 10 min; not those that came from a file."
    ),
    "licplane_hosts_refusing": _gauge("Hosts whose last answer to a revision was no."),
    "licplane_hosts_drifting": _gauge(
        "Hosts that report, and on which something is not as wanted."
    ),
    "licplane_shadow_uses": _gauge("Kinds of use without a binding, over all hosts."),
    "licplane_licenses": _gauge("Licenses, by standing.", "standing", bound="4 standings"),
    "licplane_license_expiry_timestamp_seconds": _gauge(
        "End of an active license; `other`: the first end of the others.",
        "license",
        bound=_LICENSES,
    ),
    "licplane_authority_end_timestamp_seconds": _gauge(
        "End of the certification authority that issues; absent: none is open."
    ),
    "licplane_deliveries": _gauge(
        "What triggers and budgets have to tell, by state.", "state", bound="3 states"
    ),
    "licplane_delivery_oldest_waiting_timestamp_seconds": _gauge(
        "When the oldest that waits was made; absent: none waits."
    ),
    "licplane_usage_gaps": _gauge("Losses of usage that hosts told of by name."),
    "licplane_usage_alarmed_chains": _gauge("Chains of usage that something is wrong with."),
    "licplane_budget_used_ratio": _gauge(
        "Used of a budget; 1 is all of it.", "budget", bound="50 budgets"
    ),
    "licplane_budget_expected_ratio": _gauge(
        "Used of a budget at its period's end, by the forecast.", "budget", bound="50 budgets"
    ),
}
"""Every metric of the control plane, by name, in the order in which they are served."""

_BOUNDS_S: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)

_Labels = tuple[tuple[str, str], ...]

Sample = tuple[str, dict[str, str], float]
"""A gauge's name, labels and value."""


class Metrics:
    """Counters, gauges and histograms of one process. Used on the event loop's thread only."""

    def __init__(self) -> None:
        self._values: dict[str, dict[_Labels, float]] = {}
        self._gauges: dict[str, Callable[[], float]] = {}
        self._sources: list[Callable[[], Iterable[Sample]]] = []
        self._histograms: dict[str, dict[_Labels, list[float]]] = {}

    def count(self, name: str, by: float = 1, **labels: str) -> None:
        """Add to a counter."""
        _check(name, "counter", labels)
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
        _check(name, "gauge", {})
        self._gauges[name] = read

    def gauges(self, read: Callable[[], Iterable[Sample]]) -> None:
        """Where gauges with labels are read when somebody asks."""
        self._sources.append(read)

    def observe(self, name: str, seconds: float, **labels: str) -> None:
        """Add a duration to a histogram."""
        _check(name, "histogram", labels)
        series = self._histograms.setdefault(name, {})
        row = series.setdefault(tuple(labels.items()), [0.0] * (len(_BOUNDS_S) + 2))
        for at, bound in enumerate(_BOUNDS_S):
            if seconds <= bound:
                row[at] += 1
        row[-2] += 1
        row[-1] += seconds

    def collect(self) -> Iterator[Metric]:
        """Everything, for the library's encoders; and `process_*` of this process."""
        from prometheus_client import CollectorRegistry, ProcessCollector
        from prometheus_client.core import Metric

        read: dict[str, list[tuple[dict[str, str], float]]] = {}
        for source in self._sources:
            for name, labels, value in source():
                _check(name, "gauge", labels)
                read.setdefault(name, []).append((labels, value))
        for name, family in FAMILIES.items():
            found = Metric(name.removesuffix("_total"), family.help, family.kind)
            if name in self._gauges:
                found.add_sample(name, {}, self._gauges[name]())
            for labels, value in read.get(name, ()):
                found.add_sample(name, labels, value)
            for key, value in self._values.get(name, {}).items():
                found.add_sample(name, dict(key), value)
            for key, row in self._histograms.get(name, {}).items():
                _add_histogram(found, name, dict(key), row)
            if not found.samples and family.kind == "counter" and not family.labels:
                found.add_sample(name, {}, 0)  # nothing happened yet: that is a number too
            if found.samples:
                yield found
        yield from ProcessCollector(registry=CollectorRegistry()).collect()

    def text(self) -> str:
        """Everything, as Prometheus reads it."""
        return self.exposition()[0].decode()

    def exposition(self, accept: str = "") -> tuple[bytes, str]:
        """The same with its Content-Type: OpenMetrics where `accept` asks for it."""
        from prometheus_client.exposition import (
            CONTENT_TYPE_PLAIN_0_0_4,
            choose_encoder,
            generate_latest,
        )

        try:
            encoder, content_type = choose_encoder(accept)
        except (ValueError, TypeError):  # a version that is no number: as if none was asked for
            encoder, content_type = generate_latest, CONTENT_TYPE_PLAIN_0_0_4
        return encoder(self), content_type


def _check(name: str, kind: str, labels: dict[str, str]) -> None:
    family = FAMILIES[name]
    if family.kind != kind:
        raise ValueError(f"{name} is a {family.kind}, not a {kind}")
    if labels.keys() != set(family.labels):
        raise ValueError(f"{name} has the labels {family.labels}, not {tuple(labels)}")


def _add_histogram(found: Any, name: str, labels: dict[str, str], row: list[float]) -> None:
    for at, bound in enumerate(_BOUNDS_S):
        found.add_sample(f"{name}_bucket", {**labels, "le": str(bound)}, row[at])
    found.add_sample(f"{name}_bucket", {**labels, "le": "+Inf"}, row[-2])
    found.add_sample(f"{name}_sum", labels, row[-1])
    found.add_sample(f"{name}_count", labels, row[-2])
