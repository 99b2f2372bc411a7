# SPDX-License-Identifier: Apache-2.0
"""docs/reference/metrics.md: every metric of agent and control plane, from their tables."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from generator.pages import page, table
from licagent.daemon.metrics.families import FAMILIES as AGENT
from licagent.daemon.metrics.families import SERIES_MAX
from licplane.api.metrics import FAMILIES as PLANE


def metrics() -> str:
    """docs/reference/metrics.md."""
    return page(
        "Metrics",
        "What agent and control plane serve at `/metrics`; how to have it scraped is in "
        "[monitor](../how-to/monitor.md), what to do at each alert in "
        "[runbooks](../operations/runbooks.md). Prometheus' text format, or OpenMetrics where the "
        "scraper asks for it, written by the official client library.",
        "Names keep to Prometheus' conventions: base units, `_total` for what only grows, "
        "`_timestamp_seconds` for points in time since 1970. A value that does not exist is "
        "absent, not zero: no lease, no end of leases. There is no label for processes, sockets, "
        "users or addresses, and every label has a bound, as the last column says. `none` stands "
        "for use without a license or resource. Beside these each process serves `process_*` "
        "about itself: CPU, memory, descriptors, start.",
        f"## Agent\n\nRead from the kernel when somebody scrapes, once a second at the most. Of "
        f"licenses and resources the first {SERIES_MAX} pairs that come have series of their own "
        "for as long as the daemon lives, and all later ones are `other`, so that no counter "
        "moves from one series to another.",
        _table(AGENT),
        "Totals of decisions and events are the kernel's: they survive the daemon, its crash "
        "and its upgrade, and begin anew with the machine. Totals of usage survive a restart and "
        "an upgrade, and begin anew after a crash; the [ledger](metering.md) has every record. "
        "They are counted while `metrics_listen` names an address. Other totals begin with the "
        "daemon.",
        "## Control plane\n\nEach worker serves its own. What comes from the database, from "
        "`licplane_database_up` on, is alike on all of them and read every ten seconds at the "
        "most: ask for `max()` of it, not for `sum()`.",
        _table(PLANE),
    )


def _table(families: Mapping[str, Any]) -> str:
    rows: Iterable[Iterable[object]] = (
        (
            f"`{name}`",
            family.kind,
            family.help,
            ", ".join(f"`{label}`" for label in family.labels),
            family.bound,
        )
        for name, family in families.items()
    )
    return table(("metric", "kind", "what", "labels", "series at most"), rows)
