# SPDX-License-Identifier: Apache-2.0
"""Waiting until no program that was running can still be looking at old table entries."""

from __future__ import annotations

import ctypes
import platform
import time
from typing import Final

_MEMBARRIER: Final = {"x86_64": 324, "aarch64": 283, "riscv64": 283, "ppc64le": 365, "s390x": 356}
_MEMBARRIER_CMD_GLOBAL: Final = 1
_FALLBACK_WAIT_S: Final = 1.0


def wait_for_readers() -> None:
    """Return when every BPF program that was running at the call has ended.

    Cgroup programs run inside rcu_read_lock, and membarrier(MEMBARRIER_CMD_GLOBAL) is
    synchronize_rcu (kernel/sched/membarrier.c). Where it is refused (nohz_full), one second
    stands in for it: programs run for microseconds.
    """
    number = _MEMBARRIER.get(platform.machine())
    if number is not None:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.syscall(number, _MEMBARRIER_CMD_GLOBAL, 0, 0) == 0:
            return
    time.sleep(_FALLBACK_WAIT_S)
