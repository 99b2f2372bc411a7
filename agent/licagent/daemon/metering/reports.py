# SPDX-License-Identifier: Apache-2.0
"""What `usage` is answered with (licagent.local.usage_shapes has the fields)."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, Final

from licagent.control.usage_wire import RecordDamaged, decode, interval
from licagent.daemon.decisions import rfc3339
from licagent.daemon.licensing import reports as license_reports
from licagent.daemon.metering.status import keyed, state_of
from licagent.daemon.metering.verify import gap_row
from licagent.domain.reason import Verdict
from licagent.domain.usage import Meter, UsageKind, UsageRecord
from licagent.local.errors import ErrorCode, LocalError
from licagent.metering.tally import Row, Tally, Wanted, add_to, rank

if TYPE_CHECKING:
    from licagent.daemon.agent import Agent
    from licagent.daemon.metering.parts import MeteringParts
    from licagent.daemon.service import OnKernel
    from licagent.local.usage_shapes import UsageResult, UsageRow

Params = Mapping[str, Any]

PATIENCE_S: Final = 10.0
"""So long the ledger is read for one answer, and then to the end of the segment: a full one has
tens of millions of records, and whoever asks waits for half a minute at the most."""
_SAME_MS: Final = 5
"""Two readings of the trusted clock may tell one moment this much apart."""
_TICK_NS: Final = 20_000_000
_PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")
_CLOCK_TICK_NS: Final = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
_YIELD_RECORDS: Final = 2_000
_YIELD_S: Final = 0.001
_ROWS_KEPT: Final = 4000


def open_parts_of(agent: Agent) -> MeteringParts:
    """Ledger and meter; LocalError BUSY before they are open."""
    parts = agent.metering.parts
    if parts is None:
        raise LocalError(
            ErrorCode.BUSY,
            f"the meter is not open: {agent.metering.problem or 'it is being opened'}",
            "try again in a moment; licagent status says what is wrong",
        )
    return parts


# --- usage


async def usage(agent: Agent, params: Params, on_kernel: OnKernel) -> UsageResult:
    """Add up the ledger, and what is not committed yet."""
    wanted = Wanted(
        by=params["by"],
        since_unix_ms=_moment_ms("since", params["since"]),
        until_unix_ms=_moment_ms("until", params["until"]),
        license=params["license"],
        resource=params["resource"],
        unit=params["unit"],
        user=params["user"],
    )
    parts = open_parts_of(agent)
    tally = Tally(wanted, rows_kept=max(_ROWS_KEPT, params["limit"]))
    pending = await agent.metering.on_thread(lambda: _pending(agent, parts))
    # On a thread of its own: a week's ledger must hold up neither a commit nor a revocation.
    counted_from_ms = await asyncio.to_thread(_count, tally, parts, pending, wanted)
    sockets: dict[str, dict[str, int]] = {}
    if wanted.by == "license" and wanted.since_unix_ms is None and wanted.until_unix_ms is None:
        sockets = await on_kernel(lambda: _sockets(agent))
    has_all = not wanted.is_filtered and wanted.by == "license"
    result = _amounts(tally, params, sockets, add_idle=has_all)
    result["metering"] = state_of(agent)
    result["pending"] = bool(pending)
    result["gaps"] = [gap_row(gap) for gap in parts.ledger.gaps]
    if counted_from_ms is not None:
        result["counted_from"] = rfc3339(counted_from_ms / 1000)
    return result


def _pending(agent: Agent, parts: MeteringParts) -> list[UsageRecord]:
    charge = agent.metering.charge
    if charge is None or agent.metering.is_off:
        return []
    found: list[UsageRecord] = []
    for sheet in parts.sampler.pending(charge):
        found += parts.sampler.read(sheet).records
    return found


def _count(
    tally: Tally, parts: MeteringParts, pending: list[UsageRecord], wanted: Wanted
) -> int | None:
    """Count, the newest first. From when on all is counted; None: all that was asked for."""
    begun_ms = min((record.start_unix_ms for record in pending), default=None)
    end_s = time.monotonic() + PATIENCE_S
    counted_from_ms = None
    for segment_ms, payloads in parts.ledger.newest_first(wanted.since_unix_ms or 0):
        if counted_from_ms is not None and time.monotonic() > end_s:
            break
        for record in _records(payloads, wanted):
            # Committed since the open sheet was read: it is counted from there.
            is_seen = (
                begun_ms is not None
                and record.start_unix_ms >= begun_ms - _SAME_MS
                and record.kind in (UsageKind.COMPUTE, UsageKind.NETWORK)
            )
            if not is_seen:
                tally.add(record)
        counted_from_ms = segment_ms
    else:
        counted_from_ms = None
    committed = tally.records
    for record in pending:
        tally.add(record)
    tally.records = committed
    return counted_from_ms


def _records(payloads: Iterable[bytes], wanted: Wanted) -> Iterator[UsageRecord]:
    """Those that may be of the window."""
    for number, payload in enumerate(payloads, 1):
        if number % _YIELD_RECORDS == 0:
            time.sleep(_YIELD_S)  # lets others have the interpreter
        times = interval(payload)
        if times is not None and not wanted.overlaps(*times):
            continue
        try:
            yield decode(payload)
        except RecordDamaged:
            continue  # of a later version: `usage verify` says whether it is whole


def _sockets(agent: Agent) -> dict[str, dict[str, int]]:
    """Open sockets and decisions by license id."""
    found: dict[str, dict[str, int]] = {}

    def row(number: int) -> dict[str, int]:
        name = agent.records.jti_of(number) or f"number {number}"
        return found.setdefault(name, {"sockets": 0, "allowed": 0, "denied": 0})

    for number, count in license_reports.holders_by_license(agent).items():
        row(number)["sockets"] += count
    keys = {Verdict.ALLOW: "allowed", Verdict.DENY: "denied"}
    for counter in agent.kernel.counters.read():
        if counter.license and counter.verdict in keys:
            row(counter.license)[keys[counter.verdict]] += counter.count
    return found


def _amounts(
    tally: Tally,
    params: Params,
    sockets: Mapping[str, Mapping[str, int]],
    *,
    add_idle: bool,
) -> UsageResult:
    """What was added up. `add_idle`: licenses that used nothing, but have sockets or decisions."""
    by, limit = params["by"], params["limit"]
    for name in sockets if add_idle else ():
        if (name,) not in tally.rows:
            empty = dict.fromkeys(("resource", "unit", "user", "executable"))
            tally.rows[name,] = Row(values={"license": name, **empty})
    ordered = sorted(tally.rows.values(), key=rank)
    total: dict[Meter, int] = dict(tally.unattributed)
    rest: dict[Meter, int] = dict(tally.folded)
    add_to(total, tally.folded)
    for position, row in enumerate(ordered):
        add_to(total, row.quantities)
        if position >= limit:
            add_to(rest, row.quantities)
    start, end = tally.start_unix_ms, tally.end_unix_ms
    return {
        "by": by,
        "since": None if start is None else rfc3339(start / 1000),
        "until": None if end is None else rfc3339(end / 1000),
        "rows": [_usage_row(by, row, sockets) for row in ordered[:limit]],
        "rest": {
            "rows": max(0, len(ordered) - limit) + tally.folded_rows,
            "quantities": keyed(rest),
        },
        "total": keyed(total),
        "unattributed": {"quantities": keyed(tally.unattributed), "details": tally.details},
        "records": tally.records,
        "metering": "off",
        "pending": False,
        "counted_from": None,
        "gaps": [],
    }


def _usage_row(by: str, row: Row, sockets: Mapping[str, Mapping[str, int]]) -> UsageRow:
    values = row.values
    found: UsageRow = {
        "name": _process_name(row) if by == "process" else str(values.get(by) or ""),
        "license": values["license"],
        "resource": values["resource"],
        "unit": values["unit"],
        "user": values["user"],
        "executable": values["executable"],
        "pid": row.pid if by == "process" else None,
        "process_start": (
            rfc3339(row.process_start_unix_ms / 1000)
            if by == "process" and row.process_start_unix_ms
            else None
        ),
        "quantities": keyed(row.quantities),
        "estimated": sorted(meter.key for meter in row.estimated),
        "unsupported": sorted(meter.key for meter in row.unsupported),
    }
    if by == "license":
        counts = sockets.get(values["license"] or "", {})
        found["sockets"] = counts.get("sockets")
        found["allowed"] = counts.get("allowed")
        found["denied"] = counts.get("denied")
    return found


def _process_name(row: Row) -> str:
    if not row.pid:
        return ""
    executable = row.values["executable"] or ""
    return f"{PurePath(executable).name.strip('[]')}[{row.pid}]"


def _moment_ms(name: str, text: str | None) -> int | None:
    if not text:
        return None
    try:
        found = datetime.fromisoformat(text)
        if found.tzinfo is None:
            raise ValueError(f"{text!r} names no time zone")
    except ValueError as error:
        raise LocalError(
            ErrorCode.INVALID_PARAMS, f"usage: {name}: {error}", "write 2026-01-02T03:04:05Z"
        ) from error
    return round(found.timestamp() * 1000)
