# SPDX-License-Identifier: Apache-2.0
"""Measured against a reference: the error, its tolerance, and the table of all of them.

The table ends the run's output (metered.py); LICAGENT_TEST_ACCURACY names a file that gets the
same as JSON lines, from which the table of docs/reference/accuracy.md is made:
``python -m tests.kernel.harness.accuracy FILE``.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

TABLE_BEGINS: Final = "<!-- measured: begin -->"
TABLE_ENDS: Final = "<!-- measured: end -->"
DOCUMENT: Final = Path(__file__).resolve().parents[3] / "docs" / "reference" / "accuracy.md"


@dataclass(frozen=True, slots=True)
class Comparison:
    """One figure of the meter beside that of a reference."""

    what: str
    """What was done and which meter: "10,000 processes of 1 ms: CPU"."""
    reference: str
    """Whose figure it is compared with: "wait4 rusage"."""
    measured: float
    expected: float
    unit: str
    tolerance: float
    """As a fraction of the reference."""
    slack: float = 0
    """Allowed besides, in the unit: a fixed cost that the reference cannot see."""

    @property
    def error(self) -> float:
        """As a fraction of the reference; signed: positive is measured too much."""
        difference = self.measured - self.expected
        return difference / self.expected if self.expected else difference

    @property
    def holds(self) -> bool:
        """Whether the error is within the tolerance."""
        allowed = self.tolerance * abs(self.expected) + self.slack
        return abs(self.measured - self.expected) <= allowed

    @property
    def allowed(self) -> str:
        """The tolerance in words."""
        parts = [f"{self.tolerance * 100:g} %"] if self.tolerance else []
        if self.slack:
            parts.append(f"{self.slack:,.0f} {self.unit}")
        return " + ".join(parts) or "exact"

    def __str__(self) -> str:
        return (
            f"{self.what}: {self.measured:.6g} {self.unit}, {self.reference} "
            f"{self.expected:.6g}, error {self.error * 100:+.4f} % (tolerance {self.allowed})"
        )


class Inaccurate(AssertionError):
    """A figure is out of its tolerance."""


def needed(holds: object, what: str) -> None:
    """Raise Inaccurate where that does not hold: a test so marked has its second try then.

    For what a busy machine may keep from happening, such as a reading within a short life.
    """
    if not holds:
        raise Inaccurate(what)


class Accuracy:
    """Collects comparisons; each is asserted where it is made."""

    def __init__(self) -> None:
        self.rows: list[Comparison] = []

    def check(  # noqa: PLR0917 - a line of the table, in its order
        self,
        what: str,
        reference: str,
        measured: float,
        expected: float,
        unit: str,
        tolerance: float = 0,
        *,
        slack: float = 0,
    ) -> Comparison:
        """Note a comparison. Raises Inaccurate where it is out of its tolerance."""
        row = Comparison(what, reference, measured, expected, unit, tolerance, slack)
        self.rows.append(row)
        if not row.holds:
            raise Inaccurate(str(row))
        return row


ALL: Final = Accuracy()
"""Of this run."""


def table(rows: Iterable[Comparison]) -> str:
    """As Markdown: one line for all figures of one thing with one reference, by its worst error."""
    groups: dict[tuple[str, str, str], list[Comparison]] = {}
    for row in rows:
        groups.setdefault((row.what.split(":", 1)[0], row.reference, row.unit), []).append(row)
    lines = [
        "| what was done | compared | reference | reference's figure | worst error | tolerance |",
        "|---|---|---|---:|---:|---|",
    ]
    for (what, reference, unit), found in groups.items():
        worst = max(found, key=lambda row: abs(row.error))
        figures = ", ".join(dict.fromkeys(row.what.partition(": ")[2] or unit for row in found))
        error = f"{worst.error * 100:+.4f} %" if worst.measured != worst.expected else "0"
        if worst.slack and not worst.tolerance:
            error = f"{worst.measured - worst.expected:+,.0f} {unit}"
        expected = f"{worst.expected:,.0f} {unit}"
        lines.append(
            f"| {what} | {figures} | {reference} | {expected} | {error} | {worst.allowed} |"
        )
    return "\n".join(lines)


def main() -> int:
    """Put the comparisons of FILE into the document."""
    text = Path(sys.argv[1]).read_text(encoding="utf-8")
    last = {}
    for line in text.splitlines():
        row = Comparison(**json.loads(line))
        last[row.what, row.reference] = row
    head, rest = DOCUMENT.read_text(encoding="utf-8").split(TABLE_BEGINS, 1)
    tail = rest.split(TABLE_ENDS, 1)[1]
    made = f"{head}{TABLE_BEGINS}\n{table(last.values())}\n{TABLE_ENDS}{tail}"
    DOCUMENT.write_text(made, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
