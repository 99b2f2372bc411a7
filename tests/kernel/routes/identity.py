# SPDX-License-Identifier: Apache-2.0
"""Routes by becoming somebody else: cgroup, network namespace, user, executable, child."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path
from typing import Final

from tests.kernel.routes import calls
from tests.kernel.routes.base import Context
from tests.kernel.routes.registry import pair, route

NOBODY: Final = 65534


@route("tcp4", needs=("other",))
def move_before_connect4(context: Context) -> None:
    """A socket is made, the process moves to a sibling cgroup, then it connects."""
    with context.tcp() as sock:
        context.wait("move", to="other")
        context.connect(sock)
        context.exchange(sock)


@route("udp4", needs=("other",))
def move_before_sendto4(context: Context) -> None:
    """A UDP socket is made, the process moves to a sibling cgroup, then it sends."""
    with context.udp() as sock:
        context.wait("move", to="other")
        with context.at("send"):
            sock.sendto(context.token, context.target)
        context.echo(sock)


@pair("tcp", needs=("child",))
def move_child(context: Context, family: int) -> None:
    """The process moves to a child cgroup of its own, then makes a socket and connects."""
    context.wait("move", to="child")
    with context.tcp(family) as sock:
        context.connect(sock)
        context.exchange(sock)


@route("tcp4", needs=("child",))
def move_child_after_socket4(context: Context) -> None:
    """A socket is made, the process moves to a child cgroup of its own, then it connects."""
    with context.tcp() as sock:
        context.wait("move", to="child")
        context.connect(sock)
        context.exchange(sock)


@route("udp4", needs=("child",))
def move_child_sendto4(context: Context) -> None:
    """The process moves to a child cgroup of its own and sends a datagram."""
    context.wait("move", to="child")
    with context.udp() as sock:
        with context.at("send"):
            sock.sendto(context.token, context.target)
        context.echo(sock)


@route("tcp4", needs=("outside",))
def move_outside_after_socket4(context: Context) -> None:
    """A socket is made, the process leaves the tree; the hooks follow the socket's cgroup."""
    with context.tcp() as sock:
        context.wait("move", to="outside")
        context.connect(sock)
        context.exchange(sock)


@pair("tcp")
def netns_new(context: Context, family: int) -> None:
    """unshare(CLONE_NEWNET), then connect to a server inside the new namespace."""
    with context.at("setup"):
        calls.new_network_namespace()
    context.port = int(context.wait("netns", pid=os.getpid())["port"])
    with context.tcp(family) as sock:
        context.connect(sock)
        context.exchange(sock)


@pair("udp")
def netns_new_udp(context: Context, family: int) -> None:
    """unshare(CLONE_NEWNET), then sendto(2) a server inside the new namespace."""
    with context.at("setup"):
        calls.new_network_namespace()
    context.port = int(context.wait("netns", pid=os.getpid())["port"])
    with context.udp(family) as sock:
        with context.at("send"):
            sock.sendto(context.token, context.target)
        context.echo(sock)


@route("tcp4")
def netns_kept_socket4(context: Context) -> None:
    """A socket is made, then unshare(CLONE_NEWNET): the socket stays in the old namespace."""
    with context.tcp() as sock:
        with context.at("setup"):
            calls.new_network_namespace()
        context.connect(sock)
        context.exchange(sock)


@route("tcp4", network="veth")
def netns_veth4(context: Context) -> None:
    """From one network namespace to a server in another, over a veth pair."""
    with context.tcp() as sock:
        context.connect(sock)
        context.exchange(sock)


def _become(context: Context) -> None:
    user = int(context.options.get("become", str(NOBODY)))
    with context.at("setuid"):
        os.setgroups([])
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)


@route("tcp4")
def setuid_before4(context: Context) -> None:
    """setuid(2), then make a socket and connect."""
    _become(context)
    with context.tcp() as sock:
        context.connect(sock)
        context.exchange(sock)


@route("tcp4")
def setuid_after4(context: Context) -> None:
    """A socket is made, then setuid(2), then it connects."""
    with context.tcp() as sock:
        _become(context)
        context.connect(sock)
        context.exchange(sock)


@route("udp4")
def setuid_after_udp4(context: Context) -> None:
    """A UDP socket is made, then setuid(2), then it sends."""
    with context.udp() as sock:
        _become(context)
        with context.at("send"):
            sock.sendto(context.token, context.target)
        context.echo(sock)


def use_inherited(context: Context) -> None:
    """Helper: what runs after the exec; the socket's descriptor is in the options."""
    with socket.socket(fileno=int(context.options["fd"])) as sock:
        sock.settimeout(context.patience_s)
        if context.options["connected"] == "0":
            context.connect(sock)
        context.exchange(sock)


def _exec(context: Context, sock: socket.socket, *, connected: bool) -> None:
    """Replace this program; `executable` names another Python to run in its place."""
    sock.set_inheritable(True)
    python = context.options.get("executable", sys.executable)
    arguments = [python, "-m", "tests.kernel.routes.run", "use_inherited"]
    arguments += [context.address, str(context.port), "--token", context.token.decode()]
    arguments += ["--patience", str(context.patience_s)]
    arguments += ["--option", f"fd={sock.fileno()}", "--option", f"connected={int(connected)}"]
    with context.at("exec"):
        if not Path(python).exists():
            raise FileNotFoundError(python)
        os.execv(python, arguments)


@route("tcp4")
def exec_made4(context: Context) -> None:
    """A socket is made, inherited over exec, and connected by the new program."""
    _exec(context, context.tcp(), connected=False)


@route("tcp4")
def exec_connected4(context: Context) -> None:
    """A socket is made and connected, inherited over exec, and used by the new program."""
    sock = context.tcp()
    context.connect(sock)
    _exec(context, sock, connected=True)


def in_child(context: Context, action: str, sock: socket.socket | None = None) -> None:
    """Fork; the child connects (or only sends), and its errno is this program's."""
    child = os.fork()
    if child == 0:
        code = 0
        try:
            own = sock or context.tcp()
            if action == "connect":
                context.connect(own)
            context.exchange(own)
        except OSError as error:
            code = error.errno or 255
        os._exit(code)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    if code:
        context.stage = "child"
        raise OSError(code, os.strerror(code))


@route("tcp4")
def fork_child4(context: Context) -> None:
    """fork(2): the child makes a socket and connects."""
    in_child(context, "connect")


@route("tcp4")
def fork_made4(context: Context) -> None:
    """A socket is made, then fork(2): the child connects."""
    with context.tcp() as sock:
        in_child(context, "connect", sock)


@route("tcp4")
def fork_connected4(context: Context) -> None:
    """A socket is made and connected, then fork(2): the child sends."""
    with context.tcp() as sock:
        context.connect(sock)
        in_child(context, "send", sock)
