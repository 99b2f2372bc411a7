# SPDX-License-Identifier: Apache-2.0
"""Who is at the other end of a UNIX socket, as the kernel says (SO_PEERCRED).

The credentials are those of connect(2), fixed there: a later setuid or a passed descriptor
changes nothing.
"""

from __future__ import annotations

import grp
import socket
import struct
from dataclasses import dataclass
from typing import Final

READERS_GROUP: Final = "licagent"
"""Group whose members may read without being root."""

_SO_PEERGROUPS: Final = 59  # asm-generic/socket.h, Linux 4.13; Python has no name for it
_UCRED: Final = struct.Struct("iII")
_MAX_GROUPS_BYTES: Final = 1024  # the most socket.getsockopt takes: 256 groups


@dataclass(frozen=True, slots=True)
class Peer:
    """Credentials of a connected process."""

    pid: int
    uid: int
    gid: int
    groups: frozenset[int]

    def may_write(self) -> bool:
        """Changes are root's."""
        return self.uid == 0

    def may_read(self, readers_gid: int | None) -> bool:
        """Root, and members of the readers' group (None: the host has no such group)."""
        if self.uid == 0:
            return True
        return readers_gid is not None and (self.gid == readers_gid or readers_gid in self.groups)


def peer_of(connection: socket.socket) -> Peer:
    """The peer of `connection`. OSError if it is no connected UNIX socket.

    A peer with more than 256 supplementary groups is known by its primary group only.
    """
    pid, uid, gid = _UCRED.unpack(
        connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    )
    try:
        raw = connection.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, _MAX_GROUPS_BYTES)
    except OSError:
        raw = b""
    count = len(raw) // 4
    return Peer(pid, uid, gid, frozenset(struct.unpack(f"{count}I", raw[: count * 4])))


def readers_gid(name: str = READERS_GROUP) -> int | None:
    """The gid of the readers' group, None where the host has none."""
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        return None
