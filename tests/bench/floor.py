# SPDX-License-Identifier: Apache-2.0
"""Programs that decide nothing, on the very hooks the agent uses: the kernel's own price."""

from __future__ import annotations

import contextlib
import os
import platform
import subprocess
from pathlib import Path
from typing import Final

from licagent.kernel import libbpf
from licagent.kernel.bpf_object import BpfObject
from licagent.kernel.hooks import HOOKS

SOURCE: Final = Path(__file__).parent / "floor" / "floor.bpf.c"

KINDS: Final = {"floor": (), "tag": ("-DTAG",)}
"""Variant -> flags: `floor` returns at once; `tag` also keeps 120 bytes with each socket."""


def attach(kind: str, cgroup: Path, folder: Path) -> contextlib.ExitStack:
    """Compile, load and attach to `cgroup`; closing the result detaches.

    Raises:
        RuntimeError: the kernel or the compiler refuses, or a hook of the agent has no program.
    """
    target = folder / f"{kind}.bpf.o"
    command = ["clang", "-g", "-O2", "-Wall", "-Werror", "-target", "bpf", "-mcpu=v3"]
    command += [f"-I/usr/include/{platform.machine()}-linux-gnu", *KINDS[kind]]
    done = subprocess.run(
        [*command, "-c", str(SOURCE), "-o", str(target)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"clang does not compile {SOURCE.name}: {done.stderr[-400:]}")
    wanted = {hook.name: hook.attach_type for hook in HOOKS if hook.attach_type is not None}
    with contextlib.ExitStack() as undo:
        opened = undo.enter_context(BpfObject(target, folder))
        opened.load()
        cgroup_fd = os.open(cgroup, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        undo.callback(os.close, cgroup_fd)
        for name, handle in opened.programs():
            link = libbpf.link_cgroup(opened.program_fd(handle), cgroup_fd, wanted.pop(name))
            undo.callback(os.close, link)
        if wanted:
            raise RuntimeError(f"floor.bpf.c has no program for {', '.join(wanted)}")
        return undo.pop_all()
