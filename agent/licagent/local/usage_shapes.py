# SPDX-License-Identifier: Apache-2.0
"""What the methods `usage`, `top` and `usage.verify` answer with, field by field.

Quantities are whole numbers in the meter's unit, named by `licagent.domain.usage.Meter.key`:
`cpu_ns` in nanoseconds, `..._bytes` in bytes, `..._byte_ms` in bytes times milliseconds. A
quantity that this host cannot measure is null (in `top`) or absent and named in `unsupported`
(in `usage`), never zero. Moments are RFC 3339 UTC with a Z; `..._boottime_ns` and `..._ns` of
`top` are CLOCK_BOOTTIME.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NotRequired, TypedDict

Quantities = dict[str, int]
"""Meter key -> amount; a meter that is absent was zero, or does not belong here."""

USAGE_BY: Final = ("license", "process", "unit", "user", "resource", "executable")
"""What `usage` adds up by. `process` is (pid, process_start); pid 0 gathers the short-lived."""

TOP_BY: Final = ("process", "unit", "license")
"""What `top` shows a row for."""

# ------------------------------------------------------------------------------------ usage


class UsageRow(TypedDict):
    """One line of `usage`. What the rows are not added up by is null where it is not one value."""

    name: str
    """The value of `by` for people: a license's id, `orders[4242]`, a unit; "" for none."""
    license: str | None
    resource: str | None
    unit: str | None
    user: str | None
    executable: str | None
    pid: int | None
    process_start: str | None
    quantities: Quantities
    estimated: Sequence[str]
    """Meter keys some of whose amount was not measured exactly, sorted."""
    unsupported: Sequence[str]
    """Meter keys that were not measured for some of the interval, sorted."""
    sockets: NotRequired[int | None]
    """by=license without since and until: licensed sockets open now."""
    allowed: NotRequired[int | None]
    """The same: decisions since the agent's programs were loaded."""
    denied: NotRequired[int | None]


class Rest(TypedDict):
    """Rows beyond `limit`, added up, so that totals hold.

    Of more than 6,000 rows (or more than one and a half times `limit`) the smallest are added
    up here while they are counted, with what came of them later.
    """

    rows: int
    quantities: Quantities


class Unattributed(TypedDict):
    """What the host's own totals have and no process could be given."""

    quantities: Quantities
    details: Sequence[str]
    """Why, each text once, at most 20."""


class GapRow(TypedDict):
    """Sequences of the ledger that are lost, and known to be."""

    epoch: str
    """A 64-bit number, as text."""
    first: int
    last: int
    reason: str


class UsageResult(TypedDict):
    """`usage`. Filters (license, resource, unit, user) match exactly; "" matches none."""

    by: str
    metering: str
    """on, degraded or off; off: nothing is measured, rows are what was committed before."""
    since: str | None
    """Start of the oldest record that counted; null if none did. A record counts if it
    overlaps the window asked for: records are not cut, so this may be before what was asked."""
    until: str | None
    rows: Sequence[UsageRow]
    """The largest first: by cpu_ns, then bytes on the network, then stored_byte_ms."""
    rest: Rest
    total: Quantities
    """Rows, rest and unattributed: the host's own total as far as it was metered."""
    unattributed: Unattributed
    """Zero amounts while a filter is set."""
    records: int
    """Records of the ledger that were added up."""
    pending: bool
    """Whether the kernel's open sheet is in it, too: not committed and not signed yet."""
    counted_from: str | None
    """null: all that was asked for is counted. Else the ledger is too long to be read for one
    answer: what was committed before this moment is not in it; ask with since and until."""
    gaps: Sequence[GapRow]
    """Of the whole ledger."""


# -------------------------------------------------------------------------------------- top

TOP_COLUMNS: Final = (
    "pid",  # process: its id, 0 of the short-lived (see TopResult). unit, license: null
    "start_ns",  # process: CLOCK_BOOTTIME of its start; with pid it names the process. else 0
    "ppid",  # process: its parent's id, 0 if unknown. else null
    "name",  # process: its comm. unit, license: the name, "" for what belongs to none
    "executable",  # process: path, "[name]" of a kernel thread, "" unknown. else ""
    "user",  # process: name, or the uid as text. else ""
    "unit",  # process: its unit or container, else its cgroup's path. unit: the same as name
    "license",  # of its compute if it has one, else of its latest flow; "" for none
    "exited_ns",  # process: CLOCK_BOOTTIME at which it was found gone; 0 while it lives. else 0
    "processes",  # live ones: 1 or 0, or how many of the unit or license
    "cpu_ns",  # totals since the agent saw it first; they never fall while the row is there
    "read_bytes",
    "write_bytes",
    "tx_payload_bytes",
    "rx_payload_bytes",
    "tx_wire_bytes",
    "rx_wire_bytes",
    "memory_bytes",  # resident now
    "stored_bytes",  # unit, license: storage footprint at the last walk. process: null
)
"""Order of the values in a row of `top`. A client finds a column by its name in `columns`."""

TopValue = int | str | None


class TopHost(TypedDict):
    """The host, beside its processes."""

    name: str
    cpus: int
    """Online."""
    cpu_ns: int | None
    """Busy time of all CPUs below the agent's root since boot: the host's own total."""
    memory_bytes: int
    """Fitted."""
    memory_used_bytes: int
    """Fitted less available."""
    processes: int
    """Live ones that are metered."""


class MeterState(TypedDict):
    """How a meter is read on this host."""

    quality: str
    """exact, estimated or unsupported."""
    source: str
    """One of: what it is read from, such as sum_exec_runtime; "" if unsupported."""


class TopResult(TypedDict):
    """`top`: one snapshot. Rates are differences of two, over at_boottime_ns.

    `boot` and `started_ns` together name one run of the counters: when either differs, the
    totals began anew and there is no rate. Exited processes stay in for 60 s if asked for.
    A unit's and a license's totals include processes that have ended; a unit or license leaves
    the table when it has had no process, flow or footprint for 60 s.

    Of by=process the rows with pid 0 gather processes that lived and died between two samples,
    one row for each (name, executable, user, unit, license); so the sum of all rows is the
    total. Their `processes` and `exited_ns` are 0.
    """

    by: str
    metering: str
    """on, degraded or off."""
    boot: str
    """The boot id."""
    started_ns: int
    """CLOCK_BOOTTIME since which totals are counted (the daemon's start)."""
    at: str
    at_boottime_ns: int
    """When the counters were read. Two calls within 250 ms may answer with the same reading."""
    host: TopHost
    meters: dict[str, MeterState]
    """By meter key: of cpu_ns, read_bytes, ... and stored_bytes, memory_bytes."""
    columns: Sequence[str]
    rows: Sequence[Sequence[TopValue]]
    unattributed: Quantities
    """Totals since started_ns."""


# ---------------------------------------------------------------------------- usage.verify


class EpochRow(TypedDict):
    """One chain of records."""

    epoch: str
    public_key: str
    """Ed25519, 64 hexadecimal digits, as the control plane stored it; "" if it is lost."""
    first: int
    """Sequence of the oldest record kept; 0 if none is."""
    last: int
    acknowledged: int
    """Sequence up to which the control plane has it; 0: nothing, or no control plane."""
    is_current: bool


class VerifyResult(TypedDict):
    """`usage.verify`: the ledger read anew from disk, every hash and signature checked."""

    good: bool
    """No problem. Records that should be here and are damaged or missing are one, also where the
    daemon named them itself. What the spool's bound took from the beginning is none."""
    folder: str
    segments: int
    frames: int
    batches: int
    records: int
    epochs: Sequence[EpochRow]
    """Oldest first. Of a wholly acknowledged one only what a reader of the folder knows."""
    gaps: Sequence[GapRow]
    problems: Sequence[str]
    """For people: altered, damaged or missing things, each with its place."""
