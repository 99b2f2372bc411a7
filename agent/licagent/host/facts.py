# SPDX-License-Identifier: Apache-2.0
"""The posture facts that licenses may ask for, by name; what cannot be told is left out.

docs/reference/conditions.md says where each one comes from.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final

from licagent.host.disk_encryption import root_is_encrypted
from licagent.host.posture import clock_sync, secure_boot

_REBOOT_MARKS: Final = ("run/reboot-required", "run/reboot-needed")
"""Debian and Ubuntu make the first (reboot-notifier, unattended-upgrades), SUSE the second."""


class FactReader:
    """Reads the facts. Cheap enough for every second: a dozen small files."""

    def __init__(
        self,
        root: Path = Path("/"),
        *,
        synchronised: Callable[[], bool | None] | None = None,
        is_whole: Callable[[], bool | None] = lambda: None,
    ) -> None:
        """`root` is where /proc, /sys and /run are looked for.

        `synchronised` and `is_whole` tell of the clock (adjtimex(2) where it is not given) and of
        the agent's own files.
        """
        self._root = root
        self._synchronised = synchronised or _clock_in_sync
        self._is_whole = is_whole

    def read(self) -> Mapping[str, str]:
        """Each fact that is known: `kernel` as a release, the others "true" or "false"."""
        flags = {
            "secure_boot": self._secure_boot(),
            "disk_encryption": root_is_encrypted(self._root),
            "agent_integrity": self._is_whole(),
            "clock_in_sync": self._synchronised(),
            "pending_reboot": self._pending_reboot(),
        }
        found = {
            name: "true" if value else "false" for name, value in flags.items() if value is not None
        }
        release = self._kernel()
        if release:
            found["kernel"] = release
        return MappingProxyType(found)

    def _kernel(self) -> str:
        try:
            return (self._root / "proc/sys/kernel/osrelease").read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError):
            return ""

    def _secure_boot(self) -> bool | None:
        firmware = self._root / "sys/firmware"
        if firmware.is_dir() and not (firmware / "efi").exists():
            return False  # booted without EFI: nothing verified the boot chain
        return secure_boot(firmware / "efi/efivars")

    def _pending_reboot(self) -> bool | None:
        if not (self._root / "run").is_dir():
            return None
        return any((self._root / mark).exists() for mark in _REBOOT_MARKS)


def _clock_in_sync() -> bool | None:
    sync = clock_sync()
    return None if sync is None else sync.synchronised
