# SPDX-License-Identifier: Apache-2.0
"""Programs in a cgroup, a network namespace and under a user of the test's choice."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from tests.kernel.harness.namespaces import Netns

REPOSITORY: Final = Path(__file__).resolve().parents[3]
PYTHON: Final = (sys.executable, "-S", "-B")
"""The programs need nothing but the standard library; -S saves a third of their start."""

LIMIT_S: Final = 60.0

Handler = Callable[[dict[str, Any]], Mapping[str, object] | None]


class Program:
    """A program that was started by `start`; leaving the context ends it if it still runs."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        self.pid = process.pid
        self._buffer = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            if stream is not None:
                stream.close()

    def line(self) -> dict[str, Any] | None:
        """The next line of JSON it writes; None at its end. Raises after LIMIT_S."""
        assert self.process.stdout is not None
        limit = time.monotonic() + LIMIT_S
        while b"\n" not in self._buffer:
            wait = limit - time.monotonic()
            readable, _, _ = select.select([self.process.stdout], [], [], max(wait, 0))
            if not readable:
                raise TimeoutError(f"{self.process.args!r} said nothing for {LIMIT_S} s")
            more = os.read(self.process.stdout.fileno(), 65536)
            if not more:
                return None
            self._buffer += more
        line, self._buffer = self._buffer.split(b"\n", 1)
        value = json.loads(line)
        assert isinstance(value, dict)
        return value

    def answer(self, facts: Mapping[str, object]) -> None:
        """Let it go on from a "wait"."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(facts).encode() + b"\n")
        self.process.stdin.flush()

    def converse(self, handler: Handler) -> dict[str, Any]:
        """Serve its lines until it reports an outcome; answers that report."""
        while (line := self.line()) is not None:
            if "outcome" in line:
                return line
            answer = handler(line)
            if "wait" in line:
                self.answer(answer or {})
        assert self.process.stderr is not None
        words = self.process.stderr.read().decode(errors="replace")
        raise RuntimeError(f"{self.process.args!r} ended without a report:\n{words}")


def start(
    cgroup: Path,
    argv: Sequence[str],
    *,
    namespace: Netns | None = None,
    uid: int | None = None,
) -> Program:
    """Start a program that is in `cgroup` (and `namespace`, and is `uid`) before its exec."""
    prefix = ["/bin/sh", "-c", 'echo 0 > "$0/cgroup.procs" && exec "$@"', str(cgroup)]
    descriptors: tuple[int, ...] = ()
    if namespace is not None:
        prefix += ["nsenter", f"--net=/proc/self/fd/{namespace.descriptor}", "--"]
        descriptors = (namespace.descriptor,)
    if uid is not None:
        prefix += ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups", "--"]
    process = subprocess.Popen(
        [*prefix, *argv],
        cwd=REPOSITORY,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        pass_fds=descriptors,
    )
    return Program(process)


def run_in_cgroup(
    cgroup: Path,
    argv: Sequence[str],
    *,
    namespace: Netns | None = None,
    uid: int | None = None,
    stdin: bytes = b"",
    limit_s: float = LIMIT_S,
) -> subprocess.CompletedProcess[bytes]:
    """Run any program to its end in a cgroup; answers its exit code and output."""
    with start(cgroup, argv, namespace=namespace, uid=uid) as program:
        out, err = program.process.communicate(stdin, timeout=limit_s)
        code = program.process.returncode
        return subprocess.CompletedProcess(list(argv), code, out, err)
