# SPDX-License-Identifier: Apache-2.0
"""A server, and probes in a licensed and an unlicensed cgroup, that run through a whole test."""

from __future__ import annotations

import contextlib
import random
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from tests.kernel.harness.cgroups import CgroupTree
from tests.kernel.harness.programs import PYTHON, Program, start

_PROGRAM: Final = str(Path(__file__).with_name("probe_life.py"))
_STREAMS: Final = str(Path(__file__).with_name("probe_streams.py"))
KINDS: Final = ("udp", "tcp", "bind")
WAIT_S: Final = 60.0
SILENCE_S: Final = 2.0
"""Of connections that are expected to be silent, each time they are asked."""
_RECORDERS_PORTS: Final = range(21_000, 31_000)
"""See recorder.py: its ports and these are drawn beside each other."""


def eventually(condition: Callable[[], object], what: str, limit_s: float = WAIT_S) -> Any:
    """Poll until a condition holds; its value."""
    end = time.monotonic() + limit_s
    while not (value := condition()):
        assert time.monotonic() < end, f"not within {limit_s} s: {what}"
        time.sleep(0.01)
    return value


def free_port(kind: socket.SocketKind = socket.SOCK_DGRAM) -> int:
    """A port that nobody has, for a service resource.

    Outside the range that the kernel hands out by itself: a port that is free now must not be
    some other program's source port a moment later.
    """
    text = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text(encoding="ascii")
    low, high = (int(word) for word in text.split())
    ports = [
        port
        for port in range(10_000, 65_536)
        if not low <= port <= high and port not in _RECORDERS_PORTS
    ]
    for port in random.sample(ports, 100):
        with socket.socket(socket.AF_INET, kind) as sock:
            try:
                sock.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise AssertionError(f"none of 100 ports outside {low}-{high} is free")


def free_ports(count: int, kind: socket.SocketKind = socket.SOCK_DGRAM) -> list[int]:
    """As many ports that nobody has, all different."""
    found: set[int] = set()
    while len(found) < count:
        found.add(free_port(kind))
    return list(found)


def ask(program: Program, **question: object) -> dict[str, Any]:
    """The numbers of a probe now. Raises TimeoutError if it hangs.

    `patience_s` is how long connections wait for their echoes: SILENCE_S where none will come.
    """
    program.answer(question)
    line = program.line()
    assert line is not None, "the probe ended"
    return line


@dataclass(frozen=True, slots=True)
class Cgroups:
    """The two subjects."""

    licensed: Path
    unlicensed: Path


class Probes:
    """Everything that runs while a test does things to the agent.

    `policy` names the server's port and one service port as the resources "probe" and "offer".
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._stack = contextlib.ExitStack()
        self.service = free_port()

    def __enter__(self) -> Self:
        with self._stack as stack:
            self.cgroups = Cgroups(
                stack.enter_context(CgroupTree(self._root, "licensed")).root,
                stack.enter_context(CgroupTree(self._root, "unlicensed")).root,
            )
            self.outside = stack.enter_context(CgroupTree()).root
            self.server = self.program(self.outside, "server")
            line = self.server.line()
            assert line is not None, "the server ended"
            self.port = int(line["port"])
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    def cgroup(self, name: str) -> Path:
        """One more subject."""
        return self._stack.enter_context(CgroupTree(self._root, name)).root

    def program(self, cgroup: Path, *arguments: object) -> Program:
        """Start a role of probe_life.py."""
        argv = [*PYTHON, _PROGRAM, *map(str, arguments)]
        return self._stack.enter_context(start(cgroup, argv))

    def open(self, cgroup: Path, *arguments: object) -> tuple[Program, dict[str, Any]]:
        """Start a role of probe_streams.py; the program and its first line."""
        argv = [*PYTHON, _STREAMS, *map(str, arguments)]
        program = self._stack.enter_context(start(cgroup, argv))
        line = program.line()
        assert line is not None, f"{arguments} ended at once"
        return program, line

    def many(self, cgroup: Path, count: int = 8) -> Program:
        """Open connections that must open."""
        program, line = self.open(cgroup, "many", self.port, count)
        assert line == {"alive": count, "broken": {}, "silent": 0}
        return program

    def once(self, cgroup: Path, kind: str = "tcp", host: str = "127.0.0.1", port: int = 0) -> str:
        """One attempt (by default on the server); the errno's name, or "" where it passed."""
        _, line = self.open(cgroup, "once", kind, host, port or self.port)
        return line["errno"] or ""

    def policy(
        self,
        jti: str,
        *,
        selectors: tuple[str, ...] = ("cgroup:path:/licensed",),
        mode: str = "enforce",
        networks: tuple[str, str] = ("127.0.0.1/32", "::1/128"),
        extra: str = "",
    ) -> str:
        """A policy under which the licensed cgroup may do what the probes do."""
        destinations = ", ".join(
            f'{{ cidr = "{cidr}", ports = ["{self.port}"], protocol = "{protocol}" }}'
            for cidr in networks
            for protocol in ("tcp", "udp")
        )
        chosen = ", ".join(f'"{selector}"' for selector in selectors)
        return (
            f'[[resource]]\nname = "probe"\nkind = "network"\nmode = "{mode}"\n'
            f"destinations = [{destinations}]\n\n"
            f'[[resource]]\nname = "offer"\nkind = "service"\nmode = "{mode}"\n'
            f'ports = ["{self.service}"]\nprotocol = "udp"\n\n'
            f'[[binding]]\nlicense = "{jti}"\nselectors = [{chosen}]\n{extra}'
        )

    def start(self) -> None:
        """Set the probes going: callers on both sides, and a licensed stream."""
        self.licensed = self.program(self.cgroups.licensed, "calls", self.port, self.service)
        self.unlicensed = self.program(self.cgroups.unlicensed, "calls", self.port, self.service)
        self.streams = [self.stream("127.0.0.1"), self.stream("::1")]
        self.wait_for_rounds()

    def stream(self, host: str = "127.0.0.1", cgroup: Path | None = None) -> Program:
        """A stream that must open."""
        program = self.program(cgroup or self.cgroups.licensed, "stream", self.port, host)
        line = program.line()
        assert line is not None, "the stream ended at once"
        assert line["open"], line
        return program

    def wait_for_rounds(self, rounds: int = 20) -> None:
        """Return when every probe has gone on for that many more rounds (of 4 sockets)."""
        before = [_tries(ask(probe)) for probe in (self.licensed, self.unlicensed)]
        echoes = [ask(stream)["echoes"] for stream in self.streams]

        def gone_on() -> bool:
            for probe, were in zip((self.licensed, self.unlicensed), before, strict=True):
                if _tries(ask(probe)) < were + rounds * 4:
                    return False
            for stream, were in zip(self.streams, echoes, strict=True):
                numbers = ask(stream)
                assert not numbers["broken"], numbers
                if numbers["echoes"] < were + rounds:
                    return False
            return True

        eventually(gone_on, f"{rounds} more rounds of every probe")

    def check(self) -> None:
        """No denied use has passed, no licensed one has failed, no stream broke."""
        self.wait_for_rounds()
        licensed, unlicensed = ask(self.licensed), ask(self.unlicensed)
        # In this order: a denied bind that passed takes the port from a licensed one.
        assert unlicensed["passed"] == {}, f"denied uses passed: {unlicensed}"
        assert licensed["refused"] == {}, f"licensed uses failed: {licensed}"
        for kind in KINDS:
            assert licensed["passed"][kind], licensed
            # Refused by the agent, for the right reason, every time.
            assert set(unlicensed["refused"][kind]) == {"ENOKEY"}, unlicensed
        for stream in self.streams:
            assert not ask(stream)["broken"]


def _tries(numbers: dict[str, Any]) -> int:
    refused = sum(sum(names.values()) for names in numbers["refused"].values())
    return sum(numbers["passed"].values()) + refused
