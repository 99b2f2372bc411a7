# SPDX-License-Identifier: Apache-2.0
"""Sockets over all network namespaces of the host: listing them, and ending some.

Run through `licagent.host.isolated` where the memory of pyroute2 must not stay.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from licagent.domain.tables import Protocol
from licagent.host import sockets
from licagent.host.namespaces import NamespaceError, network_namespaces, run_inside
from licagent.host.sockets import PROTOCOLS, Holder, Socket


@dataclass(frozen=True, slots=True)
class PlacedSocket:
    """A socket, the namespace it is in, and the processes that have it open."""

    socket: Socket
    namespace: int  # inode of its network namespace
    holders: tuple[Holder, ...]


@dataclass(frozen=True, slots=True)
class Swept:
    """What came of ending sockets."""

    ended: frozenset[int]  # cookies
    gone: frozenset[int]  # not found in any namespace: closed meanwhile
    failed: tuple[tuple[int, str], ...]  # cookie and why; the kernel drops their packets still


def list_everywhere(protocols: Iterable[Protocol] = PROTOCOLS) -> tuple[PlacedSocket, ...]:
    """The sockets of all network namespaces that can be entered."""
    wanted = tuple(protocols)
    found: list[tuple[int, Socket]] = []
    with network_namespaces() as namespaces:
        for namespace in namespaces:
            try:
                listed = run_inside(namespace.fd, lambda: sockets.list_sockets(wanted))
            except NamespaceError:
                continue
            found.extend((namespace.inode, socket) for socket in listed)
    held = sockets.holders(socket.inode for _, socket in found)
    return tuple(
        PlacedSocket(socket, namespace, held.get(socket.inode, ())) for namespace, socket in found
    )


def destroy_everywhere(cookies: Iterable[int], protocols: Iterable[Protocol] = PROTOCOLS) -> Swept:
    """End the sockets with these cookies, in whichever network namespace they are.

    Cookies count over the whole host since 5.10 (commit 92acdc58ab11), and by namespace before
    that: on such a kernel a cookie may name one socket in each namespace, and all are ended.
    """
    wanted = frozenset(cookies)
    kinds = tuple(protocols)
    ended: set[int] = set()
    failed: dict[int, str] = {}

    def sweep_here() -> None:
        for socket in sockets.list_sockets(kinds):
            if socket.cookie not in wanted:
                continue
            try:
                if sockets.destroy(socket):
                    ended.add(socket.cookie)
            except OSError as error:
                failed[socket.cookie] = str(error)

    with network_namespaces() as namespaces:
        for namespace in namespaces:
            try:
                run_inside(namespace.fd, sweep_here)
            except NamespaceError:
                continue
    unfinished = {cookie: why for cookie, why in failed.items() if cookie not in ended}
    return Swept(
        ended=frozenset(ended),
        gone=wanted - ended - frozenset(unfinished),
        failed=tuple(sorted(unfinished.items())),
    )
