# SPDX-License-Identifier: Apache-2.0
"""Gives memory back to the kernel after many hosts came at once.

A TLS handshake takes much more memory than the connection does afterwards. glibc keeps what was
freed, in pieces, in arenas of many threads; thousands of idle streams would pay for it forever.
"""

from __future__ import annotations

import ctypes
from typing import Final

_ARENAS_MAX: Final = 2
_M_ARENA_MAX: Final = -8  # mallopt(3)


def limit_arenas() -> None:
    """Few arenas for all threads of this process; other C libraries than glibc have none."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, _ARENAS_MAX)


def trim() -> None:
    """Return free pages. Takes milliseconds; call it on a thread."""
    malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if malloc_trim is not None:
        malloc_trim(0)
