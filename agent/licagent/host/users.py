# SPDX-License-Identifier: Apache-2.0
"""User and group names, and their numbers.

Answers come from NSS (getpwnam(3)), which may ask a directory server: they are remembered for
`ttl_s`, so that describing a thousand sockets asks once a user.
"""

from __future__ import annotations

import grp
import pwd
import time
from collections.abc import Callable
from typing import Final

DEFAULT_TTL_S: Final = 60.0
_OWNER_MAX: Final = 0xFFFFFFFE  # (uid_t)-1 is no user
_CACHE_MAX: Final = 4096


class UnknownName(LookupError):
    """A user or group that this host does not know."""

    def __init__(self, kind: str, name: str) -> None:
        """`kind` is "user" or "group"."""
        super().__init__(
            f"this host knows no {kind} {name!r}: check the spelling with "
            f"`getent {'passwd' if kind == 'user' else 'group'} {name}`, or name the number instead"
        )
        self.kind = kind
        self.name = name


class Users:
    """Cached look-ups both ways. Not for several threads at once."""

    def __init__(
        self, ttl_s: float = DEFAULT_TTL_S, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Remember each answer, also "unknown", for `ttl_s` seconds."""
        self._ttl_s = ttl_s
        self._clock = clock
        self._cache: dict[tuple[str, str | int], tuple[float, int | str | None]] = {}

    def uid(self, name: str) -> int:
        """The uid of a user name; raises UnknownName."""
        found = self._cached("uid", name, lambda: pwd.getpwnam(name).pw_uid)
        if not isinstance(found, int):
            raise UnknownName("user", name)
        return found

    def gid(self, name: str) -> int:
        """The gid of a group name; raises UnknownName."""
        found = self._cached("gid", name, lambda: grp.getgrnam(name).gr_gid)
        if not isinstance(found, int):
            raise UnknownName("group", name)
        return found

    def user_name(self, uid: int) -> str | None:
        """The name of a uid, or None when it has none."""
        if not 0 <= uid <= _OWNER_MAX:
            return None
        found = self._cached("user", uid, lambda: pwd.getpwuid(uid).pw_name)
        return found if isinstance(found, str) else None

    def group_name(self, gid: int) -> str | None:
        """The name of a gid, or None when it has none."""
        if not 0 <= gid <= _OWNER_MAX:
            return None
        found = self._cached("group", gid, lambda: grp.getgrgid(gid).gr_name)
        return found if isinstance(found, str) else None

    def forget(self) -> None:
        """Drop all answers, at a reload for instance."""
        self._cache.clear()

    def _cached(self, space: str, key: str | int, ask: Callable[[], int | str]) -> int | str | None:
        now_s = self._clock()
        held = self._cache.get((space, key))
        if held is not None and now_s - held[0] < self._ttl_s:
            return held[1]
        answer: int | str | None
        try:
            answer = ask()
        except (KeyError, ValueError):  # ValueError: a NUL in the name
            answer = None
        if len(self._cache) >= _CACHE_MAX:
            self._cache.clear()
        self._cache[(space, key)] = (now_s, answer)
        return answer
