# SPDX-License-Identifier: Apache-2.0
"""`top` without a screen: text for people's logs, JSON for programs. Neither needs a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from licagent.cli.top.arrange import Shown, View, arrange
from licagent.cli.top.columns import cells, fit, measure, place, titles
from licagent.cli.top.model import LEVELS, TOTALS, Line, Sample
from licagent.cli.top.summary import summary


def as_text(
    sample: Sample, view: View, *, width: int | None = None, is_ascii: bool = False
) -> Iterator[str]:
    """The lines of one table. `width` None: every column, and no name is cut."""
    yield from summary(sample, view)
    yield ""
    shown = arrange(sample.lines, view, is_ascii=is_ascii)
    placed = place(view, sample.snapshot.qualities, width)
    if width is not None:
        yield " ".join(titles(placed)).rstrip()
        for each in shown:
            yield " ".join(cells(each, view, placed)).rstrip()
        return
    rows = [[each.title for each in placed]]
    rows += [[column.column.text(each, view) for column in placed] for each in shown]
    widths = [max(measure(row[number]) for row in rows) for number in range(len(placed))]
    for row in rows:
        yield " ".join(
            fit(text, size, is_right=each.column.is_right)
            for text, size, each in zip(row, widths, placed, strict=True)
        ).rstrip()


def as_object(sample: Sample, view: View) -> dict[str, Any]:
    """One table as an object: whole numbers, and rates per second with the interval they are of."""
    snapshot = sample.snapshot
    return {
        "by": snapshot.by,
        "metering": snapshot.metering,
        "at": snapshot.at,
        "interval_ns": sample.interval_ns,
        "host": dict(snapshot.host),
        "qualities": dict(snapshot.qualities),
        "rows": [_row(each, snapshot.by) for each in arrange(sample.lines, view)],
        "unattributed": {
            "totals": dict(snapshot.unattributed),
            "rates": _whole(sample.unattributed_rates),
        },
    }


def _row(shown: Shown, by: str) -> dict[str, Any]:
    line: Line = shown.line
    row = line.row
    named: dict[str, Any] = {"name": row.name, "license": row.license or None}
    if by == "process":
        named = {
            "pid": row.pid,
            "start_ns": row.start_ns,
            "ppid": row.parent or None,
            "name": row.name,
            "executable": row.executable or None,
            "user": row.user or None,
            "unit": row.unit or None,
            "license": row.license or None,
            "exited_ns": row.exited_ns or None,
        }
    return {
        **named,
        "processes": row.processes,
        "totals": {meter: row.amounts[meter] for meter in TOTALS},
        "rates": _whole(line.rates),
        "levels": {meter: row.amounts[meter] for meter in LEVELS},
    }


def _whole(rates: Mapping[str, float | None]) -> dict[str, int | None]:
    return {meter: None if rate is None else round(rate) for meter, rate in rates.items()}
