# SPDX-License-Identifier: Apache-2.0
"""Links: attached beside whatever others have attached, pinned, and replaced without a gap."""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path

from licagent.kernel import bpf_info, libbpf
from licagent.kernel.bpf_object import BpfObject
from licagent.kernel.hook_model import Hook
from licagent.kernel.libbpf import BpfError


def cgroup_id(path: Path) -> int:
    """Id of a cgroup v2 folder: its inode number (kernfs, since 5.5)."""
    return path.stat().st_ino


def attach_cgroup(hook: Hook, program_fd: int, cgroup: Path, pin: Path) -> None:
    """Attach a cgroup program, or replace the program of the pinned link in one step.

    A link whose cgroup is gone answers ENOLINK (bpf_cgroup link_update) and is made anew; so is
    one that was attached to another cgroup.
    """
    if hook.attach_type is None:
        raise ValueError(f"{hook.name} is not a cgroup program")
    if pin.exists():
        link = libbpf.open_pin(pin)
        try:
            if bpf_info.link_info(link).cgroup_id == cgroup_id(cgroup):
                try:
                    libbpf.update_link(link, program_fd)
                    return
                except BpfError as error:
                    if error.errno != errno.ENOLINK:
                        raise
        finally:
            os.close(link)
    fresh = pin.with_name(pin.name + "__new")  # no dots: bpffs reserves them
    fresh.unlink(missing_ok=True)
    cgroup_fd = os.open(cgroup, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        link = libbpf.link_cgroup(program_fd, cgroup_fd, hook.attach_type)
        try:
            libbpf.pin_fd(link, fresh)
        finally:
            os.close(link)
    finally:
        os.close(cgroup_fd)
    # The new one is attached before the old one goes.
    _take_place(fresh, pin)


def attach_tracing(obj: BpfObject, handle: int, pin: Path, *, alone: bool = False) -> None:
    """Attach a tracing program or iterator; the new link is there before the old one goes.

    Tracing links cannot change their program (no update_prog), so for a moment both run; what
    they write is the same. `alone` is for programs that add up: the old one goes first, because
    a moment that is not counted is better than one that is billed twice.
    """
    if alone:
        pin.unlink(missing_ok=True)
    fresh = pin.with_name(pin.name + "__new")  # no dots: bpffs reserves them
    fresh.unlink(missing_ok=True)
    obj.attach(handle, fresh)
    _take_place(fresh, pin)


def pin_program(program_fd: int, pin: Path) -> None:
    """Pin a program in the place of an earlier one."""
    fresh = pin.with_name(pin.name + "__new")  # no dots: bpffs reserves them
    fresh.unlink(missing_ok=True)
    libbpf.pin_fd(program_fd, fresh)
    _take_place(fresh, pin)


def _take_place(fresh: Path, pin: Path) -> None:
    # bpffs renames onto an existing name since it has simple_rename; fall back to unlink first.
    try:
        fresh.rename(pin)
    except FileNotFoundError:
        raise  # the new one is gone: what is at work stays
    except OSError:
        with contextlib.suppress(FileNotFoundError):
            pin.unlink()
        fresh.rename(pin)


def link_is_live(pin: Path, cgroup: int | None) -> bool:
    """Whether a pinned link is there and, for cgroup links, on the given cgroup."""
    if not pin.exists():
        return False
    try:
        link = libbpf.open_pin(pin)
    except BpfError:
        return False
    try:
        info = bpf_info.link_info(link)
    except BpfError:
        return False
    finally:
        os.close(link)
    return cgroup is None or info.cgroup_id == cgroup
