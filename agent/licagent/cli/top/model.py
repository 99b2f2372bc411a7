# SPDX-License-Identifier: Apache-2.0
"""Snapshots of use as the daemon answers them, and the rates between two. Pure.

What comes from the daemon is read without trust in its form: a column that this version does
not know is passed over, one that is missing or of another type is None.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Final

from licagent.cli.words import safe

TOTALS: Final = (
    "cpu_ns",
    "read_bytes",
    "write_bytes",
    "tx_payload_bytes",
    "rx_payload_bytes",
    "tx_wire_bytes",
    "rx_wire_bytes",
)
"""Meters that only grow: two readings give a rate."""

LEVELS: Final = ("memory_bytes", "stored_bytes")
"""Meters of what is there now."""

Key = tuple[object, ...]


@dataclass(frozen=True, slots=True)
class Row:
    """One process, unit or license of a snapshot. Texts are safe to show."""

    key: Key
    """What names it: (pid, start), or (name,); the short-lived of pid 0 by all their names."""
    pid: int
    """0 for a unit or license, and for processes that lived and died between two samples."""
    start_ns: int
    parent: int
    name: str
    executable: str
    user: str
    unit: str
    license: str
    exited_ns: int
    """0 while it lives."""
    processes: int
    amounts: Mapping[str, int | None]
    """By meter, of TOTALS and LEVELS; None: not measured."""

    @property
    def is_kernel_thread(self) -> bool:
        """Whether it runs no program."""
        return self.executable.startswith("[")


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One answer of the method `top`."""

    by: str
    metering: str
    run: tuple[str, int]
    """Boot id and start of the counters: totals of two runs have nothing to do with each other."""
    at: str
    at_ns: int
    host: Mapping[str, Any]
    qualities: Mapping[str, str]
    """By meter: exact, estimated, unsupported."""
    sources: Mapping[str, str]
    rows: Sequence[Row]
    unattributed: Mapping[str, int | None]


@dataclass(frozen=True, slots=True)
class Line:
    """A row and how fast its totals grew."""

    row: Row
    rates: Mapping[str, float | None]
    """Per second, by meter of TOTALS; None: not known, or not measured."""


@dataclass(frozen=True, slots=True)
class Sample:
    """A snapshot and the rates since the one before."""

    snapshot: Snapshot
    interval_ns: int = 0
    """0: there was none before, so there are no rates."""
    lines: Sequence[Line] = ()
    host_rates: Mapping[str, float | None] = field(default_factory=dict)
    """Of all rows together, and `host_cpu_ns` as the host counts it itself."""
    unattributed_rates: Mapping[str, float | None] = field(default_factory=dict)


def read_snapshot(result: Mapping[str, Any]) -> Snapshot:
    """The snapshot in an answer of the daemon."""
    columns = result.get("columns")
    names = [str(name) for name in columns] if isinstance(columns, list | tuple) else []
    rows = result.get("rows")
    by = _text(result.get("by")) or "process"
    meters = _object(result.get("meters"))
    return Snapshot(
        by=by,
        metering=_text(result.get("metering")) or "off",
        run=(_text(result.get("boot")), _number(result.get("started_ns")) or 0),
        at=_text(result.get("at")),
        at_ns=_number(result.get("at_boottime_ns")) or 0,
        host=_object(result.get("host")),
        qualities={name: _text(_object(each).get("quality")) for name, each in meters.items()},
        sources={name: _text(_object(each).get("source")) for name, each in meters.items()},
        rows=[
            _row(by, dict(zip(names, values, strict=False)))
            for values in (rows if isinstance(rows, list | tuple) else ())
            if isinstance(values, list | tuple)
        ],
        unattributed={
            meter: _number(amount) for meter, amount in _object(result.get("unattributed")).items()
        },
    )


def compare(before: Snapshot | None, now: Snapshot) -> Sample:
    """Rates between two snapshots; none if they are of two runs, or of the same reading."""
    if before is None or (before.run, before.by) != (now.run, now.by) or before.at_ns >= now.at_ns:
        none = dict.fromkeys(TOTALS)
        return Sample(now, lines=[Line(row, none) for row in now.rows])
    interval_ns = now.at_ns - before.at_ns
    known = {row.key: row.amounts for row in before.rows}
    lines = [Line(row, _rates(_earlier(row, known), row.amounts, interval_ns)) for row in now.rows]
    of_host: dict[str, float | None] = {meter: _sum(lines, meter) for meter in TOTALS}
    of_host["host_cpu_ns"] = _rate(
        _number(before.host.get("cpu_ns")), _number(now.host.get("cpu_ns")), interval_ns
    )
    unattributed = {
        meter: _rate(before.unattributed.get(meter, 0), amount, interval_ns)
        for meter, amount in now.unattributed.items()
    }
    return Sample(now, interval_ns, lines, of_host, unattributed)


def _earlier(
    row: Row, known: Mapping[Key, Mapping[str, int | None]]
) -> Mapping[str, int | None] | None:
    found = known.get(row.key)
    if found is None and row.pid:
        # A process that was not there has everything from within the interval. A unit that comes
        # back after a pause has totals of before: those are no rate.
        return dict.fromkeys(TOTALS, 0)
    return found


def _rates(
    before: Mapping[str, int | None] | None, now: Mapping[str, int | None], interval_ns: int
) -> dict[str, float | None]:
    if before is None:
        return dict.fromkeys(TOTALS)
    return {meter: _rate(before.get(meter), now.get(meter), interval_ns) for meter in TOTALS}


def _rate(before: int | None, now: int | None, interval_ns: int) -> float | None:
    if before is None or now is None or now < before:
        return None
    return (now - before) * 1e9 / interval_ns


def _sum(lines: Sequence[Line], meter: str) -> float | None:
    found = [rate for line in lines if (rate := line.rates[meter]) is not None]
    return sum(found) if found else None


def _row(by: str, values: Mapping[str, object]) -> Row:
    pid = _number(values.get("pid")) or 0
    start_ns = _number(values.get("start_ns")) or 0
    name = _text(values.get("name"))
    executable, user = _text(values.get("executable")), _text(values.get("user"))
    unit, license_ = _text(values.get("unit")), _text(values.get("license"))
    key: Key = (name,)
    if by == "process":
        key = (pid, start_ns) if pid else (0, name, executable, user, unit, license_)
    return Row(
        key=key,
        pid=pid,
        start_ns=start_ns,
        parent=_number(values.get("ppid")) or 0,
        name=name,
        executable=executable,
        user=user,
        unit=unit,
        license=license_,
        exited_ns=_number(values.get("exited_ns")) or 0,
        processes=_number(values.get("processes")) or 0,
        amounts={meter: _number(values.get(meter)) for meter in (*TOTALS, *LEVELS)},
    )


def _text(value: object) -> str:
    return _safe(value) if isinstance(value, str) and value else ""


@lru_cache(maxsize=32_768)
def _safe(text: str) -> str:
    # The same names come again with each reading, of thousands of processes.
    return safe(text)


def _number(value: object) -> int | None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        return None
    return value


def _object(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}
