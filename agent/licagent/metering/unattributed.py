# SPDX-License-Identifier: Apache-2.0
"""What the host's own totals have and no owner could be given: a line of its own.

Kept as a balance, in whole numbers: what the host's counters grew by, less what somebody was
given, less what was published. The two are not read at the same moment, so a balance swings by
what happens in between. Only what two readings in a row have is published, and what was
published too much by that is taken off what follows: nothing is counted twice.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from licagent.domain.usage import Meter

HostTotals = Mapping[Meter, Mapping[str, int]]
"""Counters of the host by meter and source ("host", or an interface's name); they only grow, a
smaller one was begun anew. A meter that is absent cannot be read as a total on this host."""

_VERSION: Final = 1


@dataclass(frozen=True, slots=True)
class Balance:
    """Where the host's counters stood, and what was left over."""

    boot_id: str = ""
    counters: Mapping[str, Mapping[str, int]] = ()  # type: ignore[assignment]
    left: Mapping[str, int] = ()  # type: ignore[assignment]

    @classmethod
    def from_bytes(cls, data: bytes, boot_id: str) -> Balance:
        """From a mark of the ledger. One of another boot says nothing: counters begin anew."""
        empty = cls(boot_id, {}, {})
        try:
            body: dict[str, Any] = json.loads(data) if data else {}
            if body.get("version") != _VERSION or body["boot_id"] != boot_id:
                return empty
            counters = {
                str(meter): {str(source): int(count) for source, count in sources.items()}
                for meter, sources in body["counters"].items()
            }
            return cls(boot_id, counters, {str(k): int(v) for k, v in body["left"].items()})
        except (ValueError, KeyError, TypeError, AttributeError):
            return empty

    def to_bytes(self) -> bytes:
        """For a mark of the ledger."""
        body = {
            "version": _VERSION,
            "boot_id": self.boot_id,
            "counters": {meter: dict(sources) for meter, sources in self.counters.items()},
            "left": dict(self.left),
        }
        return json.dumps(body, separators=(",", ":"), sort_keys=True).encode()


def settle(
    balance: Balance, totals: HostTotals, attributed: Mapping[Meter, int]
) -> tuple[dict[Meter, int], Balance]:
    """What to publish for an interval, and the balance that goes with it.

    `totals` as read at the interval's end; empty where that moment has passed: then only the
    balance moves. `attributed`: what the interval's records gave to somebody, or published.
    """
    counters = {meter: dict(sources) for meter, sources in balance.counters.items()}
    left = dict(balance.left)
    published: dict[Meter, int] = {}
    for meter in Meter:
        key = meter.key
        before = counters.get(key)
        now = totals.get(meter)
        if before is None and now is None:
            continue
        given = attributed.get(meter, 0)
        if before is None:
            # The first reading: what was used before it is nobody's business.
            counters[key] = dict(now or {})
            left[key] = 0
            continue
        held = left.get(key, 0)
        if now is None:
            left[key] = held - given
            continue
        grown = sum(
            max(0, count - before[source]) for source, count in now.items() if source in before
        )
        balance_now = held + grown - given
        amount = max(0, min(held, balance_now))
        if amount:
            published[meter] = amount
        left[key] = balance_now - amount
        counters[key] = {**before, **now}
    return published, Balance(balance.boot_id, counters, left)
