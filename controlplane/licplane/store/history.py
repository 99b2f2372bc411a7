# SPDX-License-Identifier: Apache-2.0
"""Which history of a database a connection writes: a promoted standby begins another one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

HISTORY: Final = "history"
"""Where a connection of an engine has it, in its `info`."""


class Lineage(NamedTuple):
    """Which history of a database a server writes."""

    system: int
    """Of the cluster; a physical standby has its primary's."""
    timeline: int
    """From 1; a promotion takes the next one."""

    def is_behind(self, other: Lineage | None) -> bool:
        """Whether the same cluster has gone on without this one."""
        return other is not None and self.system == other.system and self.timeline < other.timeline


class Unnamed(NamedTuple):
    """A server that hides its timeline: which one of several it is, and not which one counts.

    A history goes on where another one began only with another postmaster (a standby's, or the
    same one's after a recovery), so what is remembered of one of them is true of it alone.
    """

    began: str
    """When its postmaster did: seconds since 1970, to the microsecond."""


History = Lineage | Unnamed | None
"""What a connection is to; None for SQLite, and what is not quite PostgreSQL."""


def history_of(info: Mapping[str, Any]) -> History:
    """The history that a connection of an engine writes, by the connection's `info`."""
    found = info.get(HISTORY)
    return found if isinstance(found, Lineage | Unnamed) else None
