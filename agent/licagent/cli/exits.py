# SPDX-License-Identifier: Apache-2.0
"""Exit statuses of `licagent`: one per class of error, the same in every command."""

from __future__ import annotations

import os
import sys
from typing import Final

OK: Final = 0
INTERNAL: Final = 1
USAGE: Final = 2
NOT_RUNNING: Final = 3
UNKNOWN: Final = 4
PERMISSION: Final = 5
NOT_FOUND: Final = 6
REFUSED: Final = 7
BUSY: Final = 8
DETACHED: Final = 9
NOT_EXECUTABLE: Final = 126
NO_COMMAND: Final = 127
INTERRUPTED: Final = 130
NO_READER: Final = 141
DEGRADED: Final = 150
BREAK_GLASS: Final = 151

EXITS: Final[dict[int, str]] = {
    OK: "done; for status: enforcing or observing, and well",
    INTERNAL: "internal error",
    USAGE: "the command line is wrong",
    NOT_RUNNING: "the daemon is not running (the kernel goes on deciding)",
    UNKNOWN: "unknown: the daemon did not answer in time",
    PERMISSION: "not permitted",
    NOT_FOUND: "no such license, process or socket",
    REFUSED: "refused: bad policy, license, or settings; nothing was changed",
    BUSY: "busy: too many clients, or another agent holds the state",
    DETACHED: "daemon: `licagent detach` has ended it",
    NOT_EXECUTABLE: "run: the command cannot be executed",
    NO_COMMAND: "run: there is no such command",
    INTERRUPTED: "interrupted",
    NO_READER: "the reader of the output went away",
    DEGRADED: "status, doctor: degraded; usage verify: it does not hold; the reasons are listed",
    BREAK_GLASS: "status: the host is open by break-glass",
}
"""Status and meaning, as --help and the manual list them (0, 3 and 4 as LSB has them)."""

STATE_EXIT: Final = {
    "enforcing": OK,
    "observing": OK,
    "degraded": DEGRADED,
    "break-glass": BREAK_GLASS,
}
"""Exit status of `licagent status` by the daemon's state; a state not listed is UNKNOWN."""


def abandon_output() -> int:
    """End as SIGPIPE would have ended us, without a word, when a pipe's reader left (`| head`)."""
    # Python flushes standard output once more at exit; that must find somebody who takes it.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return NO_READER
