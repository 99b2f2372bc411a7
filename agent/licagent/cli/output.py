# SPDX-License-Identifier: Apache-2.0
"""How results are shown: tables by rich on a terminal, aligned text in a pipe.

A command describes what it shows as blocks; this module alone knows the two forms. rich is
imported only when a block is drawn on a terminal. Every text of a block is made safe here, so
no command can forget to.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from licagent.cli.words import safe

STYLES: Final = {"good": "green", "bad": "bold red", "warn": "yellow", "dim": "dim", "": ""}


@dataclass(frozen=True, slots=True)
class Cell:
    """A text and what it means: good, bad, warn, dim, or nothing in particular."""

    text: object
    style: str = ""


@dataclass(frozen=True, slots=True)
class Line:
    """One line of text."""

    text: object
    style: str = ""
    indent: int = 0


@dataclass(frozen=True, slots=True)
class Fields:
    """Names and values, one a line; a value of None leaves its line out."""

    pairs: Sequence[tuple[str, object]]
    title: str = ""


@dataclass(frozen=True, slots=True)
class Table:
    """Rows under columns. A column starting with `>` is of numbers, aligned right."""

    columns: Sequence[str]
    rows: Sequence[Sequence[object]]
    title: str = ""
    empty: str = ""  # what to say instead of a table without rows


Block = Line | Fields | Table


def show(blocks: Iterable[Block]) -> None:
    """Write blocks to standard output."""
    if sys.stdout.isatty():
        _show_rich(blocks)
    else:
        sys.stdout.write("".join(f"{line}\n" for line in plain(blocks)))


def plain(blocks: Iterable[Block]) -> list[str]:
    """Blocks as lines of aligned text."""
    lines: list[str] = []
    for block in blocks:
        match block:
            case Line():
                lines.append(" " * block.indent + _text(block))
            case Fields():
                _separate(lines, block.title)
                pairs = [(name, value) for name, value in block.pairs if value is not None]
                width = max((len(name) for name, _ in pairs), default=0) + 1
                lines += [f"{name + ':':<{width}}  {_text(value)}" for name, value in pairs]
            case Table():
                _separate(lines, block.title)
                lines += _plain_table(block)
    return lines


def _separate(lines: list[str], title: str) -> None:
    if title:
        if lines:
            lines.append("")
        lines.append(title)


def _plain_table(table: Table) -> list[str]:
    if not table.rows:
        return [table.empty] if table.empty else []
    names = [column.removeprefix(">") for column in table.columns]
    rows = [names, *([_text(cell) for cell in row] for row in table.rows)]
    widths = [max(len(row[index]) for row in rows) for index in range(len(names))]
    return [
        "  ".join(
            text.rjust(width) if column.startswith(">") else text.ljust(width)
            for text, width, column in zip(row, widths, table.columns, strict=True)
        ).rstrip()
        for row in rows
    ]


def _text(value: object) -> str:
    if isinstance(value, Line) and value.text == "":
        return ""  # an empty line is meant; an empty value is shown as one
    return safe(value.text) if isinstance(value, Cell | Line) else safe(value)


def _show_rich(blocks: Iterable[Block]) -> None:
    from rich.console import Console
    from rich.padding import Padding
    from rich.table import Table as RichTable
    from rich.text import Text

    console = Console(highlight=False, markup=False, emoji=False)

    def styled(value: object) -> Text:
        style = STYLES[value.style] if isinstance(value, Cell | Line) else ""
        return Text(_text(value), style=style, overflow="fold")

    def title(text: str, *, first: bool) -> None:
        if text:
            if not first:
                console.print()
            console.print(Text(text, style="bold"))

    for number, block in enumerate(blocks):
        match block:
            case Line():
                console.print(Padding(styled(block), (0, 0, 0, block.indent)))
            case Fields():
                title(block.title, first=number == 0)
                grid = RichTable.grid(padding=(0, 2, 0, 0))
                grid.add_column(no_wrap=True, style="dim")
                grid.add_column(overflow="fold")
                for name, value in block.pairs:
                    if value is not None:
                        grid.add_row(name, styled(value))
                console.print(grid)
            case Table(rows=[] | ()):
                title(block.title, first=number == 0)
                if block.empty:
                    console.print(Text(block.empty))
            case Table():
                title(block.title, first=number == 0)
                drawn = RichTable(
                    box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0)
                )
                for column in block.columns:
                    right = column.startswith(">")
                    drawn.add_column(
                        column.removeprefix(">"),
                        justify="right" if right else "left",
                        no_wrap=right,
                        overflow="fold",
                    )
                for row in block.rows:
                    drawn.add_row(*(styled(cell) for cell in row))
                console.print(drawn)
