# SPDX-License-Identifier: Apache-2.0
"""Usage of the fleet: by license, host, unit and the rest, in any window."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Final

from licplane.service.access import Permission, require
from licplane.service.billing.pricing import Subject
from licplane.service.core import Core
from licplane.service.texts import one_of, refuse
from licplane.service.values import Actor
from licplane.store.money_schema import METERS
from licplane.store.reader import Reader
from licplane.store.usage_model import LostRange, UsageKind
from licplane.store.usage_rollups import UsageWork
from licplane.store.usage_sums import FOREVER_MS, Key, UsageSum, Window

ROWS_MAX: Final = 20_000
"""Lines of one answer; a window with more must be asked for in parts."""
SPLITS: Final[Mapping[str, tuple[str, ...]]] = {
    "license": ("license",),
    "organization": ("organization",),
    "project": ("organization", "project"),
    "environment": ("environment",),
    "region": ("region",),
    "host": ("host",),
    "unit": ("unit",),
    "user": ("user",),
    "process": ("host", "executable", "pid", "process_start"),
    "executable": ("executable",),
    "resource": ("resource",),
    "binding": ("binding",),
    "kind": ("kind",),
    "protocol": ("protocol",),
    "loopback": ("loopback",),
    "hour": ("hour",),
    "day": ("day",),
}
"""What usage can be asked for by, and the columns that it then has."""
FILTERS: Final = (
    "license",
    "resource",
    "binding",
    "host",
    "organization",
    "project",
    "environment",
    "region",
    "unit",
    "user",
    "executable",
)
BILLED: Final = (
    "license",
    "resource",
    "organization",
    "project",
    "environment",
    "region",
    "host",
    "kind",
    "protocol",
    "loopback",
)
"""What bills, triggers and budgets look at, in the order of pricing.Subject."""


@dataclass(frozen=True, slots=True)
class UsageQuery:
    """What is asked for. Names and values of `where` are FILTERS and patterns with * and ?."""

    by: tuple[str, ...] = ("license",)
    since_ms: int = 0
    until_ms: int = 0  # 0: up to now, and what clocks that are ahead told
    where: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class UsageLine:
    """One line of the answer."""

    key: tuple[str | int, ...]  # as UsageTable.columns
    quantities: Mapping[str, int]
    records: int
    first_ms: int
    last_ms: int
    estimated: tuple[str, ...]  # meters of which some was measured by other than exact means
    unsupported: tuple[str, ...]  # meters that some of the hosts cannot measure
    unattributed: bool = False  # of what no process could be given: a line of its own


@dataclass(frozen=True, slots=True)
class UsageTable:
    """The answer, largest CPU time first; by time where that was asked for."""

    columns: tuple[str, ...]
    lines: tuple[UsageLine, ...]
    totals: Mapping[str, int]
    since_ms: int
    until_ms: int
    waiting_batches: int  # stored, and not in the rollups yet; they are in the answer
    notes: tuple[str, ...] = ()
    hostnames: Mapping[str, str] | None = None  # of the host ids in it


class UsageQueries:
    """Answering."""

    def __init__(self, core: Core) -> None:
        self._core = core

    def ask(self, actor: Actor, query: UsageQuery) -> UsageTable:
        """The answer. Raises PlaneError USAGE for what cannot be asked."""
        require(actor, Permission.READ_USAGE)
        columns = columns_of(query.by)
        window = Window(query.since_ms, query.until_ms or FOREVER_MS)
        if not 0 <= window.since_ms < window.until_ms:
            raise refuse("The window ends before it begins", "Give --since before --until")
        patterns: dict[str, list[str]] = {}
        for name, value in query.where:
            patterns.setdefault(one_of(name, "The filter", FILTERS), []).append(value)
        with self._core.store.reading() as reader:
            hostnames = {host.host_id: host.hostname for host in reader.hosts()}
            has_kind = "kind" in columns
            asked = columns if has_kind else (*columns, "kind")
            every = _matching(reader, window, asked, patterns, hostnames)
            waiting = reader.pending_batches()
            work = reader.usage_work()
            gaps = reader.gaps()
            alarms = reader.usage_alarms()
        kind_at = asked.index("kind")
        told = sum(one.records for one in every if one.key[kind_at] == UsageKind.GAP)
        found = _with_unattributed_apart(every, kind_at, len(columns))
        if len(found) > ROWS_MAX:
            raise refuse(
                f"The answer has {len(found)} lines, more than {ROWS_MAX}",
                "Ask for a shorter window, with fewer columns or with a filter",
            )
        made = [_line(one, is_unattributed=flag) for (_, flag), one in found.items()]
        lines = sorted(made, key=lambda one: _order(columns, one))
        totals: dict[str, int] = {}
        for one in found.values():
            for meter, amount in one.quantities.items():
                totals[meter] = totals.get(meter, 0) + amount
        return UsageTable(
            columns,
            tuple(lines),
            totals,
            query.since_ms,
            query.until_ms,
            waiting,
            (
                *_notes(window, work),
                *_losses(gaps, len(alarms), told),
            ),
            hostnames if "host" in columns else None,
        )


def columns_of(by: Sequence[str]) -> tuple[str, ...]:
    """The columns of an answer, each once."""
    found: list[str] = []
    for one in by:
        for column in SPLITS[one_of(one, "The split", SPLITS)]:
            if column not in found:
                found.append(column)
    return tuple(found)


def billed_lines(
    reader: Reader, window: Window, *, rolled_only: bool = False, more: Sequence[str] = ()
) -> list[tuple[Subject, UsageSum]]:
    """Usage as bills look at it; `more` dimensions come behind in the key."""
    found = reader.usage_sums(window, (*BILLED, *more), rolled_only=rolled_only)
    return [(subject_of(one.key), one) for one in found]


def subject_of(key: Key) -> Subject:
    """The subject in a key that begins with BILLED."""
    values: tuple[Any, ...] = key[: len(BILLED)]
    return Subject(*values)


def meters_in(mask: int) -> tuple[str, ...]:
    """The meters of a bit mask."""
    return tuple(meter for at, meter in enumerate(METERS) if mask >> at & 1)


def kind_word(kind: int) -> str:
    """The kind of a record in words: `compute`."""
    try:
        return UsageKind(kind).name.lower()
    except ValueError:
        return str(kind)


def _matching(
    reader: Reader,
    window: Window,
    columns: tuple[str, ...],
    patterns: Mapping[str, Sequence[str]],
    hostnames: Mapping[str, str],
) -> list[UsageSum]:
    exact: dict[str, Sequence[str | int]] = {}
    loose: dict[str, Sequence[str]] = {}
    for name, values in patterns.items():
        if name == "host":
            exact[name] = [
                host_id
                for host_id, hostname in hostnames.items()
                if any(fnmatchcase(hostname, one) or host_id == one for one in values)
            ] + list(values)
        elif any("*" in one or "?" in one or "[" in one for one in values):
            loose[name] = values
        else:
            exact[name] = values
    extra = tuple(name for name in loose if name not in columns)
    found = reader.usage_sums(window, (*columns, *extra), where=exact)
    if not loose:
        return found
    names = (*columns, *extra)
    merged: dict[Key, UsageSum] = {}
    for one in found:
        values_of = dict(zip(names, one.key, strict=True))
        if not all(
            any(fnmatchcase(str(values_of[name]), pattern) for pattern in wanted)
            for name, wanted in loose.items()
        ):
            continue
        one.key = one.key[: len(columns)]
        if one.key in merged:
            merged[one.key].add(one)
        else:
            merged[one.key] = one
    return list(merged.values())


def _with_unattributed_apart(
    sums: Sequence[UsageSum], kind_at: int, columns: int
) -> dict[tuple[Key, bool], UsageSum]:
    """The lines of the answer: what could not be attributed is never among what was; records
    that tell of a gap have no quantities, and are no line."""
    found: dict[tuple[Key, bool], UsageSum] = {}
    for one in sums:
        kind = one.key[kind_at]
        if kind == UsageKind.GAP:
            continue
        one.key = one.key[:columns]
        key = (one.key, kind == UsageKind.UNATTRIBUTED)
        if key in found:
            found[key].add(one)
        else:
            found[key] = one
    return found


def _line(one: UsageSum, *, is_unattributed: bool) -> UsageLine:
    return UsageLine(
        one.key,
        one.quantities,
        one.records,
        one.first_ms,
        one.last_ms,
        meters_in(one.estimated),
        meters_in(one.unsupported),
        is_unattributed,
    )


def _order(columns: tuple[str, ...], one: UsageLine) -> tuple[Any, ...]:
    times = [value for name, value in zip(columns, one.key, strict=True) if name in ("hour", "day")]
    bytes_used = sum(amount for meter, amount in one.quantities.items() if meter.endswith("_bytes"))
    return (
        times,
        one.unattributed,
        -one.quantities.get("cpu_ns", 0),
        -bytes_used,
        tuple(map(str, one.key)),
    )


def _notes(window: Window, work: UsageWork) -> tuple[str, ...]:
    found = []
    for gone_ms, step_ms, what, whole in (
        (work.kept_until_ms, 3_600_000, "Records", "hours"),
        (work.hourly_kept_until_ms, 86_400_000, "Sums of hours", "days"),
    ):
        edges = (window.since_ms, window.until_ms)
        if any(edge < gone_ms and edge % step_ms for edge in edges):
            found.append(f"{what} of then were deleted: the window is taken as of whole {whole}")
    if window.since_ms < work.daily_kept_until_ms:
        found.append("Usage before the retention of daily sums was deleted, and is not in it")
    return tuple(found)


def _losses(gaps: Sequence[LostRange], alarms: int, told: int) -> list[str]:
    """What the sums lack for ever, whatever the window: a gap of the chain has no times."""
    found = []
    if told:
        found.append(
            f"In this window hosts say in {told} records what they could not measure or keep:"
            " `licplane export cloudevents` has the words (kind gap)"
        )
    if gaps:
        count = sum(one.last_sequence - one.first_sequence + 1 for one in gaps)
        hosts = len({one.host_id for one in gaps})
        found.append(
            f"{count} records of {hosts} hosts are lost, at some time: `licplane report` names them"
        )
    if alarms:
        found.append(f"{alarms} alarms of usage are up: `licplane report` says which")
    return found
