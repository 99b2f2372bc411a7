# SPDX-License-Identifier: Apache-2.0
"""The program on what interfaces send: one TCX link for each, pinned as links/tc_<netns>_<ifindex>.

The loader pins the program; the daemon calls `cover` in each network namespace, at the start and
again for interfaces that came since, and then `settle` for those that went or moved. With the
daemon dead, what is covered stays covered, and an interface that comes then is not.

The kernel takes about 10 ms for each (tcx_entry_sync waits for all CPUs, under the lock of the
network configuration), so the many interfaces of a large host are attached beside other work.

TCX needs Linux 6.6. Older kernels have clsact, which has no links: what was attached by it would
not end with our pins, so it is not used.
"""

from __future__ import annotations

import errno
import os
import re
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from licagent.kernel import attach, bpf_info, libbpf
from licagent.kernel.bpf_info import LinkInfo
from licagent.kernel.bpffs import PinFolder
from licagent.kernel.libbpf import BpfError

_NAME: Final = re.compile(r"tc_\d+_\d+")
_GONE: Final = frozenset({errno.ENODEV, errno.ENOENT, errno.ENOLINK})
"""What the kernel says of an interface that went while it was looked at."""

_NOWHERE: Final = 0
"""No namespace has this inode: for links whose interface is not found yet."""

_OWN_NAMESPACE: Final = "/proc/thread-self/ns/net"


@dataclass(slots=True)
class Coverage:
    """What one round through the network namespaces found."""

    covered: dict[int, set[int]] = field(default_factory=dict)
    """Namespace (its inode) -> the interfaces that have the program."""
    moved: list[tuple[int, int]] = field(default_factory=list)
    """Those that have it by a link of another name: they came from another namespace."""
    failed: dict[str, str] = field(default_factory=dict)
    """Name of an interface -> why it has not."""

    @property
    def error(self) -> str:
        """The first failure in words; "" if there was none."""
        for name, reason in self.failed.items():
            return f"{len(self.failed)} interfaces are not covered; the first, {name}: {reason}"
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
            return bpf_info.program_info(program).id
        finally:
            os.close(program)

    def cover(self, found: Coverage, is_stopped: Callable[[], bool] = lambda: False) -> None:
        """Attach to all interfaces of the caller's network namespace that have no link yet."""
        try:
            program = libbpf.open_pin(self._program)
        except BpfError:
            return  # not loaded, or detached meanwhile
        try:
            namespace = Path(_OWN_NAMESPACE).stat().st_ino
            covered = found.covered.setdefault(namespace, set())
            for ifindex, name in socket.if_nameindex():
                if is_stopped():
                    return
                try:
                    self._cover_one(program, namespace, ifindex)
                except BpfError as error:
                    if error.errno in _GONE:
                        continue
                    if error.errno != errno.EEXIST:
                        found.failed[f"{name} (net:[{namespace}])"] = str(error.strerror)
                        continue
                    found.moved.append((namespace, ifindex))
                covered.add(ifindex)
        finally:
            os.close(program)

    def _cover_one(self, program: int, namespace: int, ifindex: int) -> None:
        pin = self._pin(namespace, ifindex)
        linked = _ifindex(pin)
        if linked == ifindex:
            return
        if linked:
            # The interface has moved to another namespace, and its number was given again.
            pin.rename(self._pin(_NOWHERE, _link_id(pin)))
        else:
            pin.unlink(missing_ok=True)
        link = libbpf.link_interface(program, ifindex)
        try:
            libbpf.pin_fd(link, pin)
        finally:
            os.close(link)

    def settle(self, found: Coverage) -> None:
        """Remove the links of interfaces that are gone; rename those of interfaces that moved.

        A live link always stays: a namespace that was not visited may live by a socket alone.
        """
        known = {
            self._pin(namespace, ifindex)
            for namespace, covered in found.covered.items()
            for ifindex in covered
        } - {self._pin(*place) for place in found.moved}
        for pin in self._pins():
            if pin in known:
                continue
            ifindex = _ifindex(pin)
            if not ifindex:
                pin.unlink(missing_ok=True)
                continue
            for place in found.moved:
                if place[1] == ifindex:
                    found.moved.remove(place)
                    pin.rename(self._pin(*place))
                    break

    def is_broken(self, found: Coverage) -> bool:
        """Whether a link is dead: its interface went since, or somebody has detached it."""
        return not all(
            _ifindex(self._pin(namespace, ifindex))
            for namespace, covered in found.covered.items()
            for ifindex in covered
        )

    def _pin(self, namespace: int, ifindex: int) -> Path:
        return self._links / f"tc_{namespace}_{ifindex}"

    def _pins(self) -> Iterator[Path]:
        if self._links.is_dir():
            yield from (pin for pin in sorted(self._links.iterdir()) if _NAME.fullmatch(pin.name))


def _ifindex(pin: Path) -> int:
    """The interface of a pinned link, by its number where it is now; 0 if either is gone."""
    try:
        return _info(pin).ifindex
    except BpfError:
        return 0


def _link_id(pin: Path) -> int:
    return _info(pin).id


def _info(pin: Path) -> LinkInfo:
    link = libbpf.open_pin(pin)
    try:
        return bpf_info.link_info(link)
    finally:
        os.close(link)
