# SPDX-License-Identifier: Apache-2.0
"""ELF objects of BPF programs: opened, loaded and attached by libbpf."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Iterator
from ctypes import byref, c_char_p, c_size_t
from pathlib import Path
from typing import Final, Self

from licagent.kernel.libbpf import check, check_pointer, forget_log, library, pin_fd

_STATE_FREQ: Final = 1 << 3
"""BPF_F_TEST_STATE_FREQ, of BPF_PROG_LOAD (5.4, commit 10d274e880eb)."""


class _OpenOpts(ctypes.Structure):
    """struct bpf_object_open_opts up to the fields used here; libbpf takes shorter structs."""

    _fields_ = [
        ("sz", c_size_t),
        ("object_name", c_char_p),
        ("relaxed_maps", ctypes.c_bool),
        ("pin_root_path", c_char_p),
    ]


class BpfObject:
    """One opened ELF object. Maps marked for pinning are made or taken from `pin_root`."""

    def __init__(self, path: Path, pin_root: Path) -> None:
        opts = _OpenOpts()
        opts.sz = ctypes.sizeof(_OpenOpts)
        opts.pin_root_path = os.fsencode(pin_root)
        self.path = path
        forget_log()
        self._handle = check_pointer(
            library().bpf_object__open_file(os.fsencode(path), byref(opts)), f"open {path.name}"
        )

    def load(self) -> None:
        """Create maps and load programs."""
        check(library().bpf_object__load(self._handle), f"load {self.path.name}")

    def programs(self) -> Iterator[tuple[str, int]]:
        """(name, handle) of each program."""
        handle = None
        while handle := library().bpf_object__next_program(self._handle, handle):
            yield library().bpf_program__name(handle).decode(), handle

    def select(self, wanted: Callable[[str], bool]) -> None:
        """Load only the programs for which `wanted(name)` holds."""
        for name, handle in self.programs():
            check(
                library().bpf_program__set_autoload(handle, wanted(name)), f"select program {name}"
            )

    def keep_states(self) -> None:
        """Have the verifier remember each branching, not one in several.

        It takes more memory while it loads, and merges ways that it else follows to their end:
        a third of the steps, without which programs with an unrolled search are beyond the million
        that 5.10 allows.
        """
        for name, handle in self.programs():
            result = library().bpf_program__set_flags(handle, _STATE_FREQ)
            check(result, f"set flags of {name}")

    def program_fd(self, handle: int) -> int:
        """File descriptor of a loaded program; it lives as long as this object."""
        return check(library().bpf_program__fd(handle), "program fd")

    def attach(self, handle: int, pin: Path) -> None:
        """Attach a tracing program or iterator by its section name, and pin its link."""
        link = check_pointer(library().bpf_program__attach(handle), f"attach {pin.name}")
        try:
            pin_fd(library().bpf_link__fd(link), pin)
        finally:
            library().bpf_link__destroy(link)  # the pin keeps it attached

    def close(self) -> None:
        """Free what libbpf holds; pins stay."""
        if self._handle:
            library().bpf_object__close(self._handle)
            self._handle = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
