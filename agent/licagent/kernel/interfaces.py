# SPDX-License-Identifier: Apache-2.0
"""The program on what interfaces send: one TCX link for each, pinned as links/tc_<netns>_<ifindex>.

The loader pins the program; the daemon calls `cover` in each network namespace, at the start and
again for interfaces that came since, and `prune` for those that went. With the daemon dead, what
is covered stays covered, and an interface that comes then is not.

TCX needs Linux 6.6. Older kernels have clsact, which has no links: what was attached by it would
not end with our pins, so it is not used.
"""

from __future__ import annotations

import errno
import os
import re
import socket
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from licagent.kernel import attach, libbpf
from licagent.kernel.bpffs import PinFolder
from licagent.kernel.libbpf import BpfError

_NAME: Final = re.compile(r"tc_(\d+)_(\d+)")
_GONE: Final = frozenset({errno.ENODEV, errno.ENOENT, errno.ENOLINK})
"""What the kernel says of an interface that went while it was looked at."""

_OWN_NAMESPACE: Final = "/proc/thread-self/ns/net"


@dataclass(slots=True)
class Coverage:
    """What one round through the network namespaces found."""

    covered: dict[int, set[int]] = field(default_factory=dict)
    """Namespace (its inode) -> the interfaces that have the program."""
    failed: dict[int, dict[str, str]] = field(default_factory=dict)
    """Namespace -> name of an interface -> why it has not."""

    @property
    def error(self) -> str:
        """The first failure in words; "" if there was none."""
        for names in self.failed.values():
            for name, reason in names.items():
                count = sum(len(each) for each in self.failed.values())
                return f"{count} interfaces are not covered; the first, {name}: {reason}"
        return ""


class InterfaceLinks:
    """The links of one pin folder."""

    def __init__(self, pins: PinFolder, program: str) -> None:
        self._links = pins.links
        self._program = pins.programs / program

    def install(self, program_fd: int) -> None:
        """Pin a program, and put it into every link that is there, each in one step."""
        attach.pin_program(program_fd, self._program)
        for pin in self._pins():
            link = libbpf.open_pin(pin)
            try:
                libbpf.update_link(link, program_fd)
            except BpfError as error:
                if error.errno not in _GONE:
                    raise
            finally:
                os.close(link)

    def program_id(self) -> int | None:
        """Of the pinned program; None where it was not loaded or is detached."""
        try:
            program = libbpf.open_pin(self._program)
        except BpfError:
            return None
        try:
            return libbpf.program_info(program).id
        finally:
            os.close(program)

    def cover(self, found: Coverage) -> None:
        """Attach to all interfaces of the caller's network namespace that have no link yet."""
        try:
            program = libbpf.open_pin(self._program)
        except BpfError:
            return  # not loaded, or detached meanwhile
        try:
            namespace = Path(_OWN_NAMESPACE).stat().st_ino
            covered = found.covered.setdefault(namespace, set())
            for ifindex, name in socket.if_nameindex():
                pin = self._links / f"tc_{namespace}_{ifindex}"
                try:
                    if _ifindex(pin) != ifindex:
                        _link(program, ifindex, pin)
                    covered.add(ifindex)
                except BpfError as error:
                    if error.errno not in _GONE:
                        found.failed.setdefault(namespace, {})[name] = str(error.strerror)
        finally:
            os.close(program)

    def prune(self, found: Coverage) -> None:
        """Remove the links of interfaces that are gone, or have moved to another namespace.

        A namespace that was not visited may still be alive by a socket: its links stay.
        """
        for pin in self._pins():
            namespace, ifindex = _numbers(pin)
            covered = found.covered.get(namespace)
            moved = covered is not None and ifindex not in covered
            if moved or not _ifindex(pin):
                pin.unlink(missing_ok=True)

    def is_broken(self, found: Coverage) -> bool:
        """Whether a link is dead: its interface went since, or somebody has detached it."""
        return not all(
            _ifindex(self._links / f"tc_{namespace}_{ifindex}")
            for namespace, covered in found.covered.items()
            for ifindex in covered
        )

    def _pins(self) -> Iterator[Path]:
        if self._links.is_dir():
            yield from (pin for pin in sorted(self._links.iterdir()) if _NAME.fullmatch(pin.name))


def _numbers(pin: Path) -> tuple[int, int]:
    namespace, ifindex = pin.name.split("_")[1:]
    return int(namespace), int(ifindex)


def _link(program: int, ifindex: int, pin: Path) -> None:
    pin.unlink(missing_ok=True)  # of an interface that is gone
    link = libbpf.link_interface(program, ifindex)
    try:
        libbpf.pin_fd(link, pin)
    finally:
        os.close(link)


def _ifindex(pin: Path) -> int:
    """The interface of a pinned link; 0 if either is gone."""
    try:
        link = libbpf.open_pin(pin)
    except BpfError:
        return 0
    try:
        return libbpf.link_info(link).ifindex
    finally:
        os.close(link)
