# SPDX-License-Identifier: Apache-2.0
"""What was measured, against its bar: rows, and docs/benchmarks.md."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from tests.bench.obstacles import OBSTACLES

if TYPE_CHECKING:
    from tests.bench.paired import Spread


@dataclass(frozen=True, slots=True)
class Row:
    """One measured thing.

    `passed` None: it has no bar. `doubtful`: the bar lies within the interval. `notes` are
    paragraphs below the table. `key` names the paragraph of `obstacles.py` that a miss is
    explained with, `facts` fill its gaps.
    """

    what: str
    measured: str
    spread: str = ""
    bar: str = ""
    passed: bool | None = None
    notes: tuple[str, ...] = ()
    doubtful: bool = False
    key: str = ""
    facts: dict[str, str] = field(default_factory=dict)

    @property
    def mark(self) -> str:
        """The last column."""
        words = {None: "", True: "met", False: "**missed**"}[self.passed]
        return f"{words}, in doubt" if self.doubtful else words

    @property
    def obstacle(self) -> str:
        """What stands in the way of the bar; empty for a row that met it or has none."""
        if self.passed is not False or self.key not in OBSTACLES:
            return ""
        facts = {"measured": self.measured, "bar": self.bar, **self.facts}
        return OBSTACLES[self.key].format_map(facts)


def ratio_row(
    what: str,
    ratio: Spread,
    bar: float | None,
    *,
    at_least: bool = False,
    key: str = "",
    facts: dict[str, str] | None = None,
) -> Row:
    """A row that compares a median ratio with a bar."""
    spread = f"95 % {ratio.low:.3f} - {ratio.high:.3f}, quartiles {ratio.q1:.3f} - {ratio.q3:.3f}"
    if bar is None:
        return Row(what, f"{ratio.median:.3f} x", spread)
    passed = ratio.median >= bar if at_least else ratio.median <= bar
    return Row(
        what,
        f"{ratio.median:.3f} x",
        spread,
        f"{'>=' if at_least else '<='} {bar:.2f} x",
        passed,
        doubtful=ratio.low <= bar <= ratio.high,
        key=key,
        facts=facts or {},
    )


def text(rows: list[Row]) -> str:
    """The rows for a terminal."""
    cells = [("what", "measured", "bar", "", "interval of the median ratio, quartiles")]
    cells += [(r.what, r.measured, r.bar, r.mark.replace("*", ""), r.spread) for r in rows]
    widths = [max(len(row[i]) for row in cells) for i in range(4)]
    lines = [
        "  ".join([*(c.ljust(w) for c, w in zip(row[:4], widths, strict=True)), row[4]]).rstrip()
        for row in cells
    ]
    below = [*_obstacles(rows), *(note for row in rows for note in row.notes)]
    return "\n".join([*lines, *("\n" + paragraph for paragraph in below)])


def _obstacles(rows: list[Row]) -> list[str]:
    return [f"{row.what}: {row.obstacle}" for row in rows if row.obstacle]


def markdown(rows: list[Row], *, quick: bool, load: float) -> str:
    """docs/benchmarks.md."""
    lines = [
        "<!-- SPDX-License-Identifier: Apache-2.0 -->",
        "# Benchmarks",
        "",
        "Written by `./dev bench`; do not edit. `tests/bench/README.md` says how it is measured.",
        "",
        *(f"- {fact}" for fact in machine_facts()),
        f"- Load before the run: {load} (above 0.5 other programs show in the figures)",
    ]
    if quick:
        lines.append("- A quick run (`--quick`): fewer rounds, wider intervals.")
    lines += [
        "",
        "A ratio is the median over the rounds, with the 95 % interval of that median and the",
        "quartiles of the rounds. The verdict is the median's; *in doubt*: the bar is inside the",
        "interval. Rows without a bar tell where the cost comes from: *empty programs* decide",
        "nothing and hang on the very hooks of the agent, *and a tag* also keep 120 bytes with",
        "each socket. Every row over bare or nftables is of one run that takes turns.",
        "",
        "| what | measured | interval | bar | verdict |",
        "|---|---|---|---|---|",
        *(f"| {r.what} | {r.measured} | {r.spread} | {r.bar} | {r.mark} |" for r in rows),
    ]
    if missed := _obstacles(rows):
        lines += ["", "## What stands in the way", "", "Of each bar that was missed in this run:"]
        lines += [line for paragraph in missed for line in ("", f"- {paragraph}")]
    if any(row.notes for row in rows):
        lines += ["", "## Kernel memory"]
    for row in rows:
        for note in row.notes:
            lines += ["", note]
    return "\n".join(lines) + "\n"


def load() -> float:
    """The last minute's load average."""
    return float(Path("/proc/loadavg").read_text(encoding="ascii").split()[0])


def machine_facts() -> list[str]:
    """Where and what the figures were taken from."""
    model = "unknown CPU"
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return [
        f"Machine: {model}, {os.cpu_count()} CPUs, {memory_gib:.0f} GiB, {platform.machine()}",
        f"Kernel: {platform.release()}",
        f"Date: {time.strftime('%Y-%m-%d %H:%M UTC', time.gmtime())}",
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
