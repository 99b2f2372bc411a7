# SPDX-License-Identifier: Apache-2.0
"""A generated page: its head, its paragraphs, its tables.

`build_reference.py` writes them. Words for people stand in the module of each page; names, numbers
and which of them there are come from the code, and one that has no words is an error.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

NOTICE: Final = "generated from the code by docs/build_reference.py; do not edit"

Row = Iterable[object]


def page(title: str, *parts: str) -> str:
    """A page of these paragraphs and tables."""
    head = ("<!-- SPDX-License-Identifier: Apache-2.0 -->", f"<!-- {NOTICE} -->", f"# {title}")
    return "\n".join(head) + "\n\n" + "\n\n".join(parts) + "\n"


def table(titles: Row, rows: Iterable[Row]) -> str:
    """A table in Markdown."""
    lines = [titles, ("---" for _ in titles), *rows] if isinstance(titles, tuple) else []
    return "\n".join(
        "| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines
    )
