# SPDX-License-Identifier: Apache-2.0
"""The C library's heap, kept as small as a daemon's can be that lives for months.

glibc gives each thread an arena of its own, and each keeps what it once had: four of them held
4 MiB of a daemon of 68. Python runs one thread at a time, so they save no waiting either. Where
the C library is another one (musl), nothing is to be done and nothing is done.
"""

from __future__ import annotations

import ctypes
from typing import Final

_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3
_M_ARENA_MAX: Final = -8
"""malloc.h; mallopt(3)."""
_TRIM_BYTES: Final = 128 * 1024
_MAP_BYTES: Final = 1024 * 1024
"""Larger blocks are mapped by themselves, and go back to the kernel when they are freed. Fixed:
glibc would raise it to the largest block that was ever freed, and keep such blocks."""


def keep_small() -> bool:
    """One arena, and its end goes back to the kernel when it is free. Before threads are made.

    Whether the C library took it.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    taken = (
        mallopt(_M_ARENA_MAX, 1),
        mallopt(_M_TRIM_THRESHOLD, _TRIM_BYTES),
        mallopt(_M_MMAP_THRESHOLD, _MAP_BYTES),
    )
    return taken == (1, 1, 1)


def give_back() -> None:
    """Let the kernel have what is free inside the heap: after a start, which needs the most."""
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError):
        return
    trim(ctypes.c_size_t(0))
