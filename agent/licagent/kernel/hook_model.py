# SPDX-License-Identifier: Apache-2.0
"""What a hook is: one program, its place in the kernel, and what it is for."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from licagent.kernel.libbpf import AttachType


class HookKind(StrEnum):
    """How a program is attached."""

    CGROUP = "cgroup"
    TRACING = "tracing"
    ITERATOR = "iterator"
    LSM = "lsm"
    """By the kernel's security hooks, where BPF is among its modules (lsm=... at boot)."""
    INTERFACE = "interface"
    """By one link for each network interface; the name is that of the pinned program."""


@dataclass(frozen=True, slots=True)
class Hook:
    """One program and its place in the kernel."""

    name: str  # also the name of its pinned link
    object: str  # bpf/<object>.bpf.c
    program: str
    kind: HookKind
    closes: str
    without: str
    kernel: str  # the first kernel that has all of it
    attach_type: AttachType | None = None
    required: bool = False
