# SPDX-License-Identifier: Apache-2.0
"""Which lines of a sample are shown, in which order, and as which tree. Pure."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from licagent.cli.top.model import Key, Line

Figure = float | int | None


@dataclass(frozen=True, slots=True)
class View:
    """What its user wants to see."""

    by: str = "process"
    sort: str = "cpu"
    """A name of SORTS."""
    is_reversed: bool = False
    """Against the order that is natural for `sort`: large amounts and names from a to z first."""
    is_tree: bool = False
    """Of processes; units and licenses have none."""
    totals: bool = False
    """What was used so far, instead of how fast."""
    wire: bool = False
    """Bytes on the wire instead of payload."""
    exited: bool = True
    kernel_threads: bool = True
    text: str = ""
    """Filter: part of a name, executable, user, unit or license; `|` between alternatives."""
    user: str = ""
    license: str | None = None
    """Only of this license; "" for what has none."""
    pids: frozenset[int] = frozenset()
    folded: frozenset[Key] = frozenset()
    """Rows of the tree whose children are not shown."""


@dataclass(frozen=True, slots=True)
class Shown:
    """A line, its branch of the tree, and whether it is there only to hold its children."""

    line: Line
    branch: str = ""
    is_frame: bool = False
    is_folded: bool = False


def _growth(meter: str) -> Callable[[Line, View], Figure]:
    def figure(line: Line, view: View) -> Figure:
        return line.row.amounts.get(meter) if view.totals else line.rates.get(meter)

    return figure


def _network(direction: str) -> Callable[[Line, View], Figure]:
    def figure(line: Line, view: View) -> Figure:
        meter = f"{direction}_{'wire' if view.wire else 'payload'}_bytes"
        return line.row.amounts.get(meter) if view.totals else line.rates.get(meter)

    return figure


FIGURES: Final[Mapping[str, Callable[[Line, View], Figure]]] = {
    "cpu": _growth("cpu_ns"),
    "mem": lambda line, _: line.row.amounts["memory_bytes"],
    "in": _network("rx"),
    "out": _network("tx"),
    "read": _growth("read_bytes"),
    "write": _growth("write_bytes"),
    "stored": lambda line, _: line.row.amounts["stored_bytes"],
    "time": lambda line, _: line.row.amounts["cpu_ns"],
    "pid": lambda line, _: line.row.pid,
    "procs": lambda line, _: line.row.processes,
}
"""Sort keys of numbers; all but pid sort the largest first."""

TEXTS: Final[Mapping[str, Callable[[Line], str]]] = {
    "user": lambda line: line.row.user,
    "unit": lambda line: line.row.unit,
    "license": lambda line: line.row.license,
    "command": lambda line: line.row.name,
}
"""Sort keys of texts, a to z."""

SORTS: Final = (*FIGURES, *TEXTS)


def arrange(lines: Sequence[Line], view: View, *, is_ascii: bool = False) -> list[Shown]:
    """The lines that `view` asks for, in its order. `is_ascii`: branches of the tree, too."""
    wanted = [line for line in lines if _is_wanted(line, view)]
    if not view.is_tree or view.by != "process":
        return [Shown(line) for line in ordered(wanted, view)]
    return _tree(lines, wanted, view, is_ascii=is_ascii)


def ordered(lines: Iterable[Line], view: View) -> list[Line]:
    """Sorted by the view's key; what is not known comes last either way."""
    # First by what never changes, so that equal lines stay where they are.
    found = sorted(lines, key=lambda line: (line.row.pid, line.row.start_ns, line.row.name))
    text = TEXTS.get(view.sort)
    if text is not None:
        full = [line for line in found if text(line)]
        full.sort(key=lambda line: text(line).casefold(), reverse=view.is_reversed)
        return full + [line for line in found if not text(line)]
    figure = FIGURES.get(view.sort, FIGURES["cpu"])
    known: list[tuple[float, Line]] = []
    unknown: list[Line] = []
    for line in found:
        amount = figure(line, view)
        if amount is None:
            unknown.append(line)
        else:
            known.append((amount, line))
    falling = (view.sort != "pid") != view.is_reversed
    known.sort(key=lambda pair: -pair[0] if falling else pair[0])
    return [line for _, line in known] + unknown


def _is_wanted(line: Line, view: View) -> bool:
    row = line.row
    if row.exited_ns and not view.exited:
        return False
    if row.is_kernel_thread and not view.kernel_threads:
        return False
    if view.pids and row.pid not in view.pids:
        return False
    if view.user and row.user != view.user:
        return False
    if view.license is not None and row.license != view.license:
        return False
    return matches(line, view.text)


def matches(line: Line, text: str) -> bool:
    """Whether one of the alternatives in `text` is part of one of the row's texts."""
    row = line.row
    wanted = [part for part in text.casefold().split("|") if part]
    if not wanted:
        return True
    found = f"{row.name}\n{row.executable}\n{row.user}\n{row.unit}\n{row.license}".casefold()
    return any(part in found for part in wanted)


# ------------------------------------------------------------------------------------- tree


def _tree(
    lines: Sequence[Line], wanted: Sequence[Line], view: View, *, is_ascii: bool
) -> list[Shown]:
    """Children below their parents. Parents that are not wanted stay as frames."""
    bar, fork, last, space = ("| ", "|- ", "`- ", "  ") if is_ascii else ("│ ", "├─ ", "└─ ", "  ")
    parents = _parents(lines)
    by_key = {line.row.key: line for line in lines}
    asked = {line.row.key for line in wanted}
    kept = _with_ancestors(asked, parents)
    children: dict[Key | None, list[Line]] = {}
    for key in kept:
        children.setdefault(parents.get(key), []).append(by_key[key])
    shown: list[Shown] = []
    # A stack of its own: a chain of processes may be longer than Python recurses.
    stack = [(line, "", "") for line in reversed(ordered(children.get(None, ()), view))]
    while stack:
        line, branch, below = stack.pop()
        key = line.row.key
        under = ordered(children.get(key, ()), view)
        is_folded = key in view.folded and bool(under)
        shown.append(Shown(line, branch, key not in asked, is_folded))
        if is_folded:
            continue
        for number, child in enumerate(reversed(under)):
            is_last = number == 0
            branch_of, below_of = (last, space) if is_last else (fork, bar)
            stack.append((child, below + branch_of, below + below_of))
    return shown


def _parents(lines: Sequence[Line]) -> dict[Key, Key]:
    """The parent of each that has one among the lines. Never a circle."""
    newest: dict[int, Line] = {}
    for line in lines:
        if not line.row.pid:
            continue  # many that have ended: parents of nobody
        held = newest.get(line.row.pid)
        if held is None or held.row.start_ns < line.row.start_ns:
            newest[line.row.pid] = line
    found: dict[Key, Key] = {}
    for line in lines:
        parent = newest.get(line.row.parent)
        # A parent is older than its child (at equal times, its pid is the smaller one): else the
        # pid was given to another process since. So there can be no circle either.
        if parent is not None and _age(parent) < _age(line):
            found[line.row.key] = parent.row.key
    return found


def _age(line: Line) -> tuple[int, int]:
    return line.row.start_ns, line.row.pid


def _with_ancestors(keys: Collection[Key], parents: Mapping[Key, Key]) -> set[Key]:
    kept: set[Key] = set()
    for key in keys:
        here: Key | None = key
        while here is not None and here not in kept:
            kept.add(here)
            here = parents.get(here)
    return kept
