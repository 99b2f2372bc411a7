# SPDX-License-Identifier: Apache-2.0
"""Real programs that say whether they may connect: dial.c, compiled once, and how to run it."""

from __future__ import annotations

import contextlib
import errno
import functools
import itertools
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, Self

from tests.kernel.harness import programs

SOURCES: Final = Path(__file__).parent
LIMIT_S: Final = 60.0
_PORTS: Final = itertools.count(20_000 + os.getpid() % 20_000)


@functools.cache
def _built(name: str) -> bytes:
    """The bytes of a compiled program, so that every test gets a file of its own."""
    source, flags = {
        "dial": ("dial.c", ("-static", "-pthread")),
        "swap": ("swap.c", ("-static",)),
        "dial-dynamic": ("dial.c", ("-pthread",)),
        "preload": ("preload.c", ("-shared", "-fPIC")),
    }[name]
    with tempfile.TemporaryDirectory(prefix="licagent-build-") as folder:
        target = Path(folder, name)
        subprocess.run(["gcc", "-O1", "-Wall", "-o", target, SOURCES / source, *flags], check=True)
        return target.read_bytes()


def install(path: Path, program: str = "dial", *, variant: str = "", mode: int = 0o755) -> Path:
    """Put a program at `path` (a new file, renamed into place); `variant` changes its digest."""
    fresh = path.with_name(f".{path.name}.new")
    # What stands behind an ELF file's last section plays no part when it runs.
    fresh.write_bytes(_built(program) + variant.encode())
    fresh.chmod(mode)
    fresh.rename(path)
    return path


@contextlib.contextmanager
def program_folder() -> Iterator[Path]:
    """A folder on the disk that every user may look into, for programs."""
    folder = Path(tempfile.mkdtemp(prefix="licagent-programs-"))
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def settle(path: Path) -> Path:
    """Wait until what is executed from here on can be told from what stood there before."""
    # More than what has to lie between a change and an exec that counts (FRESH_NS and 2 ms).
    while 0 <= time.time_ns() - path.stat().st_ctime_ns < 30_000_000:
        time.sleep(0.005)
    return path


class Destination:
    """A destination of a test's own on loopback, where nobody needs to listen."""

    def __init__(self) -> None:
        self.port = next(_PORTS)
        self.address = "127.77.0.1"

    def __str__(self) -> str:
        return f"{self.address}:{self.port}"

    def resource(self, name: str = "r", mode: str = "enforce") -> str:
        """Its [[resource]]."""
        return (
            f'[[resource]]\nname = "{name}"\nkind = "network"\nmode = "{mode}"\n'
            f'destinations = [{{ cidr = "{self.address}/32", ports = ["{self.port}"] }}]\n'
        )


def binding(jti: str, *selectors: str) -> str:
    """A [[binding]] with these selectors."""
    chosen = ", ".join(f'"{selector}"' for selector in selectors)
    return f'[[binding]]\nlicense = "{jti}"\nselectors = [{chosen}]\n'


class Dialer:
    """A running dial; leaving the context ends it."""

    def __init__(self, program: programs.Program) -> None:
        self.program = program

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.program.__exit__(None, None, None)

    @property
    def pid(self) -> int:
        """Its process id, the same over exec."""
        return self.program.pid

    def number(self) -> int:
        """The errno it writes next, 0 for none. AssertionError at its end."""
        stdout = self.program.process.stdout
        assert stdout is not None
        line = stdout.readline()
        if not line:
            assert self.program.process.stderr is not None
            raise AssertionError(f"it ended: {self.program.process.stderr.read()!r}")
        return int(line)

    def answer(self) -> str:
        """The same as a word: "OK", or the errno's name."""
        number = self.number()
        return errno.errorcode[number] if number else "OK"

    def say(self, command: str) -> None:
        """Give it a command."""
        assert self.program.process.stdin is not None
        self.program.process.stdin.write(command.encode() + b"\n")
        self.program.process.stdin.flush()

    def ask(self, command: str = "dial") -> str:
        """Give it a command and return what it says to it."""
        self.say(command)
        return self.answer()

    def become(self, command: str) -> None:
        """A command that makes it another program, which says nothing of it."""
        self.say(command)

    def until(self, wanted: str, command: str = "dial", *, again: str = "") -> None:
        """Ask until it answers `wanted`; AssertionError with the last answer after LIMIT_S.

        `again`: what it is told between two questions, see `become`.
        """
        end = time.monotonic() + LIMIT_S
        while (said := self.ask(command)) != wanted:
            assert time.monotonic() < end, f"it says {said} instead of {wanted} for {LIMIT_S} s"
            time.sleep(0.02)
            if again:
                self.become(again)

    def stays(self, wanted: str, for_s: float = 0.6) -> None:
        """It answers nothing but `wanted`, for longer than the daemon takes for a round."""
        end = time.monotonic() + for_s
        while time.monotonic() < end:
            assert self.ask() == wanted
            time.sleep(0.02)


def dialer(
    cgroup: Path,
    command: Path | Sequence[str],
    to: Destination,
    *,
    uid: int | None = None,
    environment: Sequence[str] = (),
) -> Dialer:
    """Start a dial in `cgroup`: a program, or a command that ends up as one."""
    argv = [str(command)] if isinstance(command, Path) else list(command)
    env = ["/usr/bin/env", f"DIAL_TO={to}", *environment]
    return Dialer(programs.start(cgroup, [*env, *argv], uid=uid))


def answer_of(
    cgroup: Path, command: Path | Sequence[str], to: Destination, *, uid: int | None = None
) -> str:
    """What a fresh process says at its first try."""
    with dialer(cgroup, command, to, uid=uid) as running:
        return running.ask()


def started_now(cgroup: Path, program: Path, to: Destination) -> Dialer:
    """Start a program with nothing in between; it goes into `cgroup` before the first question."""
    process = subprocess.Popen(
        [program],
        env={"DIAL_TO": str(to)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    found = Dialer(programs.Program(process))
    assert found.ask(f"move {cgroup}") == "OK"
    return found
