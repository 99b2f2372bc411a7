# SPDX-License-Identifier: Apache-2.0
"""The state of the host itself: kernel, boot, clock, secure boot, names."""

from __future__ import annotations

import ctypes
import os
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_SECURE_BOOT = "SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c"
_STA_UNSYNC: Final = 0x0040  # include/uapi/linux/timex.h
_TIME_ERROR: Final = 5


@dataclass(frozen=True, slots=True)
class ClockSync:
    """What the kernel knows of the wall clock's quality (adjtimex(2))."""

    synchronised: bool
    max_error_us: int
    estimated_error_us: int


@dataclass(frozen=True, slots=True)
class Posture:
    """The host at one moment; None means that the host does not say."""

    hostname: str
    machine_id: str | None
    kernel_release: str
    boot_id: str
    boottime_ns: int
    clock: ClockSync | None
    secure_boot: bool | None
    lockdown: str | None  # none, integrity or confidentiality
    lsm: tuple[str, ...]


def boot_id() -> str:
    """The random id of this boot (random(4))."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def boottime_ns() -> int:
    """CLOCK_BOOTTIME in ns: monotonic, and counts suspend."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def kernel_release() -> str:
    """Such as 6.1.0-18-amd64."""
    return os.uname().release


def kernel_version(release: str | None = None) -> tuple[int, int]:
    """Major and minor of a kernel release, for what only some kernels can do."""
    text = kernel_release() if release is None else release
    major, _, rest = text.partition(".")
    digits = ""
    for character in rest:
        if not character.isdigit():
            break
        digits += character
    return int(major), int(digits or 0)


class _Timex(ctypes.Structure):
    # struct timex of adjtimex(2); the kernel fills it all, so the tail must be there.
    _fields_ = (
        ("modes", ctypes.c_uint),
        ("offset", ctypes.c_long),
        ("freq", ctypes.c_long),
        ("maxerror", ctypes.c_long),
        ("esterror", ctypes.c_long),
        ("status", ctypes.c_int),
        ("rest", ctypes.c_byte * 256),
    )


def clock_sync() -> ClockSync | None:
    """Whether an NTP client disciplines the clock; None where the kernel refuses to say."""
    timex = _Timex()
    state = ctypes.CDLL(None, use_errno=True).adjtimex(ctypes.byref(timex))
    if state < 0:
        return None
    return ClockSync(
        synchronised=state != _TIME_ERROR and not timex.status & _STA_UNSYNC,
        max_error_us=timex.maxerror,
        estimated_error_us=timex.esterror,
    )


def secure_boot(efivars: Path = Path("/sys/firmware/efi/efivars")) -> bool | None:
    """Whether the firmware verified the boot chain; None without EFI variables."""
    try:
        content = (efivars / _SECURE_BOOT).read_bytes()
    except OSError:
        return None
    # Four bytes of attributes, then the value (efivarfs documentation).
    return content[4] == 1 if len(content) == 5 else None


def lockdown(path: Path = Path("/sys/kernel/security/lockdown")) -> str | None:
    """The kernel lockdown mode: the word in brackets."""
    text = _read(path)
    if text is None or "[" not in text:
        return None
    return text.partition("[")[2].partition("]")[0] or None


def machine_id(path: Path = Path("/etc/machine-id")) -> str | None:
    """32 hex digits that name this installation, or None where it has none yet."""
    text = _read(path)
    if text is None or len(text) != 32 or not set(text) <= set("0123456789abcdef"):
        return None
    return text


def security_modules(path: Path = Path("/sys/kernel/security/lsm")) -> tuple[str, ...]:
    """The active Linux security modules; "bpf" among them means that LSM programs load."""
    text = _read(path)
    return tuple(text.split(",")) if text else ()


def read_posture() -> Posture:
    """Everything at once."""
    return Posture(
        hostname=socket.gethostname(),
        machine_id=machine_id(),
        kernel_release=kernel_release(),
        boot_id=boot_id(),
        boottime_ns=boottime_ns(),
        clock=clock_sync(),
        secure_boot=secure_boot(),
        lockdown=lockdown(),
        lsm=security_modules(),
    )


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None
