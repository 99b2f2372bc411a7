# SPDX-License-Identifier: Apache-2.0
"""The end of the daemon's process, which waits for no disk and no thread for ever.

A disk that hangs blocks whichever thread asks it, and Python joins the threads of its pools before
it ends. The service manager would end such a process by SIGKILL, and start the daemon again: also
one that `licagent detach` has ended, as only its exit status says so.
"""

from __future__ import annotations

import contextlib
import faulthandler
import logging
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Final

_log: Final = logging.getLogger(__name__)

WITHIN_S: Final = 20.0
"""Less than TimeoutStopSec= of licagent.service; more than metering takes for its last commit."""
_TOLD_S: Final = 2.0


def bound(status: Callable[[], int], within_s: float = WITHIN_S) -> None:
    """Let this process end within `within_s` seconds from now, or end it then with `status()`.

    What is not closed by then is as after a crash: the next daemon takes it up, and the kernel goes
    on as it was left.
    """
    threading.Thread(target=_end, args=(status, within_s), name="end", daemon=True).start()


def _end(status: Callable[[], int], within_s: float) -> None:
    time.sleep(within_s)
    # On a thread of its own: what it is told to may hang as well.
    told = threading.Thread(target=_tell, args=(within_s,), name="end's log", daemon=True)
    told.start()
    told.join(_TOLD_S)
    os._exit(status())


def _tell(within_s: float) -> None:
    _log.error("not everything could be closed in %.0f s: leaving it as it is", within_s)
    with contextlib.suppress(OSError, ValueError, AttributeError):  # no standard error
        faulthandler.dump_traceback(all_threads=True)
        sys.stdout.flush()
        sys.stderr.flush()
