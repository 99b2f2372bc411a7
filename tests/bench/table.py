# SPDX-License-Identifier: Apache-2.0
"""What was measured, against its bar: rows, and docs/benchmarks.md."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.bench.paired import Spread


@dataclass(frozen=True, slots=True)
class Row:
    """One measured thing. `passed` None: it has no bar. `notes` are paragraphs below the table."""

    what: str
    measured: str
    spread: str = ""
    bar: str = ""
    passed: bool | None = None
    notes: tuple[str, ...] = ()

    @property
    def mark(self) -> str:
        """The last column."""
        return {None: "", True: "met", False: "**missed**"}[self.passed]


def ratio_row(what: str, ratio: Spread, bar: float | None, *, at_least: bool = False) -> Row:
    """A row that compares a median ratio with a bar."""
    spread = f"{ratio.q1:.3f} - {ratio.q3:.3f}, 95 % {ratio.low:.3f} - {ratio.high:.3f}"
    if bar is None:
        return Row(what, f"{ratio.median:.3f} x", spread)
    passed = ratio.median >= bar if at_least else ratio.median <= bar
    return Row(
        what, f"{ratio.median:.3f} x", spread, f"{'>=' if at_least else '<='} {bar:.2f} x", passed
    )


def text(rows: list[Row]) -> str:
    """The rows for a terminal."""
    cells = [("what", "measured", "bar", "", "quartiles of the ratio and interval of its median")]
    cells += [(r.what, r.measured, r.bar, r.mark.strip("*"), r.spread) for r in rows]
    widths = [max(len(row[i]) for row in cells) for i in range(4)]
    lines = [
        "  ".join([*(c.ljust(w) for c, w in zip(row[:4], widths, strict=True)), row[4]]).rstrip()
        for row in cells
    ]
    return "\n".join([*lines, *("\n" + note for row in rows for note in row.notes)])


def markdown(rows: list[Row], *, quick: bool) -> str:
    """docs/benchmarks.md."""
    lines = [
        "<!-- SPDX-License-Identifier: Apache-2.0 -->",
        "# Benchmarks",
        "",
        "Written by `./dev bench`; do not edit. `tests/bench/README.md` says how it is measured.",
        "",
        *(f"- {fact}" for fact in machine_facts()),
    ]
    if quick:
        lines.append("- A quick run (`--quick`): fewer rounds, wider intervals.")
    lines += [
        "",
        "| what | measured | bar | | spread |",
        "|---|---|---|---|---|",
        *(f"| {r.what} | {r.measured} | {r.bar} | {r.mark} | {r.spread} |" for r in rows),
    ]
    for row in rows:
        for note in row.notes:
            lines += ["", note]
    return "\n".join(lines) + "\n"


def machine_facts() -> list[str]:
    """Where and what the figures were taken from."""
    model = "unknown CPU"
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    load = Path("/proc/loadavg").read_text(encoding="ascii").split()[0]
    return [
        f"Machine: {model}, {os.cpu_count()} CPUs, {memory_gib:.0f} GiB, {platform.machine()}",
        f"Kernel: {platform.release()}",
        f"Date: {time.strftime('%Y-%m-%d %H:%M UTC', time.gmtime())}, load when written {load}",
        f"Commit: {_commit()}",
    ]


def _commit() -> str:
    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", *arguments],
            capture_output=True,
            text=True,
            check=False,
            cwd=Path(__file__).parent,
        )
        return done.stdout.strip()

    changed = git("status", "--porcelain", "--untracked-files=no", ":/agent", ":/bpf", ":/token")
    return (git("rev-parse", "--short", "HEAD") or "none") + (" with changes" if changed else "")
