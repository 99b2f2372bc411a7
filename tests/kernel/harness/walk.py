# SPDX-License-Identifier: Apache-2.0
"""Walk a route: start its program, do what it asks for, and look at what the server got."""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from tests.kernel.harness import cgroups, namespaces, probe, programs, recorder
from tests.kernel.routes import addresses
from tests.kernel.routes.base import PATIENCE_S, SILENCE_S
from tests.kernel.routes.opened import second
from tests.kernel.routes.registry import Network, Route

EPHEMERAL_PORTS: Final = "32768-60999"
"""The kernel's default net.ipv4.ip_local_port_range."""

_PATH_LIMIT_S: Final = 20.0
_CALLERS_SILENCE_S: Final = SILENCE_S + 0.2
"""The caller outwaits the program: what that answers at its last moment is heard."""
_TOKENS: Final = itertools.count(1)


@dataclass(frozen=True, slots=True)
class Surroundings:
    """The cgroups that a route may need beside its own."""

    holder: Path
    """Where a helper runs that hands over a socket, or listens already."""
    other: Path
    """Where a process moves that changes sides."""
    outside: Path
    """A cgroup that no test enforces."""


@dataclass(frozen=True, slots=True)
class Target:
    """Where a route goes in one run."""

    port: int
    decoy_port: int
    ports: str
    """What a policy names: the port, or the ephemeral range."""


@dataclass(frozen=True, slots=True)
class Walk:
    """How it went: the program's word, and the evidence."""

    outcome: str
    errno: str | None
    stage: str
    message: str
    details: Mapping[str, object]
    arrived: bool
    """The server (or, for direction "in", the caller) got the token."""
    second_arrived: bool = False
    """The same for what was sent after "midway"."""
    kinds: frozenset[str] = field(default=frozenset())


class World:
    """The servers of all networks, started when first used."""

    def __init__(self) -> None:
        self._stack = contextlib.ExitStack()
        self._servers: dict[Network, tuple[recorder.Recorder, namespaces.Netns | None]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    def server(self, network: Network) -> tuple[recorder.Recorder, namespaces.Netns | None]:
        """The recorder of a network and the namespace of its clients (None: the machine's)."""
        if network not in self._servers:
            self._servers[network] = self._start(network)
        return self._servers[network]

    def _start(self, network: Network) -> tuple[recorder.Recorder, namespaces.Netns | None]:
        keep = self._stack.enter_context
        local = (*addresses.LOOPBACKS4, *addresses.LOOPBACKS6)
        if network == "host":
            return keep(recorder.Recorder(local)), None
        if network == "fresh":
            space = keep(namespaces.fresh()).inhabit()
            return keep(recorder.Recorder((*local, addresses.FRESH4), space)), space
        client, server = (keep(end).inhabit() for end in namespaces.veth_pair())
        hosts = (addresses.SERVER4, addresses.SERVER6)
        made = keep(recorder.Recorder(hosts, server))
        for host in hosts:
            client.run(functools.partial(_await_path, host, made.port))
        return made, client

    def target(self, route: Route) -> Target:
        """Ports for one run of a route; a service gets a port of its own each time."""
        server, _ = self.server(route.network)
        if route.direction == "in":
            port = recorder.free_port()
            chosen_by_kernel = any(
                word in route.name for word in ("ephemeral", "no_port", "no_bind", "autobind")
            )
            ports = EPHEMERAL_PORTS if chosen_by_kernel else str(port)
            return Target(port, server.decoy_port, ports)
        port = server.port_of(route.evidence)
        return Target(port, server.decoy_port, str(port))


def walk(
    route: Route,
    world: World,
    cgroup: Path,
    surroundings: Surroundings,
    target: Target,
    *,
    uid: int | None = None,
    options: Mapping[str, str] | None = None,
    python: tuple[str, ...] = programs.PYTHON,
    on: Mapping[str, Callable[[], None]] | None = None,
    answers: int = 2,
) -> Walk:
    """Run a route's program in `cgroup`.

    `on` names what to do at "midway" and at "bound"; `python` another interpreter to run it.
    `answers` is the rounds in which the target is expected to answer: a silence is waited for
    shortly, an answer long. What arrived is judged alike.
    """
    server, namespace = world.server(route.network)
    token = f"route-{os.getpid()}-{next(_TOKENS)}-{route.name}"
    helper = _Helper(route, token.encode(), cgroup, surroundings, target, dict(on or {}), answers)
    argv = [*python, *_arguments(route.name, route.address, target.port)]
    argv += ["--token", token, "--decoy-port", str(target.decoy_port)]
    argv += ["--patience", str(helper.patience_s(0))]
    if uid is not None:
        argv += ["--uid", str(uid)]
    for key, value in (options or {}).items():
        argv += ["--option", f"{key}={value}"]
    with helper, programs.start(cgroup, argv, namespace=namespace) as program:
        helper.program = program
        report = program.converse(helper.handle)
        if route.direction == "in":
            answered = frozenset({route.evidence})
            kinds = answered if helper.echoes[:1] == [True] else frozenset[str]()
            later = answered if helper.echoes[1:] == [True] else frozenset[str]()
        else:
            server = helper.inner or server
            kinds = server.kinds_that_got(token.encode())
            later = server.kinds_that_got(second(token.encode()))
    return Walk(
        outcome=report["outcome"],
        errno=report["errno"],
        stage=report["stage"],
        message=report["message"],
        details=report["details"],
        arrived=bool(kinds),
        second_arrived=bool(later),
        kinds=kinds,
    )


def _await_path(host: str, port: int) -> None:
    """Wait until a new link carries packets: addresses and neighbours take a moment."""
    limit = time.monotonic() + _PATH_LIMIT_S
    while True:
        try:
            with socket.create_connection((host, port), timeout=0.2):
                return
        except OSError:
            if time.monotonic() > limit:
                raise
            time.sleep(0.01)


def _arguments(name: str, address: str, port: int) -> list[str]:
    return ["-m", "tests.kernel.routes.run", name, address, str(port)]


@dataclass(slots=True)
class _Helper:
    """Does what a program asks for while it runs."""

    route: Route
    token: bytes
    cgroup: Path
    surroundings: Surroundings
    target: Target
    on: dict[str, Callable[[], None]]
    answers: int
    program: programs.Program | None = None
    inner: recorder.Recorder | None = None
    caller: probe.Caller | None = None
    echoes: list[bool] = field(default_factory=list)
    """One for each round of a program that offers a port."""
    stack: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stack.close()

    def patience_s(self, number: int) -> float:
        """How long the program waits for the target in that round (of 0 and 1)."""
        return PATIENCE_S if number < self.answers else SILENCE_S

    def handle(self, line: dict[str, Any]) -> Mapping[str, object] | None:
        what = line.get("wait") or line["tell"]
        if what in {"midway", "bound"}:
            self.on.get(what, lambda: None)()
            return {"patience_s": self.patience_s(1)} if what == "midway" else None
        handlers: dict[str, programs.Handler] = {
            "move": self._move,
            "holder": self._holder,
            "listener": self._listener,
            "netns": self._netns,
            "serve": self._serve,
            "again": self._again,
        }
        return handlers[what](line)

    def _move(self, line: dict[str, Any]) -> None:
        assert self.program is not None
        places = {"other": self.surroundings.other, "outside": self.surroundings.outside}
        place = places.get(line["to"])
        if place is None:
            tree = self.stack.enter_context(cgroups.CgroupTree(self.cgroup, "child"))
            place = tree.root
        cgroups.move(self.program.pid, place)

    def _hold(self, address: str, options: Mapping[str, object]) -> Mapping[str, object]:
        argv = [*programs.PYTHON, *_arguments("hold", address, self.target.port)]
        for key, value in options.items():
            argv += ["--option", f"{key}={value}"]
        holder = self.stack.enter_context(programs.start(self.surroundings.holder, argv))
        line = holder.line()
        assert line is not None, "the holder ended without a word"
        assert line.get("tell") == "held", f"the holder could not get its socket: {line}"
        return line

    def _holder(self, line: dict[str, Any]) -> Mapping[str, object]:
        options = {
            "kind": line["kind"],
            "via": line["via"],
            "connected": int(line["connected"]),
        }
        return self._hold(self.route.address, options)

    def _listener(self, line: dict[str, Any]) -> Mapping[str, object]:
        return self._hold(self.route.address, {"kind": "tcp", "listening": 1})

    def _netns(self, line: dict[str, Any]) -> Mapping[str, object]:
        hosts = ("127.0.0.1", "::1")
        with namespaces.Netns.of(int(line["pid"])) as space:
            # the ports that a policy names already: the outer server's
            self.inner = self.stack.enter_context(
                recorder.Recorder(hosts, space, ports=(self.target.port, self.target.decoy_port))
            )
        return {"port": self.inner.port}

    def _serve(self, line: dict[str, Any]) -> None:
        caller = probe.Caller(str(line["kind"]), int(line["port"]), int(line["calls"]))
        self.stack.enter_context(caller)
        self.caller = caller
        self._again(line)

    def _again(self, _line: dict[str, Any]) -> None:
        assert self.caller is not None
        number = len(self.echoes)
        limit_s = PATIENCE_S if number < self.answers else _CALLERS_SILENCE_S
        self.echoes.append(self.caller.call(second(self.token) if number else self.token, limit_s))
