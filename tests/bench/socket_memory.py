# SPDX-License-Identifier: Apache-2.0
"""Kernel memory of a licensed socket's tag: allocations under the agent less those without it."""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tests.bench.places import CLIENT_UID, PORT, SERVER
from tests.bench.table import Row

if TYPE_CHECKING:
    from tests.bench.paired import Variant

_SOCKETS: Final = 15_000
_TRIALS: Final = 3
BOUND_BYTES: Final = 192 + 192
"""One object for the tag (64 + 8 + 120 bytes: struct bpf_local_storage_elem, cache-aligned data)
and one for the socket's list of storages (struct bpf_local_storage), which others may share."""

_HOLDER: Final = f"""
import socket, sys
kept = []
sys.stdin.readline()
for _ in range({_SOCKETS}):
    kept.append(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    kept[-1].connect(("{SERVER}", {PORT}))
print("held", flush=True)
sys.stdin.readline()
"""


def _slabs() -> int:
    """Bytes in use of the size class of tags, among allocations that count against a cgroup.

    Caches of their own hold the sockets themselves. Before 5.14 there are no classes apart.
    """
    used = {}
    for line in Path("/proc/slabinfo").read_text(encoding="ascii").splitlines()[2:]:
        name, objects = line.split()[:2]
        used[name] = int(objects) * 192
    return used.get("kmalloc-cg-192", used["kmalloc-192"])


def _grown(variant: Variant) -> int:
    """How much they grow while that many sockets are connected in `variant`."""
    user = ["setpriv", f"--reuid={CLIENT_UID}", "--clear-groups"]
    enter = 'echo $$ > "$CGROUP/cgroup.procs" && exec "$@"'
    python = [str(Path(sys.executable).resolve()), "-IS", "-c", _HOLDER]
    with subprocess.Popen(
        ["sh", "-c", enter, "sh", "nsenter", f"--net={variant.netns}", *user, *python],
        env={**os.environ, "CGROUP": str(variant.cgroup)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as holder:
        assert holder.stdin is not None
        assert holder.stdout is not None
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.prlimit(holder.pid, resource.RLIMIT_NOFILE, (most, most))
        before = _slabs()
        holder.stdin.write("\n")
        holder.stdin.flush()
        if holder.stdout.readline() != "held\n":
            raise RuntimeError(f"cannot hold {_SOCKETS} sockets in {variant.name}")
        grown = _slabs() - before
        holder.stdin.close()
    time.sleep(0.5)  # tags are freed a grace period after their sockets
    return grown


def row(bare: Variant, agent: Variant) -> Row:
    """The row; its bound is the two objects."""
    each = [(_grown(agent) - _grown(bare)) / _SOCKETS for _ in range(_TRIALS)]
    bytes_each = statistics.median(each)
    return Row(
        "kernel memory of a licensed socket's tag",
        f"{bytes_each:.0f} bytes",
        f"trials {', '.join(f'{value:.0f}' for value in each)}, {_SOCKETS:,} sockets",
        f"formula: {BOUND_BYTES} bytes, within 5 %",
        bytes_each <= BOUND_BYTES * 1.05,
        key="kernel-memory",
    )
