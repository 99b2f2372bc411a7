# SPDX-License-Identifier: Apache-2.0
"""The daemon, killed by SIGKILL at a place in its metering: `python dying_daemon.py PLACE COUNT`.

PLACE is FUNCTION:before or FUNCTION:after, COUNT which call of it.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from typing import Any

from licagent.daemon import main
from licagent.daemon.metering.spool import LedgerSpool
from licagent.domain.config_reader import read_config
from licagent.kernel.usage_meter import UsageMeter

PLACES: dict[str, tuple[type[Any], str]] = {
    "close": (UsageMeter, "close_sheet"),
    "commit": (LedgerSpool, "commit"),
    "discard": (UsageMeter, "discard"),
}


def arm(place: str, count: int) -> None:
    """Let the process kill itself at the COUNT-th call."""
    name, _, when = place.partition(":")
    owner, method = PLACES[name]
    original: Callable[..., Any] = getattr(owner, method)
    left = count

    def deadly(*arguments: Any) -> Any:
        nonlocal left
        left -= 1
        if left == 0 and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        result = original(*arguments)
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(owner, method, deadly)


if __name__ == "__main__":
    arm(sys.argv[1], int(sys.argv[2]))
    sys.exit(main.run(read_config(os.environ).config))
