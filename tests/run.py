# SPDX-License-Identifier: Apache-2.0
"""What `./dev test` runs: the phases of the tests, side by side where all of them are asked for.

Most tests of the daemon and of the control plane wait (for a renewal, an expiry, a retry), so
two phases at a time fill two CPUs: each lane takes the next phase when it has ended one. Beside
each other their output would be no reading: a phase is then shown whole when it ends.
LICAGENT_TEST_LANES=1 runs one after the other, as they do when paths, options or -x are given.
LICAGENT_TEST_VM=1 adds the machines of `./dev vm`, and a lane.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[1]
NO_TESTS: Final = 5
"""pytest's status when nothing was collected."""
BROKEN_OFF: Final = 2
"""pytest's status when it was told to end."""
BESIDE_S: Final = 400
"""A test's limit beside other lanes; pyproject.toml has that of a test alone."""
END_S: Final = 50
"""How long a pytest that is told to end may clean up."""
NICE: Final = 5
"""Of emulated machines: a third of the processor's time of another lane, where all want it."""
LANES: Final = 2
FLEET: Final = ("ansible", "billing", "control", "fleet")
"""How the names of most system tests with a control plane begin: half of what all of them take."""
TAKE_A_VALUE: Final = {"-k", "-m", "-o", "-p", "-W", "-c", "-r"}


@dataclass(frozen=True, slots=True)
class Phase:
    """One run of pytest."""

    name: str
    folder: str
    loader: str = ""
    command: tuple[str, ...] = ()
    """Instead of pytest."""
    files: tuple[str, ...] = ()
    """Of the folder; all of it where there are none."""


@dataclass(slots=True)
class Request:
    """The command line."""

    paths: list[str] = field(default_factory=list)
    options: list[str] = field(default_factory=list)
    stops_at_failure: bool = False

    def chosen(self, folder: str) -> list[str]:
        """What of it lies in a phase's folder."""
        if not self.paths:
            return [folder]
        found = []
        for path in self.paths:
            if path in {"tests", "."}:
                found.append(folder)
            elif path == folder or path.startswith(folder + "/"):
                found.append(path)
        return found


def say(text: str) -> None:
    """To whoever watches."""
    sys.stdout.flush()
    sys.stderr.write(f"dev: {text}\n")
    sys.stderr.flush()


def read_request(arguments: Sequence[str], caller: Path) -> Request:
    """Paths are the caller's; everything else is pytest's. Exits where a file is not there."""
    found = Request()
    previous = ""
    for argument in arguments:
        file, colons, rest = argument.partition("::")
        if argument in {"-x", "--exitfirst"} or argument.startswith("--maxfail"):
            found.stops_at_failure = True
        if previous in TAKE_A_VALUE:  # also where a file has that name
            found.options.append(argument)
        elif not argument.startswith("-") and (caller / file).exists():
            path = os.path.relpath((caller / file).resolve(), ROOT)
            found.paths.append(path + colons + rest)
        elif not argument.startswith("-") and file.endswith(".py"):
            sys.exit(f"dev: no such test file: {file}")
        else:
            found.options.append(argument)
        previous = argument
    return found


def phases(request: Request) -> tuple[list[Phase], int]:
    """What is run, in order, and how many at a time; the kernel's suite runs under each loader."""
    loaders = os.environ.get("LICAGENT_TEST_LOADER", "prebuilt bcc").split()
    unit, system = Phase("unit", "tests/unit"), Phase("system", "tests/system")
    kernel = [Phase(f"kernel, loader {loader}", "tests/kernel", loader) for loader in loaders]
    is_whole = not request.paths and not request.options
    machines = []
    if is_whole and os.environ.get("LICAGENT_TEST_VM") == "1":
        # Emulated machines take whatever processor there is: the others, who wait most of the
        # time, go first.
        command = ("nice", "-n", str(NICE), "./dev", "vm", "--short")
        machines.append(Phase("machines", "tests/vm", command=command))
    is_narrow = os.environ.get("LICAGENT_TEST_LANES") == "1" or (os.cpu_count() or 1) < 2
    if not is_whole or request.stops_at_failure or is_narrow or len(kernel) < 2:
        return [unit, *kernel, system, *machines], 1
    # The long ones first, so that the lanes end together.
    return [*machines, kernel[0], *halves(system), *kernel[1:], unit], LANES + len(machines)


def halves(system: Phase) -> tuple[Phase, Phase]:
    """The system's tests in two phases, by the files' names."""
    files = sorted(path.relative_to(ROOT) for path in (ROOT / system.folder).glob("test_*.py"))
    fleet = [str(each) for each in files if each.name.split("_")[1] in FLEET]
    others = [str(each) for each in files if str(each) not in fleet]
    return (
        Phase("system, fleet", system.folder, files=tuple(fleet)),
        Phase("system, others", system.folder, files=tuple(others)),
    )


def be_nice(session: int) -> None:
    """Schedule a session's processes after those of others.

    Each session is a group that gets an equal share, whatever the nice values in it (sched(7), "The
    autogroup feature"); where the kernel has no such groups, the nice values count.
    """
    with contextlib.suppress(OSError):
        Path(f"/proc/{session}/autogroup").write_text(str(NICE), encoding="ascii")


class Run:
    """All phases and how they went."""

    def __init__(self, request: Request, tally: Path) -> None:
        self._request = request
        self._tally = tally
        self._lock = threading.Lock()
        self._running: list[subprocess.Popen[bytes]] = []
        self._is_ending = False
        self._phases = 0
        self._statuses: list[int] = []
        self._is_broken = False

    def end(self, number: int, _frame: FrameType | None) -> None:
        """Tell every pytest to end in order: its fixtures clean up."""
        self._is_ending = True
        for process in tuple(self._running):
            process.send_signal(signal.SIGTERM if number == signal.SIGTERM else signal.SIGINT)

    def guarded_lane(self, waiting: queue.SimpleQueue[Phase]) -> None:
        """A lane in a thread of its own: if it cannot go on, the run has failed."""
        with contextlib.suppress(queue.Empty):
            while True:
                phase = waiting.get_nowait()
                try:
                    self.phase(phase, is_alone=False)
                except BaseException:  # noqa: BLE001 - whatever it is: no phase may end unseen
                    self._is_broken = True
                    say(f"test: {phase.name} broke off")
                    traceback.print_exc()

    def phase(self, phase: Phase, *, is_alone: bool) -> None:
        """One of them, unless the run is over, or nothing of it was asked for."""
        failed = any(status not in {0, NO_TESTS} for status in self._statuses)
        if self._is_ending or (failed and self._request.stops_at_failure):
            return
        paths = phase.files or self._request.chosen(phase.folder)
        if paths and next((ROOT / phase.folder).rglob("test_*.py"), None) is not None:
            self._phase(phase, paths, is_alone=is_alone)

    def _phase(self, phase: Phase, paths: Sequence[str], *, is_alone: bool) -> None:
        environment = os.environ | {"LICAGENT_TEST_TALLY": str(self._tally)}
        if phase.loader:
            environment["LICAGENT_TEST_LOADER"] = phase.loader
        command = [sys.executable, "-m", "pytest", *self._request.options, *paths]
        if phase.command:
            command = list(phase.command)
        elif not is_alone:
            command.append("--durations=15")  # which tests a lane waits for
            command += ["-o", f"timeout={BESIDE_S}"]
        say(f"test: {phase.name}" + ("" if is_alone else ", begun"))
        began = time.monotonic()
        with tempfile.TemporaryFile() as shown:
            process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=None if is_alone else shown,
                stderr=None if is_alone else subprocess.STDOUT,
                # Ctrl-C reaches each once, by end().
                start_new_session=True,
            )
            if phase.command:
                be_nice(process.pid)
            self._running.append(process)
            try:
                status = self._wait(process)
            finally:
                self._running.remove(process)
            with self._lock:
                self._phases += 1
                self._statuses.append(status)
                if not is_alone:
                    took = time.monotonic() - began
                    say(f"test: {phase.name}, ended with status {status} after {took:.0f} s:")
                    shown.seek(0)
                    sys.stdout.buffer.write(shown.read())
                    sys.stdout.buffer.flush()

    def _wait(self, process: subprocess.Popen[bytes]) -> int:
        while not self._is_ending:
            try:
                return process.wait(timeout=1)
            except subprocess.TimeoutExpired:
                continue
        try:
            return process.wait(timeout=END_S)
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait()

    def status(self) -> int:
        """Of the whole run: pytest's words."""
        bad = [status for status in self._statuses if status not in {0, NO_TESTS}]
        if bad:
            return bad[0]
        if self._is_ending or self._is_broken:
            return BROKEN_OFF
        is_whole = not (self._request.paths or self._request.options)
        if NO_TESTS in self._statuses and (is_whole or 0 not in self._statuses):
            return NO_TESTS
        return 0 if self._statuses else NO_TESTS

    def closing_line(self, seconds: float) -> str:
        """All phases in one line, in pytest's own form."""
        rows = [json.loads(line) for line in self._tally.read_text().splitlines()]
        total: Counter[str] = Counter()
        for row in rows:
            row.pop("seconds")
            total.update(row)
        if total.get("error", 0) > 1:
            total["errors"] = total.pop("error")
        parts = [f"{count} {name}" for name, count in total.items() if count] or ["no tests ran"]
        if self._is_broken:
            parts.insert(0, "a phase broke off")
        if broken := self._phases - len(
            rows
        ):  # a crash, or a wrong option: it did not get to count
            parts.insert(0, f"{broken} of {self._phases} pytest runs broke off")
        spent = f"{seconds:.2f}s"
        if seconds >= 60:
            spent += f" ({int(seconds) // 60}:{int(seconds) % 60:02d})"
        return f" {', '.join(parts)} in {spent} ".center(80, "=")


def main() -> int:
    """CALLER [ARGUMENTS]: the folder that paths are relative to, and those of `./dev test`."""
    request = read_request(sys.argv[2:], Path(sys.argv[1]))
    began = time.monotonic()
    with tempfile.NamedTemporaryFile(prefix="licagent-tally-") as tally:
        run = Run(request, Path(tally.name))
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, run.end)
        planned, at_a_time = phases(request)
        if at_a_time == 1:
            for phase in planned:
                run.phase(phase, is_alone=True)
        else:
            waiting: queue.SimpleQueue[Phase] = queue.SimpleQueue()
            for phase in planned:
                waiting.put(phase)
            threads = [
                threading.Thread(target=run.guarded_lane, args=(waiting,)) for _ in range(at_a_time)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                while thread.is_alive():  # signals are handled between two of these
                    thread.join(0.5)
        print(run.closing_line(time.monotonic() - began), flush=True)
        return run.status()


if __name__ == "__main__":
    sys.exit(main())
