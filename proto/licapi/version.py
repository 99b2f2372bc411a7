# SPDX-License-Identifier: Apache-2.0
"""Versions of the two sides, and which may talk to each other.

The control plane is upgraded first. A server of version X.Y serves agents of X.Y and X.(Y-1), of
any patch level: so a fleet can be upgraded host by host, and no agent meets a server that does
not know its messages. What an agent meets beyond that is refused with a reason, and goes on with
what it has.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Final

DISTRIBUTION: Final = "licagent"
UNKNOWN: Final = "0.0.0"
"""Of a source tree that was never installed."""
OLDER_MINORS: Final = 1
"""How many minor versions an agent may be behind its server."""
_FORM: Final = re.compile(r"(\d{1,6})\.(\d{1,6})(?:[.\-+~a-z].*)?", re.ASCII)


@dataclass(frozen=True, slots=True, order=True)
class Release:
    """The parts of a version that compatibility is about."""

    major: int
    minor: int

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}"

    @property
    def oldest_agent(self) -> Release:
        """The oldest agent that a server of this release serves."""
        return Release(self.major, max(0, self.minor - OLDER_MINORS))


@cache
def installed() -> str:
    """The version of what runs here."""
    try:
        return version(DISTRIBUTION)
    except PackageNotFoundError:
        return UNKNOWN


def release_of(text: str) -> Release | None:
    """Major and minor of a version such as 0.1.0; None for what is no version."""
    found = _FORM.fullmatch(text)
    return Release(int(found[1]), int(found[2])) if found else None


def why_not_served(agent: str, server: str) -> str:
    """Why a server refuses an agent of this version, for people; "" where it does not.

    An empty version is served: nothing is known against it. What an agent says of itself is
    believed: the rule keeps mistakes out, not enemies.
    """
    mine = release_of(server)
    if not agent or mine is None:
        return ""
    its = release_of(agent)
    if its is None:
        return "The agent's version cannot be read; install a released licagent"
    oldest = mine.oldest_agent
    if oldest <= its <= mine:
        return ""
    if its > mine:
        return (
            f"The agent is version {its}, newer than this control plane's {mine}: upgrade the"
            " control plane first, or put the agent of before back"
        )
    return (
        f"The agent is version {its}, and a control plane of {mine} serves {oldest} to {mine}:"
        " upgrade licagent on this host"
    )
