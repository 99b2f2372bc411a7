# SPDX-License-Identifier: Apache-2.0
"""How results are shown: tables by rich on a terminal, aligned text in a pipe.

Texts that hosts and other people chose (host names, reasons, subjects) are made safe here, so
that none of them can write to the terminal of whoever reads a table.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Final

import click

_STYLES: Final = {
    "active": "green",
    "connected": "green",
    "intact": "green",
    "draining": "yellow",
    "suspended": "yellow",
    "not-yet-valid": "yellow",
    "drift": "yellow",
    "expired": "red",
    "revoked": "red",
    "evicted": "red",
    "banned": "bold red",
    "cloned": "bold red",
}
"""Words that mean something good or bad wherever they stand as a cell."""


def safe(value: object) -> str:
    """The text with control characters and what turns its direction around written as escapes."""
    text = str(value)
    if text.isascii() and text.isprintable():
        return text
    return "".join(one if one.isprintable() else _escaped(one) for one in text)


def _escaped(one: str) -> str:
    return one.encode("unicode_escape", "surrogatepass").decode("ascii")


def moment(unix_ms: int) -> str:
    """Milliseconds since 1970 as RFC 3339 in UTC, to the second; `-` for 0."""
    if not unix_ms:
        return "-"
    at = datetime.fromtimestamp(unix_ms / 1000, UTC)
    return at.strftime("%Y-%m-%dT%H:%M:%SZ")


def moment_or_none(unix_ms: int) -> str | None:
    """As `moment`, with None for 0; for JSON."""
    return moment(unix_ms) if unix_ms else None


def age(age_ms: int) -> str:
    """A distance in time, short: `3 s`, `4 min`, `2 h`, `5 d`."""
    seconds = max(0, age_ms) // 1000
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds // size} {unit}"
    return f"{seconds} s"


def labels_text(labels: Iterable[tuple[str, str]]) -> str:
    """Labels as `org=acme,region=eu-1`; `-` for none."""
    return ",".join(f"{name}={value}" for name, value in sorted(labels)) or "-"


def show_table(columns: Sequence[str], rows: Sequence[Sequence[object]], empty: str = "") -> None:
    """Rows under columns; a column that starts with `>` is of numbers, aligned right.

    `empty` is said on standard error where there are no rows.
    """
    cells = [[safe(cell) for cell in row] for row in rows]
    if not cells and empty:
        click.echo(empty, err=True)
        return
    if sys.stdout.isatty():
        _show_rich(columns, cells)
        return
    names = [column.removeprefix(">") for column in columns]
    lines = [names, *cells]
    widths = [max(len(line[at]) for line in lines) for at in range(len(names))]
    for line in lines:
        padded = (
            text.rjust(width) if column.startswith(">") else text.ljust(width)
            for text, width, column in zip(line, widths, columns, strict=True)
        )
        click.echo("  ".join(padded).rstrip())


def show_fields(pairs: Iterable[tuple[str, object]]) -> None:
    """Names and values, one a line."""
    found = list(pairs)
    width = max((len(name) for name, _ in found), default=0) + 2
    for name, value in found:
        click.echo(f"{name:<{max(width, 14)}}{safe(value)}")


def show_diff(lines: Iterable[str]) -> None:
    """Lines of a unified diff, coloured on a terminal (not with NO_COLOR)."""
    colour = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    for line in lines:
        text = safe(line.rstrip("\n"))
        shade = {"+": "green", "-": "red", "@": "cyan"}.get(text[:1]) if colour else None
        click.echo(click.style(text, fg=shade) if shade else text)


def _show_rich(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False, markup=False, emoji=False)
    drawn = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    for column in columns:
        right = column.startswith(">")
        drawn.add_column(
            column.removeprefix(">"),
            justify="right" if right else "left",
            no_wrap=right,
            overflow="fold",
        )
    for row in rows:
        drawn.add_row(*(Text(cell, style=_STYLES.get(cell, "")) for cell in row))
    console.print(drawn)
