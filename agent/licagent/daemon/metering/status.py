# SPDX-License-Identifier: Apache-2.0
"""Metering in `licagent status` and `doctor`: how it stands, and what needs somebody."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

from licagent.daemon.decisions import rfc3339
from licagent.domain.usage import Meter, Quality
from licagent.metering.records import FLOW_METERS, WORK_METERS
from licagent.metering.spool import Refusal

if TYPE_CHECKING:
    from licagent.daemon.agent import Agent
    from licagent.daemon.metering.parts import MeteringParts

Report = dict[str, Any]

_GAPS_SHOWN: Final = 20
_PROBLEMS_SHOWN: Final = 20


def state_of(agent: Agent) -> str:
    """on, degraded or off."""
    metering = agent.metering
    if metering.is_off:
        return "off"
    parts = metering.parts
    if metering.problem:
        return "degraded"
    if parts is None:
        return "on"  # the kernel counts already; the ledger is being opened
    qualities = parts.qualities.of
    lacking = [meter for meter in WORK_METERS if qualities.get(meter) is Quality.UNSUPPORTED]
    return "degraded" if lacking else "on"


def keyed(quantities: Mapping[Meter, int]) -> dict[str, int]:
    """Quantities by the meters' keys, without zeros."""
    return {meter.key: quantities[meter] for meter in sorted(quantities) if quantities[meter]}


def metering(agent: Agent) -> Report:
    """Everything of metering that people ask for."""
    keeper = agent.metering
    parts = keeper.parts
    committed_s = keeper.committed_at_s
    return {
        "state": state_of(agent),
        "problem": keeper.problem or None,
        "interval_s": agent.config.metering_interval_s * keeper.interval_factor,
        "last_commit": rfc3339(committed_s) if committed_s else None,
        "behind_s": round(max(0.0, time.time() - committed_s), 3) if committed_s else None,
        "records": keeper.records,
        "step_s": round(keeper.step_s, 6),
        "attributed": keyed(keeper.attributed),
        "unattributed": keyed(keeper.unattributed),
        "unattributed_ratio": ratio(keeper.attributed, keeper.unattributed, Meter.CPU_NS),
        "meters": {} if parts is None else meters(parts),
        "spool": None if parts is None else _spool(agent, parts),
        "delivery": _delivery(agent),
        "footprints": [] if parts is None else _footprints(parts),
    }


def ratio(given: dict[Meter, int], left: dict[Meter, int], meter: Meter) -> float | None:
    """The share of a meter that nobody could be given; None before anything was used."""
    total = given.get(meter, 0) + left.get(meter, 0)
    return round(left.get(meter, 0) / total, 6) if total else None


def meters(parts: MeteringParts) -> Report:
    """How each meter is read on this host."""
    return {
        meter.key: {
            "quality": parts.qualities.of.get(meter, Quality.EXACT).value,
            "source": source,
        }
        for meter, source in parts.sources.items()
    }


def _spool(agent: Agent, parts: MeteringParts) -> Report:
    ledger = parts.ledger
    gaps = list(ledger.gaps)
    return {
        "bytes": ledger.size_bytes,
        "max_bytes": agent.config.spool_max_bytes,
        "epoch": str(ledger.epoch),
        "next_sequence": ledger.next_sequence,
        "unacknowledged": ledger.backlog_records,
        "gaps": [
            {"epoch": str(gap.epoch), "first": gap.first, "last": gap.last, "reason": gap.reason}
            for gap in gaps[-_GAPS_SHOWN:]
        ],
        "problems": list(ledger.problems)[:_PROBLEMS_SHOWN],
    }


def _delivery(agent: Agent) -> Report | None:
    """None on a host that delivers to nobody."""
    if not agent.link.state.host_id or agent.link.is_off:
        return None
    progress = agent.link.delivery.progress
    return {
        "connected": progress.is_connected,
        "acknowledged": progress.acknowledged_records,
        "acknowledged_at": _time(progress.acknowledged_at_unix_ms),
        "in_flight": progress.in_flight_records,
        "paused_until": _time(progress.paused_until_unix_ms),
        "refused": progress.refused_records,
        "last_refusal": progress.last_refusal or None,
        "last_error": progress.last_error or None,
        "alarm": progress.alarm or None,
    }


def _footprints(parts: MeteringParts) -> list[Report]:
    states = parts.footing.states()
    return [
        {
            "name": each.name,
            "path": each.path,
            "resource": each.resource or None,
            "stored_bytes": each.stored_bytes,
            "inodes": each.inodes,
            "measured_at": _time(each.measured_unix_ms),
            "source": each.source,
            "problem": each.problem or None,
        }
        for each in states
    ]


def _time(unix_ms: int) -> str | None:
    return rfc3339(unix_ms / 1000) if unix_ms else None


def reasons(agent: Agent) -> Iterator[Report]:
    """Why metering needs somebody; nothing where it does not."""
    keeper = agent.metering
    parts = keeper.parts
    if keeper.refusal is Refusal.FULL:
        yield _reason(
            "spool-full",
            f"the spool of usage is full: {keeper.problem}; usage stays in the kernel, merged",
            "let the host reach its control plane, or give it more: spool_max_bytes",
        )
    elif keeper.problem:
        yield _reason(
            "metering-stopped",
            f"usage is not committed: {keeper.problem}",
            "what is used adds up in the kernel meanwhile; look at the disk of the state folder",
        )
    if parts is None:
        return
    yield from _lacking(parts)
    if parts.spool.unwritable:
        yield _reason(
            "usage-unwritable",
            f"{parts.spool.unwritable} usage records held impossible numbers and were set aside",
            "this is a fault of licagent: the log has them; please report it",
        )
    for problem in list(parts.ledger.problems)[:_PROBLEMS_SHOWN]:
        if problem != keeper.problem:
            yield _reason("usage-ledger", problem, "see `licagent usage verify`")
    for state in parts.footing.states():
        if state.problem:
            yield _reason(
                "footprint",
                f"footprint {state.name} is not measured as it should be: {state.problem}",
                "mend it, or take the footprint out of the settings",
            )
    yield from _delivering(agent)


def _lacking(parts: MeteringParts) -> Iterator[Report]:
    lacking = [
        meter.key
        for meter in (*WORK_METERS, *FLOW_METERS)
        if parts.qualities.of.get(meter) is Quality.UNSUPPORTED
    ]
    if lacking:
        yield _reason(
            "meter-missing",
            f"this kernel does not let these be measured: {', '.join(lacking)}",
            "records say so; see `licagent doctor` for the programs that did not load",
        )


def _delivering(agent: Agent) -> Iterator[Report]:
    progress = agent.link.delivery.progress
    if progress.refused_records:
        yield _reason(
            "usage-refused",
            f"the control plane set {progress.refused_records} usage records aside: "
            f"{progress.last_refusal}",
            "they are kept there, with the reason, and not billed; see `licplane usage verify`",
        )
    elif progress.alarm:
        yield _reason(
            "usage-alarm", f"delivery of usage: {progress.alarm}", "see `licagent usage verify`"
        )


def _reason(code: str, message: str, hint: str) -> Report:
    return {"code": code, "message": message, "hint": hint}


def checks(agent: Agent) -> Iterator[tuple[str, bool, str, str]]:
    """For `licagent doctor`: name, whether it is good, and the words for both cases."""
    keeper = agent.metering
    if keeper.is_off:
        return
    found = [str(reason["message"]) for reason in reasons(agent)]
    state = state_of(agent)
    committed = rfc3339(keeper.committed_at_s) if keeper.committed_at_s else "never"
    yield (
        "metering",
        not found and state == "on",
        f"usage is metered and committed, last at {committed}",
        "; ".join(found) or keeper.problem or "the meter is being opened",
    )
