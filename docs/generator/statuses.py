# SPDX-License-Identifier: Apache-2.0
"""docs/reference/exit-status.md: what `licagent` and `licplane` end with, from the code."""

from __future__ import annotations

from generator.pages import page, table
from generator.programs import LICAGENT, LICPLANE
from licagent.cli.exits import STATE_EXIT


def statuses() -> str:
    """The page."""
    every = sorted({*LICAGENT.exits, *LICPLANE.exits})
    return page(
        "Exit statuses",
        "One status for each class of error, the same in every command of a program, and where "
        "both programs have it, the same class. 0, 3 and 4 are those of LSB's init scripts, 126, "
        "127, 130 and 141 a shell's, 150 and up licagent's own. With `--json` an error is an "
        "object too, with a `code` that is finer than the status.",
        table(
            ("status", "`licagent`", "`licplane`"),
            (
                (status, LICAGENT.exits.get(status, "-"), LICPLANE.exits.get(status, "-"))
                for status in every
            ),
        ),
        "## `licagent status`",
        "The status of `licagent status` is the daemon's state, so that a monitor needs to read "
        "nothing:",
        table(
            ("state", "status"),
            (
                *((f"`{state}`", status) for state, status in STATE_EXIT.items()),
                ("no daemon answers", 3),
                ("the daemon does not answer in time", 4),
            ),
        ),
        "The status of `licagent run` is that of the command it runs, or 126 and 127 as in a "
        "shell.",
        "```sh\nlicagent status >/dev/null\ncase $? in\n    0) ;;\n"
        '    150) echo "degraded: licagent doctor says why" ;;\n'
        '    151) echo "open by break-glass" ;;\n'
        '    *) echo "not running or not answering" ;;\nesac\n```',
    )
