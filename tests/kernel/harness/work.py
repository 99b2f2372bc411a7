# SPDX-License-Identifier: Apache-2.0
"""Known work (work.c) in cgroups of the test's own, and what the kernel says it used."""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_SOURCE: Final = Path(__file__).with_name("work.c")
LIMIT_S: Final = 120.0
MS: Final = 1_000_000
"""Nanoseconds of a millisecond."""


@dataclass(frozen=True, slots=True)
class Ran:
    """A program that ended, with all that it waited for."""

    status: int
    cpu_us: int
    """User and system time: what wait4(2) says of it and of the children it reaped."""
    read_bytes: int
    written_bytes: int
    out: str

    @property
    def cpu_ns(self) -> int:
        """In nanoseconds, exact to 1000."""
        return self.cpu_us * 1000


class Worker:
    """Starts programs inside of a cgroup from their first instruction on."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "work"
        command = ["cc", "-O2", "-Wall", "-Wextra", "-Werror", "-static", "-pthread"]
        subprocess.run([*command, "-o", str(self.path), str(_SOURCE)], check=True)
        self.path.chmod(0o755)

    def argv(self, what: str, *arguments: object) -> list[str]:
        """The command line of a kind of work."""
        return [str(self.path), what, *(str(each) for each in arguments)]

    def run(self, cgroup: Path, *argv: object, prefix: tuple[str, ...] = ()) -> Ran:
        """Run any program to its end; `prefix` runs the launcher (outside of the cgroup)."""
        with self.started(cgroup, *argv, prefix=prefix) as running:
            return running.finish()

    def work(self, cgroup: Path, what: str, *arguments: object) -> Ran:
        """Run a kind of work to its end. AssertionError where it fails."""
        ran = self.run(cgroup, *self.argv(what, *arguments))
        assert ran.status == 0, ran
        return ran

    @contextmanager
    def started(
        self, cgroup: Path, *argv: object, prefix: tuple[str, ...] = ()
    ) -> Iterator[Running]:
        """A program that runs; leaving the context ends it."""
        with tempfile.NamedTemporaryFile() as report:
            command = [*prefix, str(self.path), "within", str(cgroup), report.name]
            process = subprocess.Popen(
                [*command, *(str(each) for each in argv)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            running = Running(process, Path(report.name))
            try:
                yield running
            finally:
                running.end(cgroup)


class Running:
    """A program that was started in a cgroup."""

    def __init__(self, process: subprocess.Popen[str], report: Path) -> None:
        self.process = process
        self._report = report

    @property
    def pid(self) -> int:
        """Of the program itself; the launcher is its parent, and may not have come that far."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        limit = time.monotonic() + LIMIT_S
        while not (found := children.read_text().split()):
            assert time.monotonic() < limit, "the launcher starts nothing"
            time.sleep(0.001)
        return int(found[0])

    def line(self) -> str:
        """The next line it writes."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def finish(self) -> Ran:
        """Close its input and wait for it."""
        out, _ = self.process.communicate(timeout=LIMIT_S)
        words = self._report.read_text().split()
        assert len(words) == 4, f"the launcher ended with {self.process.returncode}"
        status, cpu_us, read_bytes, written_bytes = (int(word) for word in words)
        return Ran(status, cpu_us, read_bytes, written_bytes, out)

    def end(self, cgroup: Path) -> None:
        """Leave nothing that runs."""
        if self.process.poll() is None:
            (cgroup / "cgroup.kill").write_text("1")
            self.process.wait(60)
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                stream.close()


def cpu_of(cgroup: Path) -> int:
    """What the scheduler has booked for a cgroup and its descendants, in nanoseconds."""
    for line in (cgroup / "cpu.stat").read_text().splitlines():
        name, value = line.split()
        if name == "usage_usec":
            return int(value) * 1000
    raise RuntimeError(f"{cgroup}/cpu.stat has no usage_usec")


def run_time_of(pid: int) -> int:
    """What a live single-threaded process has used (/proc/PID/schedstat), in nanoseconds."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0])


def has(program: str) -> bool:
    """Whether a program is installed."""
    return any(
        os.access(Path(folder, program), os.X_OK) for folder in [*os.get_exec_path(), "/usr/sbin"]
    )
