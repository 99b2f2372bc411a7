# SPDX-License-Identifier: Apache-2.0
"""The daemon on a disk that is unwell as soon as the daemon is detached: it hangs, or fails.

``python -m tests.kernel.harness.hanging_end``, with the folder of the pins in PINS, and in HOW
"hangs" or "fails".
"""

from __future__ import annotations

import errno
import os
import sys
import threading
from pathlib import Path

from licagent.daemon import ending, main

_PINS = Path(os.environ.pop("LICAGENT_TEST_PINS"), "links")
_HOW = os.environ.pop("LICAGENT_TEST_HOW")
if _HOW == "hangs":  # a disk that fails is left by itself, however long that takes
    ending.bound.__defaults__ = (3.0,)  # type: ignore[attr-defined]
    ending._TOLD_S = 20.0  # type: ignore[misc]
_were_there = threading.Event()
_sync = os.fdatasync


def _unwell(fd: int) -> None:
    if _PINS.is_dir() and any(_PINS.iterdir()):
        _were_there.set()
    elif _were_there.is_set():
        if _HOW == "hangs":
            threading.Event().wait()
        raise OSError(errno.EIO, os.strerror(errno.EIO))
    _sync(fd)


os.fdatasync = os.fsync = _unwell  # type: ignore[assignment]

if __name__ == "__main__":
    sys.exit(main.start())
