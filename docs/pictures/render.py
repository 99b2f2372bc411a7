#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0

"""Draws docs/pictures/demo.svg: lines of a real run of the demo, as a terminal shows them.

    docs/pictures/render.py [FILE]     runs demo/run.sh, or takes a saved output of it

Nothing is written by hand: each pattern below picks the next line that it matches, and one that
matches none is an error. tests/system/test_demo.py compares the picture with its own run.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from html import escape
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[2]
PICTURE: Final = Path(__file__).with_name("demo.svg")

GAP: Final = ""
PICKS: Final = (
    r"━━ The host joins",
    r"root# licagent enroll",
    r"enrolled: ",
    GAP,
    r"━━ No license, no access",
    r"backup\$ curl -sS http",
    r"hello from",
    r"games\$ curl -sS -v http",
    r"\* Immediate connect fail",
    r"games\$ nc ",
    r"nc: connect",
    GAP,
    r"━━ What is used is metered",
    r"curl says how much",
    r"\d+ out \d+",
    r"games\$ bash -c",
    r"root# licagent usage",
    r"  ✔ bytes sent under the license",
    r"  ✔ so are those received",
    r"  ✔ all 201 processes",
    GAP,
    r"━━ A license is revoked",
    r"root# licagent run --license acme-contract -- curl -sS -N",
    r"root# licplane license revoke acme-contract --reason",
    r"curl: \(56\)",
    r"last byte sent",
    r"revoked by",
    GAP,
    r"━━ The control plane is killed",
    r"root# kill -9",
    r"leases: ",
    r"  ✔ backup is still licensed",
    r"  ✔ games has no license",
    GAP,
    r"━━ A license ends",
    r"root# licagent run --license acme-trial -- curl -sS -N",
    r"root# kill -9",
    r"root# licagent status",
    r"licagent: no daemon answers",
    r"last byte sent",
    r"license ended",
    r"  ✔ the last byte was sent before the end",
    GAP,
    r"A process of games",
    r"root# licagent explain",
    r"resource orders",
    r"verdict:",
    r"  missing:",
    r"  to get it: or run",
)

COLUMNS: Final = 104
LINE_PX: Final = 19
CHARACTER_PX: Final = 8.43
MARGIN_PX: Final = 18

_STYLE: Final = """\
text { font: 14px ui-monospace, SFMono-Regular, Menlo, 'DejaVu Sans Mono', monospace;
       fill: #d5d9e0; white-space: pre }
.b { font-weight: bold; fill: #fff } .d { fill: #8b93a1 } .g { fill: #7fd18b } .r { fill: #ff7b72 }
"""

_SEQUENCE: Final = re.compile(r"\x1b\[(\d+)m")
_STYLES: Final = {"1": "b", "2": "d", "31": "r", "32": "g", "0": ""}


def pick(text: str) -> list[str]:
    """The lines that the patterns pick, with their colours."""
    lines = iter(text.splitlines())
    found = []
    for pattern in PICKS:
        if pattern is GAP:
            found.append("")
            continue
        for line in lines:
            if re.match(pattern, _SEQUENCE.sub("", line)):
                found.append(line)
                break
        else:
            raise LookupError(f"the demo printed no line like {pattern!r} any more")
    return found


def draw(lines: list[str]) -> str:
    """As SVG."""
    width = round(COLUMNS * CHARACTER_PX + 2 * MARGIN_PX)
    height = len(lines) * LINE_PX + 2 * MARGIN_PX
    drawn = []
    for number, line in enumerate(lines):
        y = MARGIN_PX + (number + 1) * LINE_PX - 5
        spans, style, room = [], "", COLUMNS
        for index, part in enumerate(_SEQUENCE.split(line)):
            if index % 2:
                style = _STYLES[part]
                continue
            shown = part if len(part) <= room else part[: room - 1] + "…"
            room -= len(shown)
            if shown:
                spans.append(f'<tspan class="{style}">{escape(shown, quote=False)}</tspan>')
        if spans:
            drawn.append(f'<text x="{MARGIN_PX}" y="{y}">{"".join(spans)}</text>')
    size = f'width="{width}" height="{height}" viewBox="0 0 {width} {height}"'
    name = 'role="img" aria-label="Output of ./dev demo" xml:space="preserve"'
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} {name}>',
        "<!-- SPDX-License-Identifier: Apache-2.0 -->",
        "<!-- drawn by docs/pictures/render.py from a real run; do not edit -->",
        f"<style>{_STYLE}</style>",
        f'<rect width="{width}" height="{height}" rx="8" fill="#171a21"/>',
    )
    return "\n".join((*head, *drawn, "</svg>")) + "\n"


def main() -> int:
    """Draw it."""
    if len(sys.argv) > 1:
        text = Path(sys.argv[1]).read_text(encoding="utf-8")
    else:
        done = subprocess.run(
            [ROOT / "demo" / "run.sh", "--fast"],
            env={**os.environ, "CLICOLOR_FORCE": "1"},
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        text = done.stdout
    PICTURE.write_text(draw(pick(text)), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
