# SPDX-License-Identifier: Apache-2.0
"""What comes up over the table of `top`: help, a choice from a list, all figures of a row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Final

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import OptionList, Static
from textual.widgets.option_list import Option

from licagent.cli.top.model import LEVELS, TOTALS, Line, Sample
from licagent.cli.words import compact, cpu_time

CSS: Final = """
Choice, Page { align: center middle; background: transparent; }
Choice OptionList { width: auto; min-width: 24; max-width: 76; height: auto; max-height: 90%;
    border: solid ansi_default; background: ansi_default; }
Page VerticalScroll { width: 80; max-width: 100%; height: auto; max-height: 100%;
    border: solid ansi_default; background: ansi_default; }
Page Static { height: auto; }
"""

HELP: Final = """\
Up Down PgUp PgDn Home End   choose a row   Enter    all its figures
Tab  Shift+Tab  processes, units, licenses  0-9      go to a pid
F3  /    search                             F4  \\    filter (a|b for either)
F5  t    tree                               Space    fold a branch (*: all)
F6  > <  sort by a column; or click one     I        the other way round
P M T N  by CPU, memory, time, pid          x        without what has ended
a        totals instead of rates            K        without kernel threads
w        bytes on the wire, not payload     F        the cursor follows its row
u        only one user                      p  Z     pause
Esc      no filter                          Ctrl+L   draw everything anew
h  F1    this page                          q  F10   quit

CPU% is of one CPU. IN and OUT are bytes a second of payload, READ and WRITE
those of storage; STORED is the footprint at the last walk. Units are of 1024.
~TITLE: an estimate on this host. n/a: not measured, which is not zero.
<name>: it has ended, and stays for a minute. PID *: processes that lived and
died between two readings.

Nothing can be changed or ended from here. Why a process may do what it does:
licagent explain PID"""


class Choice(ModalScreen[str | None]):
    """Asks for one of a list; None: none."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,q,f10", "dismiss(None)", "Back", show=False)
    ]

    def __init__(self, title: str, options: Sequence[tuple[str, str]], chosen: str) -> None:
        super().__init__()
        self._title = title
        self._options = options
        self._chosen = chosen

    def compose(self) -> ComposeResult:
        """The list."""
        found = OptionList(
            *(
                Option(text, id=f"option-{number}")
                for number, (_, text) in enumerate(self._options)
            ),
            markup=False,
        )
        found.border_title = self._title
        yield found

    def on_mount(self) -> None:
        """Begin at what is in force."""
        names = [name for name, _ in self._options]
        if self._chosen in names:
            self.query_one(OptionList).highlighted = names.index(self._chosen)

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        """Done."""
        # Awaited inside a handler of this screen, it would wait for itself.
        _ = self.dismiss(self._options[event.option_index][0])


class Page(ModalScreen[None]):
    """A text to be read; any of the usual keys ends it. The title is read as markup."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,q,f10,enter,h,f1,space", "dismiss", "Back", show=False)
    ]

    def __init__(self, title: str, text: str) -> None:
        super().__init__()
        self._title = title
        self._text = text

    def compose(self) -> ComposeResult:
        """The text, which can be scrolled."""
        with VerticalScroll() as scroll:
            scroll.border_title = self._title
            yield Static(self._text, markup=False)


def figures(line: Line, sample: Sample) -> str:
    """Every figure of a row, exactly, and how it is measured."""
    row, snapshot = line.row, sample.snapshot
    rows: list[tuple[str, str]] = []
    if snapshot.by == "process":
        since = cpu_time(max(0, snapshot.at_ns - row.start_ns))
        many = f"{row.name}: those that lived and died between two readings"
        rows += [
            ("process", f"{row.pid} {row.name}, started {since} ago" if row.pid else many),
            ("executable", row.executable or "-"),
            ("parent", str(row.parent or "-")),
            ("user", row.user or "-"),
            ("unit", row.unit or "-"),
        ]
        if row.exited_ns:
            rows.append(("ended", f"{cpu_time(max(0, snapshot.at_ns - row.exited_ns))} ago"))
    else:
        rows += [(snapshot.by, row.name or "-"), ("processes", str(row.processes))]
    rows.append(("license", row.license or "none"))
    lines = [f"{name:<11} {text}" for name, text in rows]
    lines += ["", f"{'meter':<17} {'total':>20} {'a second':>9}  how"]
    for meter in (*TOTALS, *LEVELS):
        amount, rate = row.amounts[meter], line.rates.get(meter)
        total = "n/a" if amount is None else f"{amount:,}"
        speed = "" if meter in LEVELS else "-" if rate is None else _speed(meter, rate)
        how = f"{snapshot.qualities.get(meter, '')} {snapshot.sources.get(meter, '')}".strip()
        lines.append(f"{meter:<17} {total:>20} {speed:>9}  {how}".rstrip())
    if row.pid:
        lines += ["", f"why it may do what it does: licagent explain {row.pid}"]
    return "\n".join(lines)


def _speed(meter: str, rate: float) -> str:
    return f"{rate / 1e7:.1f}%" if meter == "cpu_ns" else compact(rate)
