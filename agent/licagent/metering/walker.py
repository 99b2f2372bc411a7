# SPDX-License-Identifier: Apache-2.0
"""Walks in a process of their own, one after the other.

A walk of ten million files takes a minute of CPU and remembers what it saw. In a child process
neither the daemon's other threads nor its memory feel it, it runs at the lowest priority, a file
system that hangs hangs the child alone, and the time limit can be enforced by ending it.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import IO, Any, Final

from licagent.metering.inodes import Walked, WalkTask
from licagent.metering.walk import TreeWalk

PATIENCE_S: Final = 30.0
"""A walk ends itself in time; only one that hangs in the kernel takes so much longer."""

_TOLD_EVERY_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class WalkDone:
    """The end of one walk; without `walked` it failed, and `problem` says why."""

    name: str
    owner: int
    """Whose bytes were asked for; ALL for everybody's."""
    boottime_ms: int
    """When it ended."""
    walked: Walked | None
    problem: str = ""


class Walker:
    """At most one child, with a list of walks to do."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._child: subprocess.Popen[bytes] | None = None
        self._answers: IO[bytes] | None = None
        self._left: list[WalkTask] = []
        self._unread = b""
        self._deadline = 0.0
        self._entries = 0

    @property
    def is_busy(self) -> bool:
        """Whether walks are under way; others have to wait."""
        return bool(self._left)

    @property
    def current(self) -> tuple[str, int]:
        """Name of the walk under way and the entries it has seen; ("", 0) for none."""
        return (self._left[0].name, self._entries) if self._left else ("", 0)

    def start(self, tasks: Sequence[WalkTask]) -> None:
        """Begin; only while it is not busy."""
        self._left = list(tasks)
        self._entries = 0
        self._unread = b""
        if self._left:
            self._spawn()

    def poll(self) -> list[WalkDone]:
        """The walks that ended since the last call; never blocks."""
        done: list[WalkDone] = []
        if self._child is None:
            return done
        for line in self._lines():
            self._take(line, done)
        if not self._left:
            self._end()
        elif self._child.poll() is not None:
            for line in self._lines():  # what it wrote between the last look and its end
                self._take(line, done)
            if self._left:
                code = self._child.returncode
                self._fail(f"the walk ended with {code}", done)
        elif self._clock() > self._deadline:
            self._fail("the walk hung and was ended", done)
        return done

    def close(self) -> None:
        """End the child, if there is one. What it was doing counts for nothing."""
        self._left = []
        self._end()

    # ------------------------------------------------------------------ inside

    def _spawn(self) -> None:
        # -P: the current folder is not searched for modules by a process that runs as root.
        with open(os.memfd_create("walks"), "w+b") as tasks:
            tasks.write(json.dumps([asdict(task) for task in self._left]).encode())
            tasks.seek(0)
            self._child = subprocess.Popen(
                [sys.executable, "-P", "-m", "licagent.metering.walker"],
                stdin=tasks,
                stdout=subprocess.PIPE,
                cwd="/",
            )
        self._answers = self._child.stdout
        if self._answers is not None:
            os.set_blocking(self._answers.fileno(), False)
        self._set_deadline()

    def _set_deadline(self) -> None:
        if self._left:
            self._deadline = self._clock() + self._left[0].limit_s + PATIENCE_S

    def _lines(self) -> list[bytes]:
        if self._answers is None:
            return []
        with contextlib.suppress(BlockingIOError):
            while chunk := os.read(self._answers.fileno(), 1 << 16):
                self._unread += chunk
        *lines, self._unread = self._unread.split(b"\n")
        return lines

    def _take(self, line: bytes, done: list[WalkDone]) -> None:
        answer = json.loads(line)
        if "entries" in answer:
            self._entries = answer["entries"]
            return
        walked = answer["walked"]
        if walked is not None:
            walked["held"] = {owner: (size, inodes) for owner, size, inodes in walked["held"]}
            walked = Walked(**walked)
        task = self._left.pop(0)
        self._entries = 0
        self._set_deadline()
        done.append(
            WalkDone(
                task.name,
                task.owner,
                answer["boottime_ms"],
                walked,
                answer["problem"],
            )
        )

    def _fail(self, problem: str, done: list[WalkDone]) -> None:
        """The walk under way is lost; the others start anew."""
        self._end()
        task = self._left.pop(0)
        done.append(WalkDone(task.name, task.owner, _now_ms(), None, problem))
        self.start(self._left)

    def _end(self) -> None:
        child, self._child = self._child, None
        if child is None:
            return
        if self._answers is not None:
            self._answers.close()
            self._answers = None
        child.kill()
        # One that hangs in the kernel dies when the kernel lets go of it; nobody waits for that.
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(timeout=1.0)


def _now_ms() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000


def _say(answer: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


def _progress() -> Callable[[int], None]:
    last = time.monotonic()

    def told(entries: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= _TOLD_EVERY_S:
            last = now
            _say({"entries": entries})  # ends this process where nobody reads it any more

    return told


def _main() -> None:
    with contextlib.suppress(OSError):
        os.nice(19)
    for fields in json.load(sys.stdin):
        answer: dict[str, Any] = {"walked": None, "problem": ""}
        try:
            walked = TreeWalk(WalkTask(**fields), told=_progress()).run()
            found = asdict(walked)
            found["held"] = [(owner, *held) for owner, held in walked.held.items()]
            answer["walked"] = found
        except OSError as error:
            answer["problem"] = f"{fields['path']}: {error.strerror or error}"
        answer["boottime_ms"] = _now_ms()
        _say(answer)


if __name__ == "__main__":
    _main()
