#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0

"""Draws docs/pictures/top.svg: `licagent top` on the daemon that LICAGENT_CONFIG names.

    docs/pictures/render_top.py [KEY...]     keys to press before, such as tab or t

It is the screen itself, of a real daemon, as textual draws it into 100 by 24 cells.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Final

from rich.segment import Segment

from licagent.cli.session import Session
from licagent.cli.top.arrange import View
from licagent.cli.top.poll import Poll
from licagent.cli.top.screen import Top

PICTURE: Final = Path(__file__).with_name("top.svg")
COLUMNS: Final = 100
LINES: Final = 24
LINE_PX: Final = 19
CHARACTER_PX: Final = 8.43
MARGIN_PX: Final = 18
READINGS: Final = 3

_STYLE: Final = """\
text { font: 14px ui-monospace, SFMono-Regular, Menlo, 'DejaVu Sans Mono', monospace;
       fill: #d5d9e0; white-space: pre }
.b { font-weight: bold } .d { fill: #8b93a1 } .g { fill: #7fd18b } .r { fill: #171a21 }
"""


async def screen(keys: list[str]) -> list[list[Segment]]:
    """The lines of the screen after some readings and keys."""
    session = Session(False, 5.0, None)
    app = Top(Poll(session.call), View(), delay_s=1.5)
    async with app.run_test(size=(COLUMNS, LINES)) as pilot:
        for key in keys:
            await pilot.press(key)
        await pilot.pause(1.6 * READINGS)
        strips = app.screen._compositor.render_strips()  # noqa: SLF001 - there is no other way
        return [list(strip) for strip in strips]


def draw(lines: list[list[Segment]]) -> str:
    """As SVG: each run of a style at the column where it stands."""
    width = round(COLUMNS * CHARACTER_PX + 2 * MARGIN_PX)
    height = len(lines) * LINE_PX + 2 * MARGIN_PX
    size = f'width="{width}" height="{height}" viewBox="0 0 {width} {height}"'
    name = 'role="img" aria-label="The screen of licagent top" xml:space="preserve"'
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} {name}>',
        "<!-- SPDX-License-Identifier: Apache-2.0 -->",
        "<!-- drawn by docs/pictures/render_top.py from a real daemon; do not edit -->",
        f"<style>{_STYLE}</style>",
        f'<rect width="{width}" height="{height}" rx="8" fill="#171a21"/>',
    )
    drawn = [text for number, line in enumerate(lines) for text in _line(number, line)]
    return "\n".join((*head, *drawn, "</svg>")) + "\n"


def _line(number: int, segments: list[Segment]) -> Iterator[str]:
    y = MARGIN_PX + (number + 1) * LINE_PX - 5
    column = 0
    for segment in segments:
        style, length = segment.style, segment.cell_length
        x = round(MARGIN_PX + column * CHARACTER_PX, 2)
        column += length
        span = round(length * CHARACTER_PX, 2)
        is_reversed = bool(style and style.reverse)
        if is_reversed:
            place = f'x="{x}" y="{y - LINE_PX + 5}"'
            yield f'<rect {place} width="{span + 0.6:.2f}" height="{LINE_PX}" fill="#d5d9e0"/>'
        text = segment.text.rstrip()
        if not text.strip():
            continue
        blanks = len(text) - len(text.lstrip())
        x = round(x + blanks * CHARACTER_PX, 2)
        color = style.color.name if style and style.color else ""
        names = [
            name
            for name, is_so in (
                ("b", style and style.bold),
                ("d", style and style.dim),
                ("g", color in ("green", "ansi_green")),
                ("r", is_reversed),
            )
            if is_so
        ]
        shown = escape(text.lstrip(), quote=False)
        long = round((len(text) - blanks) * CHARACTER_PX, 2)
        yield f'<text class="{" ".join(names)}" x="{x}" y="{y}" textLength="{long}">{shown}</text>'


def main() -> int:
    """Draw it."""
    os.environ.pop("NO_COLOR", None)
    PICTURE.write_text(draw(asyncio.run(screen(sys.argv[1:]))), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
