# SPDX-License-Identifier: Apache-2.0
"""What was committed as usage, added up by license and resource for the metrics.

The totals survive a restart of the daemon: they are put down when it stops, with the place in the
ledger that they hold for, and taken up where the ledger still ends there. After a crash it does
not, and they begin at zero: Prometheus knows a counter that begins anew, but would take one that
is a little lower for all of it over again.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from threading import Lock
from typing import Final

from licagent.daemon.metrics.families import SERIES_MAX
from licagent.domain.usage import Meter, UsageKind, UsageRecord
from licagent.observability.families import NONE, Admitted
from licagent.store.errors import DocumentDamaged, StoreError
from licagent.store.statedir import StateDir

_log: Final = logging.getLogger(__name__)

_DOCUMENT: Final = "metrics-usage"
_SCHEMA: Final = "licagent.metrics-usage/1"
_USED: Final = frozenset({UsageKind.COMPUTE, UsageKind.NETWORK, UsageKind.STORAGE})

Pair = tuple[str, ...]
"""License and resource, as labels."""
Place = tuple[int, int]
"""Epoch and next sequence of the ledger."""


class UsageTotals:
    """Added to on the metering thread, read on any."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._admitted = Admitted(SERIES_MAX)
        self._used: dict[tuple[Pair, bool], dict[Meter, int]] = {}
        self._unattributed: dict[Meter, int] = {}

    def add(self, records: Iterable[UsageRecord]) -> None:
        """Count records that were committed."""
        with self._lock:
            for record in records:
                if record.kind is UsageKind.UNATTRIBUTED:
                    sums = self._unattributed
                elif record.kind in _USED:
                    pair = self._admitted.of(record.license or NONE, record.resource or NONE)
                    sums = self._used.setdefault((pair, record.is_loopback), {})
                else:
                    continue
                for meter, amount in record.quantities.items():
                    sums[meter] = sums.get(meter, 0) + amount

    def used(self) -> Iterator[tuple[Pair, bool, Meter, int]]:
        """(license and resource, whether by loopback, meter, amount)."""
        with self._lock:
            rows = [
                (pair, is_loopback, meter, amount)
                for (pair, is_loopback), sums in self._used.items()
                for meter, amount in sums.items()
            ]
        yield from rows

    def unattributed(self) -> dict[Meter, int]:
        """What no owner could be given."""
        with self._lock:
            return dict(self._unattributed)

    def take_up(self, state: StateDir, place: Place) -> None:
        """Go on from what was put down at the same place of the ledger. Never raises."""
        try:
            body = state.read_document(_DOCUMENT, _SCHEMA)
            if body is None or (int(body["epoch"]), int(body["next_sequence"])) != place:
                return
            used: dict[tuple[Pair, bool], dict[Meter, int]] = {
                ((str(row["license"]), str(row["resource"])), bool(row["loopback"])): {
                    Meter(int(meter)): int(amount) for meter, amount in row["amounts"].items()
                }
                for row in body["used"]
            }
            unattributed = {
                Meter(int(meter)): int(amount) for meter, amount in body["unattributed"].items()
            }
        except (DocumentDamaged, StoreError, KeyError, TypeError, ValueError) as error:
            _log.warning("totals of usage begin at zero: %s", error)
            return
        with self._lock:
            self._used, self._unattributed = used, unattributed
            self._admitted = Admitted(SERIES_MAX, dict.fromkeys(pair for pair, _ in used))

    def put_down(self, state: StateDir, place: Place) -> None:
        """Keep them for the next start. Never raises."""
        with self._lock:
            body = {
                "epoch": str(place[0]),
                "next_sequence": place[1],
                "used": [
                    {
                        "license": pair[0],
                        "resource": pair[1],
                        "loopback": is_loopback,
                        "amounts": {str(int(meter)): amount for meter, amount in sums.items()},
                    }
                    for (pair, is_loopback), sums in self._used.items()
                ],
                "unattributed": {
                    str(int(meter)): amount for meter, amount in self._unattributed.items()
                },
            }
        try:
            state.write_document(_DOCUMENT, _SCHEMA, body)
        except (StoreError, OSError) as error:
            _log.warning("totals of usage begin at zero next time: %s", error)
