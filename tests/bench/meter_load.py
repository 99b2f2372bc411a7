# SPDX-License-Identifier: Apache-2.0
"""A load whose use is known from outside of any meter: `load/load.c`, driven from Python."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

from tests.bench.paired import ROOT
from tests.bench.places import Namespace

if TYPE_CHECKING:
    from types import TracebackType

SOURCE: Final = Path(__file__).parent / "load" / "load.c"
BINARY: Final = ROOT / "build" / "bench" / "load"

CLIENT: Final = "192.0.2.1"
SINK: Final = "192.0.2.2"
"""Ends of the veth pair (TEST-NET-1), in two namespaces of the bench's own."""

INTERFACE: Final = "meter0"
ETHERNET_HEADER: Final = 14


def build() -> None:
    """Compile the load if its source is newer. RuntimeError with what to install."""
    if BINARY.exists() and BINARY.stat().st_mtime >= SOURCE.stat().st_mtime:
        return
    BINARY.parent.mkdir(parents=True, exist_ok=True)
    fresh = BINARY.with_name(f"load.{os.getpid()}")
    command = ["gcc", "-O2", "-Wall", "-Wextra", "-static", "-o", str(fresh), str(SOURCE)]
    try:
        subprocess.run(command, check=True)
    except FileNotFoundError as error:
        raise RuntimeError("the load needs a C compiler: apt-get install gcc libc6-dev") from error
    fresh.rename(BINARY)


class Link:
    """A veth pair between two namespaces: the client's end counts what passed."""

    def __init__(self) -> None:
        with contextlib.ExitStack() as undo:
            self.client = Namespace()
            undo.callback(self.client.close)
            self.sink = Namespace()
            undo.callback(self.sink.close)
            self._pid, sink_pid = (Path(end.path).parts[2] for end in (self.client, self.sink))
            pair = f"link add {INTERFACE} netns {self._pid} type veth"
            pair += f" peer name {INTERFACE} netns {sink_pid}"
            subprocess.run(["ip", *pair.split()], check=True)
            for end, address in ((self.client, CLIENT), (self.sink, SINK)):
                script = (
                    "[ ! -d /proc/sys/net/ipv6 ] ||"
                    " echo 1 > /proc/sys/net/ipv6/conf/all/disable_ipv6;"
                    f" ip addr add {address}/30 dev {INTERFACE} && ip link set {INTERFACE} up"
                )
                subprocess.run(["nsenter", f"--net={end.path}", "sh", "-c", script], check=True)
            self._undo = undo.pop_all()

    def wire_bytes(self) -> int:
        """IP bytes that passed, both ways (a few ARP packets included), by the interface."""
        text = Path(f"/proc/{self._pid}/net/dev").read_text(encoding="ascii")
        for line in text.splitlines():
            name, _, rest = line.partition(":")
            if name.strip() == INTERFACE:
                field = [int(word) for word in rest.split()]
                return field[0] + field[8] - ETHERNET_HEADER * (field[1] + field[9])
        raise RuntimeError(f"no {INTERFACE} in the namespace of the load")

    def close(self) -> None:
        """End both namespaces, and with them the pair."""
        self._undo.close()


@dataclass(frozen=True, slots=True)
class Totals:
    """What ended processes used, and what the sink received."""

    born: int
    ended: int
    failed: int
    rusage_us: int
    """By wait4: user and system time, each cut to whole microseconds."""
    clock_ns: int
    """By each process's own CPU clock, read while it was a zombie."""
    received: int
    """Payload bytes at the sink."""
    connections: int
    failed_connects: int

    @property
    def cpu_ns(self) -> int:
        """The reference: wait4 cuts off up to two microseconds a process, the clock does not."""
        return self.clock_ns


class Load:
    """Processes inside a cgroup. Leaving ends those that still live."""

    def __init__(
        self,
        cgroup: Path,
        folder: Path,
        *,
        name: str = "licload",
        live: int = 0,
        wake_ms: int = 0,
        live_burn_us: int = 0,
        burn_us: int = 0,
        executes: bool = False,
        send: int = 0,
        link: Link | None = None,
    ) -> None:
        """Starts `live` processes that wake every `wake_ms`; `births` makes others later.

        Args:
            cgroup: every process of the load is born in it.
            folder: for the program that is executed.
            name: prefix of the processes' names, at most 10 characters.
            executes: born processes execute a program `NAME-job`.
            send: bytes over TCP by each born process, and by a living one at each waking.
            link: needed to send.
        """
        build()
        command: list[str] = [str(BINARY), "--cgroup", str(cgroup), "--name", name]
        numbers = {"live": live, "wake-ms": wake_ms, "live-burn-us": live_burn_us}
        for key, value in {**numbers, "burn-us": burn_us, "send": send}.items():
            command += [f"--{key}", str(value)]
        if executes:
            self.job = folder / f"{name}-job"
            shutil.copy2(BINARY, self.job)
            command += ["--job", str(self.job)]
        if link is not None:
            command += ["--netns", link.client.path, "--sink-netns", link.sink.path, "--to", SINK]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._expect("READY\n")

    def _line(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline()

    def _expect(self, line: str) -> None:
        if self._line() != line:
            self._process.kill()
            self._process.wait()
            raise RuntimeError("the load did not start")

    def _totals(self) -> Totals:
        line = self._line()
        if not line:
            raise RuntimeError("the load died")
        return Totals(**json.loads(line))

    def births(self, count: int, rate: int = 0) -> Totals:
        """Start `count` processes, `rate` a second (0: one a CPU at a time); all have ended then.

        Raises:
            RuntimeError: some failed.
        """
        self._ask(f"births {count} {rate}\n")
        found = self._totals()
        if found.failed or found.failed_connects:
            raise RuntimeError(f"the load failed: {found}")
        return found

    def _ask(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line)
        self._process.stdin.flush()

    def finish(self) -> Totals:
        """End those that live; the sum of all."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        found = self._totals()
        self._process.wait()
        return found

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._process.poll() is None:
            self._process.kill()  # its children die with it: PR_SET_PDEATHSIG
            self._process.wait()
            time.sleep(0.2)
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
