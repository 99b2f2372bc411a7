# SPDX-License-Identifier: Apache-2.0
"""Thousands of simulated hosts in a few processes, driven from the bench."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any, Final, Self

from tests.bench import paired

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from types import TracebackType

WAIT_S: Final = 180.0


class Fleet:
    """Simulated hosts, spread over processes; leaving the context ends them."""

    def __init__(self, processes: int, log: Path) -> None:
        environment = {
            **os.environ,
            "PYTHONPATH": str(paired.ROOT),
            "GRPC_VERBOSITY": "ERROR",
        }
        self._log = log.open("ab")
        self._processes = [
            subprocess.Popen(
                [sys.executable, "-m", "tests.bench.control_member"],
                cwd=paired.ROOT,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._log,
                text=True,
            )
            for _ in range(processes)
        ]
        self.size = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for process in self._processes:
            process.kill()
            process.wait()
            for stream in (process.stdin, process.stdout):
                if stream is not None:
                    stream.close()
        self._log.close()

    # --- asking

    def _ask(self, requests: list[dict[str, Any]]) -> list[dict[str, Any]]:
        for process, request in zip(self._processes, requests, strict=True):
            assert process.stdin is not None
            process.stdin.write(json.dumps(request) + "\n")
            process.stdin.flush()
        answers: list[dict[str, Any]] = []
        for process in self._processes:
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line:
                raise RuntimeError(f"a process of simulated hosts ended: {process.wait()}")
            answer: dict[str, Any] = json.loads(line)
            if "error" in answer:
                raise RuntimeError(f"simulated hosts: {answer['error']}")
            answers.append(answer)
        return answers

    def all(self, do: str, **request: Any) -> list[dict[str, Any]]:
        """The same command to each process; all answers."""
        return self._ask([{"do": do, **request}] * len(self._processes))

    # --- life

    def enroll(self, join: str, count: int, name: str = "sim") -> float:
        """Make that many hosts; seconds it took."""
        share, rest = divmod(count, len(self._processes))
        started = time.monotonic()
        self._ask(
            [
                {
                    "do": "enroll",
                    "join": join,
                    "count": share + (index < rest),
                    "name": f"{name}-{index}",
                }
                for index in range(len(self._processes))
            ]
        )
        self.size += count
        return time.monotonic() - started

    def start(self, *, leases: bool = False) -> None:
        """Open all streams, and return at once."""
        self.all("start", leases=leases)

    def state(self) -> dict[str, Any]:
        """Sums and lists over all hosts."""
        answers = self.all("state")
        refusals: dict[str, int] = {}
        for answer in answers:
            for name, count in answer["refusals"].items():
                refusals[name] = refusals.get(name, 0) + count
        return {
            "synced": sum(answer["synced"] for answer in answers),
            "synced_ns": [at for answer in answers for at in answer["synced_ns"]],
            "reconnects": [n for answer in answers for n in answer["reconnects"]],
            "received_bytes": sum(answer["received_bytes"] for answer in answers),
            "refusals": refusals,
        }

    def wait_synced(self, limit_s: float = WAIT_S) -> dict[str, Any]:
        """Until every host has the whole view. RuntimeError with what was refused."""
        return self._wait(self.state, lambda s: s["synced"] == self.size, limit_s)

    def wait_revoked(self, after_ns: int, limit_s: float = 30.0) -> list[int]:
        """When each host acknowledged the first statement since a moment."""
        found = self._wait(
            lambda: {"at": self._times("revoked", after_ns=after_ns)},
            lambda s: all(s["at"]),
            limit_s,
        )
        return list(found["at"])

    def wait_reached(self, revision: int, limit_s: float = 60.0) -> list[int]:
        """When each host acknowledged a revision."""
        found = self._wait(
            lambda: {"at": self._times("reached", revision=revision)},
            lambda s: all(s["at"]),
            limit_s,
        )
        return list(found["at"])

    def _times(self, do: str, **request: Any) -> list[int]:
        return [at for answer in self.all(do, **request) for at in answer["at_ns"]]

    def _wait(
        self,
        ask: Callable[[], dict[str, Any]],
        done: Callable[[dict[str, Any]], bool],
        limit_s: float,
    ) -> dict[str, Any]:
        end = time.monotonic() + limit_s
        while True:
            found = ask()
            if done(found):
                return found
            if time.monotonic() > end:
                state = self.state()
                raise RuntimeError(
                    f"not within {limit_s:.0f} s: {state['synced']} of {self.size} in sync,"
                    f" refused {state['refusals']}"
                )
            # Asking costs the machine that is measured; the times are the hosts' own.
            time.sleep(0.5)
