# SPDX-License-Identifier: Apache-2.0
"""Builds and runs the probe, and makes ratios of what it prints."""

from __future__ import annotations

import json
import math
import os
import statistics
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tests.bench.places import CLIENT_UID, PORT

ROOT: Final = Path(__file__).resolve().parents[2]
BINARY: Final = ROOT / "build" / "bench" / "probe"
SOURCES: Final = Path(__file__).parent / "probe"


def build() -> None:
    """Compile the probe if a source is newer. RuntimeError with what to install."""
    sources = sorted(SOURCES.iterdir())
    if BINARY.exists() and BINARY.stat().st_mtime >= max(s.stat().st_mtime for s in sources):
        return
    BINARY.parent.mkdir(parents=True, exist_ok=True)
    fresh = BINARY.with_name(f"probe.{os.getpid()}")
    command = ["gcc", "-O2", "-Wall", "-Wextra", "-o", str(fresh)]
    command += [str(s) for s in sources if s.suffix == ".c"] + ["-lm"]
    try:
        subprocess.run(command, check=True)
    except FileNotFoundError as error:
        raise RuntimeError("the probe needs a C compiler: apt-get install gcc libc6-dev") from error
    fresh.rename(BINARY)


@dataclass(frozen=True, slots=True)
class Variant:
    """One way of running the same operation."""

    name: str
    cgroup: Path
    netns: str
    address: str = ""

    def argument(self) -> str:
        """As the probe takes it."""
        parts = [self.name, f"cgroup={self.cgroup}", f"netns={self.netns}"]
        return ",".join(parts + ([f"addr={self.address}"] if self.address else []))


@dataclass(frozen=True, slots=True)
class Spread:
    """Median, quartiles and the 95 % interval of the median (order statistics)."""

    median: float
    q1: float
    q3: float
    low: float
    high: float

    @classmethod
    def of(cls, values: list[float]) -> Spread:
        """Of at least one value."""
        ordered = sorted(values)
        half = 0.98 / math.sqrt(len(ordered))
        return cls(
            statistics.median(ordered),
            *(_at(ordered, share) for share in (0.25, 0.75, 0.5 - half, 0.5 + half)),
        )


def _at(ordered: list[float], share: float) -> float:
    rank = min(max(share, 0.0), 1.0) * (len(ordered) - 1)
    low = math.floor(rank)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (rank - low)


@dataclass(frozen=True, slots=True)
class Paired:
    """Results of interleaved rounds: nanoseconds per operation, by variant, by round."""

    rounds_ns: dict[str, list[float]]

    def cost_ns(self, name: str) -> float:
        """Median cost of one operation."""
        return statistics.median(self.rounds_ns[name])

    def ratio(self, name: str, over: str) -> Spread:
        """`name` over `over`, round by round."""
        pairs = zip(self.rounds_ns[name], self.rounds_ns[over], strict=True)
        return Spread.of([a / b for a, b in pairs])


def run(command: str, variants: list[Variant], *options: str) -> Paired:
    """Run the probe's rounds. CalledProcessError after the probe has said why."""
    found: dict[str, Any] = json.loads(
        subprocess.run(
            [*_command(command, variants), "--json", *options], check=True, stdout=subprocess.PIPE
        ).stdout
    )
    return Paired({v["name"]: v["rounds_ns"] for v in found["variants"]})


def check_refused(variant: Variant, *, uid: int = CLIENT_UID + 7, binary: Path = BINARY) -> None:
    """Show that the variant does its job: another client is refused. RuntimeError if it is not."""
    command = _command("tcp-connect", [variant], uid=uid)
    command[0] = str(binary)
    done = subprocess.run(
        [*command, "--rounds", "1"], capture_output=True, text=True, check=False, timeout=60
    )
    if done.returncode != 1 or "connect in variant" not in done.stderr:
        raise RuntimeError(
            f"{variant.name} refuses nobody, so its cost means nothing {done.stderr}"
        )


def spawn(command: str, variant: Variant, *options: str) -> subprocess.Popen[str]:
    """Start `live` or `rate`, with pipes to its stdin and stdout."""
    return subprocess.Popen(
        [*_command(command, [variant]), *options],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def _command(command: str, variants: list[Variant], uid: int = CLIENT_UID) -> list[str]:
    arguments = [str(BINARY), command, "--uid", str(uid), "--port", str(PORT)]
    for variant in variants:
        arguments += ["--variant", variant.argument()]
    return arguments
