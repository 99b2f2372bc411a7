# SPDX-License-Identifier: Apache-2.0
"""`licagent usage --csv`: RFC 4180, one line a row, and lines for what the rows leave out."""

from __future__ import annotations

import csv
import sys
from collections.abc import Mapping
from typing import Any, Final

from licagent.cli.words import safe
from licagent.domain.usage import Meter

_NAMES: Final = (
    "name", "license", "resource", "unit", "user", "executable", "pid", "process_start",
)  # fmt: skip

_FORMULA: Final = ("=", "+", "-", "@")
"""What a spreadsheet takes the beginning of a formula for; names are chosen by strangers."""


def write_csv(result: Mapping[str, Any]) -> None:
    """Write a result of `usage` to standard output."""
    meters = [meter.key for meter in Meter]
    out = csv.writer(sys.stdout)  # ends lines as RFC 4180 says
    out.writerow(
        ["line", "since", "until", *_NAMES, *meters, "estimated", "unsupported"],
    )
    window = [_cell(result.get("since")), _cell(result.get("until"))]

    def line(
        kind: str, names: list[str], found: Mapping[str, Any], *, absent: int | str = 0
    ) -> None:
        quantities = found.get("quantities") or {}
        unsupported = found.get("unsupported") or ()
        # Empty is not measured; zero is zero.
        amounts = [
            quantities.get(meter, "" if meter in unsupported else absent) for meter in meters
        ]
        marks = [" ".join(found.get(key) or ()) for key in ("estimated", "unsupported")]
        out.writerow([kind, *window, *names, *amounts, *marks])

    nameless = [""] * len(_NAMES)
    for row in result.get("rows") or ():
        line("row", [_cell(row.get(name)) for name in _NAMES], row)
    rest = result.get("rest") or {}
    if rest.get("rows"):
        line("rest", [f"{rest['rows']} rows", *nameless[1:]], rest)
    # The host has no total of its own for every meter: where it has none, nothing can be said.
    line("unattributed", nameless, result.get("unattributed") or {}, absent="")
    line("total", nameless, {"quantities": result.get("total") or {}})


def _cell(value: object) -> str:
    if value is None or value == "":
        return ""
    text = safe(value)
    return f"'{text}" if text.startswith(_FORMULA) else text
