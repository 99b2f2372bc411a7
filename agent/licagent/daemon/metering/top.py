# SPDX-License-Identifier: Apache-2.0
"""What `top` is answered with (licagent.local.usage_shapes has the fields)."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, Final

import psutil

from licagent.daemon.decisions import rfc3339
from licagent.daemon.metering.reports import Params, open_parts_of
from licagent.daemon.metering.status import keyed, meters, state_of
from licagent.host import posture
from licagent.local.usage_shapes import TOP_COLUMNS
from licagent.metering.processes import Alive, Line, Lines, ProcessLine

if TYPE_CHECKING:
    from licagent.daemon.agent import Agent
    from licagent.daemon.metering.parts import MeteringParts
    from licagent.local.usage_shapes import TopResult, TopValue

_TICK_NS: Final = 20_000_000
"""Start times in /proc are told in clock ticks, of at most 10 ms."""
_PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")
_CLOCK_TICK_NS: Final = 1_000_000_000 // os.sysconf("SC_CLK_TCK")


def top(agent: Agent, params: Params) -> TopResult:
    """One snapshot. On the metering thread."""
    parts, metering = open_parts_of(agent), agent.metering
    by = params["by"]
    now_ns = posture.boottime_ns()
    lines = Lines()
    living: Mapping[int, Alive] = {}
    if metering.charge is not None and not metering.is_off:
        sheets = parts.sampler.pending(metering.charge)
        now_ns = sheets[-1].closed_ns
        lines, living = parts.table.look(sheets, parts.sampler.owners, alive, now_ns, _TICK_NS)
    memory = psutil.virtual_memory()
    live = sum(not line.exited_ns for line in lines.processes.values())
    return {
        "by": by,
        "metering": state_of(agent),
        "boot": posture.boot_id(),
        "started_ns": parts.started_ns,
        "at": rfc3339(time.time()),
        "at_boottime_ns": now_ns,
        "host": {
            "name": socket.gethostname(),
            "cpus": os.cpu_count() or 1,
            "cpu_ns": parts.counters.cpu_ns(),
            "memory_bytes": memory.total,
            "memory_used_bytes": memory.total - memory.available,
            "processes": live,
        },
        "meters": _meters(parts),
        "columns": TOP_COLUMNS,
        "rows": list(_top_rows(agent, by, lines, living, is_exited_shown=params["exited"])),
        "unattributed": keyed(metering.unattributed),
    }


def _meters(parts: MeteringParts) -> dict[str, Any]:
    found = meters(parts)
    found["memory_bytes"] = {"quality": "estimated", "source": "/proc/PID/stat"}
    states = parts.footing.states()
    sources = sorted({each.source for each in states})
    found["stored_bytes"] = {
        "quality": "estimated" if states else "unsupported",
        "source": ", ".join(sources),
    }
    return found


def _top_rows(
    agent: Agent, by: str, lines: Lines, living: Mapping[int, Alive], *, is_exited_shown: bool
) -> Iterator[list[TopValue]]:
    if by == "process":
        for (pid, start_ns), line in lines.processes.items():
            if line.exited_ns and not is_exited_shown:
                continue
            found = None if line.exited_ns else living.get(pid)
            yield [
                *(pid, start_ns, found.parent if found else 0, _name(line), line.executable),
                *(line.user, line.unit, line.license, line.exited_ns, int(found is not None)),
                *line.amounts,
                *(found.resident_bytes if found else 0, None),
            ]
        for (name, executable, user, unit, license_), short in lines.short.items():
            yield [
                *(0, 0, 0, name, executable, user, unit, license_, 0, 0),
                *short.amounts,
                *(0, None),
            ]
        return
    table = lines.units if by == "unit" else lines.licenses
    counts, memory = _gathered(by, lines, living)
    stored = _stored(agent, by)
    for name in sorted({*table, *counts, *stored}):
        yield [
            *(None, 0, None, name, "", "", name if by == "unit" else ""),
            *(name if by == "license" else "", 0, counts.get(name, 0)),
            *table.get(name, Line()).amounts,
            *(memory.get(name, 0), stored.get(name, 0) if stored else None),
        ]


def _name(line: ProcessLine) -> str:
    """Flows do not tell the name: then that of the executable."""
    return line.name or PurePath(line.executable).name


def _gathered(
    by: str, lines: Lines, living: Mapping[int, Alive]
) -> tuple[dict[str, int], dict[str, int]]:
    """Live processes, and their memory, by unit or license."""
    counts: dict[str, int] = {}
    memory: dict[str, int] = {}
    for (pid, _start_ns), line in lines.processes.items():
        found = living.get(pid)
        if line.exited_ns or found is None:
            continue
        name = line.unit if by == "unit" else line.license
        counts[name] = counts.get(name, 0) + 1
        memory[name] = memory.get(name, 0) + found.resident_bytes
    return counts, memory


def _stored(agent: Agent, by: str) -> dict[str, int]:
    """Footprints as last measured, by the unit of their records or their license."""
    parts, charge = agent.metering.parts, agent.metering.charge
    if parts is None or charge is None:
        return {}
    found: dict[str, int] = {}
    for each in parts.footing.states():
        name = each.name
        if by == "license":
            uid = each.uid if each.uid >= 0 else None
            name = charge.footprint(each.resource, uid).license
        found[name] = found.get(name, 0) + each.stored_bytes
    return found


def alive(pids: Iterable[int]) -> dict[int, Alive]:
    """The live ones among some processes, from /proc/PID/stat. Zombies are not."""
    found: dict[int, Alive] = {}
    for pid in pids:
        if pid in found:
            continue
        try:
            with open(f"/proc/{pid}/stat", "rb") as stat:
                text = stat.read()
        except OSError:
            continue
        # The name in field 2 may hold blanks and brackets: count from the last bracket.
        fields = text[text.rindex(b")") + 2 :].split()
        if fields[0] in (b"Z", b"X"):
            continue
        found[pid] = Alive(
            start_ns=int(fields[19]) * _CLOCK_TICK_NS,
            parent=int(fields[1]),
            resident_bytes=int(fields[21]) * _PAGE_BYTES,
        )
    return found
