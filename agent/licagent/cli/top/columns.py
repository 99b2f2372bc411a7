# SPDX-License-Identifier: Apache-2.0
"""The columns of `top`: their titles, widths and texts, and which of them fit. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from rich.cells import cell_len, set_cell_size

from licagent.cli.top.arrange import FIGURES, Shown, View
from licagent.cli.words import compact, cpu_time

Text = Callable[[Shown, View], str]


@dataclass(frozen=True, slots=True)
class Column:
    """One column. `name` is also what it is sorted by."""

    name: str
    title: str
    width: int
    """Cells; of a flexible column the least."""
    text: Text
    is_right: bool = True
    share: int = 0
    """Of the room that is left, for flexible columns; 0: fixed."""
    meter: str = ""
    """Whose quality is marked in the title."""


@dataclass(frozen=True, slots=True)
class Placed:
    """A column with the width it has on this screen."""

    column: Column
    width: int
    title: str


def _cpu_percent(shown: Shown, _: View) -> str:
    rate = shown.line.rates["cpu_ns"]
    if rate is None:
        return _unknown(shown, "cpu_ns")
    percent = rate / 1e7
    return f"{percent:.1f}" if percent < 999.95 else f"{percent:.0f}"


def _bytes(name: str) -> Text:
    figure = FIGURES[name]

    def text(shown: Shown, view: View) -> str:
        amount = figure(shown.line, view)
        if amount is None:
            return _unknown(shown, METERS[name].format("wire" if view.wire else "payload"))
        return compact(amount)

    return text


def _unknown(shown: Shown, meter: str) -> str:
    """A rate of which only one reading exists is not yet known; the rest is not measured."""
    return "n/a" if shown.line.row.amounts.get(meter) is None else "-"


def _command(shown: Shown, _: View) -> str:
    row = shown.line.row
    name = f"<{row.name}>" if row.exited_ns else row.name or "-"
    return f"{shown.branch}{'+ ' if shown.is_folded else ''}{name}"


def _named(attribute: str, nothing: str = "-") -> Text:
    return lambda shown, _: getattr(shown.line.row, attribute) or nothing


METERS: Final[Mapping[str, str]] = {
    "mem": "memory_bytes",
    "in": "rx_{}_bytes",
    "out": "tx_{}_bytes",
    "read": "read_bytes",
    "write": "write_bytes",
    "stored": "stored_bytes",
}
"""The meter of a column of bytes."""

_PID = Column("pid", "PID", 7, lambda shown, _: str(shown.line.row.pid or "*"))
_USER = Column("user", "USER", 8, _named("user"), is_right=False)
_CPU = Column("cpu", "CPU%", 5, _cpu_percent, meter="cpu_ns")
_TIME = Column(
    "time", "TIME", 7, lambda shown, _: cpu_time(shown.line.row.amounts["cpu_ns"]), meter="cpu_ns"
)
_BYTES: Final = {
    name: Column(name, title, width, _bytes(name), meter=METERS[name])
    for name, title, width in (
        ("mem", "MEM", 5),
        ("in", "IN", 5),
        ("out", "OUT", 5),
        ("read", "READ", 5),
        ("write", "WRITE", 6),  # the widths hold a title with its mark
        ("stored", "STORED", 7),
    )
}
_PROCS = Column("procs", "PROCS", 5, lambda shown, _: str(shown.line.row.processes))
_COMMAND = Column("command", "COMMAND", 13, _command, is_right=False, share=4)
_LICENSE = Column("license", "LICENSE", 10, _named("license"), is_right=False, share=2)
_UNIT = Column("unit", "UNIT", 14, _named("unit"), is_right=False, share=2)
_NAME_WIDTH: Final = 16

_FLOWS: Final = tuple(_BYTES[name] for name in ("in", "out", "read", "write"))


def columns_of(view: View) -> list[tuple[Column, int]]:
    """The columns of a view from left to right, each with its rank: the highest goes first."""
    work = [(_TIME, 1), (_CPU, 9)] if view.totals else [(_CPU, 1), (_TIME, 9)]
    middle = [*work, (_BYTES["mem"], 2), *((column, 3) for column in _FLOWS)]
    if view.by == "process":
        names = [(_UNIT, 10), (_LICENSE, 4), (_COMMAND, 0)]
        return [(_PID, 0), (_USER, 5), *middle, *names]
    middle += [(_BYTES["stored"], 4)]
    if view.by == "unit":
        name = Column("unit", "UNIT", _NAME_WIDTH, _named("name", "(no unit)"), False, 3)
        return [(name, 0), (_PROCS, 5), *middle, (_LICENSE, 6)]
    name = Column("license", "LICENSE", _NAME_WIDTH, _named("name", "(no license)"), False, 3)
    return [(name, 0), (_PROCS, 5), *middle]


def place(view: View, qualities: Mapping[str, str], width: int | None) -> list[Placed]:
    """The columns that fit into `width` cells, and their widths; None: all, as wide as they need.

    A meter that is not measured exactly has `~` before its title.
    """
    ranked = columns_of(view)
    if width is not None:
        while len(ranked) > 1 and sum(column.width + 1 for column, _ in ranked) - 1 > width:
            ranked.remove(max(ranked, key=lambda pair: pair[1]))
    columns = [column for column, _ in ranked]
    left = 0 if width is None else width - sum(column.width + 1 for column in columns) + 1
    widths = {column.name: column.width for column in columns}
    shares = sum(column.share for column in columns)
    given = 0
    for column in columns:
        if column.share and left > 0:
            more = left * column.share // shares
            widths[column.name] += more
            given += more
    if columns and left > given and shares:
        last = [column for column in columns if column.share][-1]
        widths[last.name] += left - given
    return [
        Placed(column, widths[column.name], _title(column, view, qualities)) for column in columns
    ]


def _title(column: Column, view: View, qualities: Mapping[str, str]) -> str:
    meter = column.meter.format("wire" if view.wire else "payload")
    mark = "~" if qualities.get(meter) == "estimated" else ""
    return mark + column.title


def cells(shown: Shown, view: View, placed: Sequence[Placed]) -> list[str]:
    """The texts of a line, each exactly as wide as its column."""
    return [
        fit(each.column.text(shown, view), each.width, is_right=each.column.is_right)
        for each in placed
    ]


def titles(placed: Sequence[Placed]) -> list[str]:
    """The titles, each exactly as wide as its column."""
    return [fit(each.title, each.width, is_right=each.column.is_right) for each in placed]


def fit(text: str, width: int, *, is_right: bool = False) -> str:
    """`text` in exactly `width` cells of a terminal; a longer one loses its end."""
    if text.isascii():
        return (text.rjust(width) if is_right else text.ljust(width))[:width]
    size = cell_len(text)
    if size < width and is_right:
        return " " * (width - size) + text
    return set_cell_size(text, width)


def measure(text: str) -> int:
    """How many cells of a terminal `text` takes."""
    return len(text) if text.isascii() else cell_len(text)
