# SPDX-License-Identifier: Apache-2.0
"""A disk in memory under licagent.store.filelayer that is cut off, fails and forgets on demand.

Every operation that changes something has a number. A plan says at which number what happens.
What was not synced is lost in a power cut, sector by sector and name by name as the dice fall;
after a failed fsync the pages stay readable and are never written again, as Linux does it.
"""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import TypeVar

_T = TypeVar("_T")
SECTOR = 512


class Cut(BaseException):  # not an Exception: nothing in the code under test may catch it
    """The process is killed here."""


class Fault(Enum):
    KILL_BEFORE = "killed before"
    KILL_AFTER = "killed after"
    KILL_HALFWAY = "killed in the middle of"
    NO_SPACE = "no space at"
    READ_ONLY = "read-only disk from"
    IO_ERROR = "input/output error at"

    @property
    def kills(self) -> bool:
        return self in (Fault.KILL_BEFORE, Fault.KILL_AFTER, Fault.KILL_HALFWAY)


@dataclass
class Inode:
    content: bytearray = field(default_factory=bytearray)
    durable: bytearray = field(default_factory=bytearray)
    pending: list[tuple[int, bytes] | int] = field(default_factory=list)
    """Writes (offset, data) and truncations (size) since the last sync."""


class SimDisk:
    """A `FileLayer` with one folder."""

    def __init__(self) -> None:
        self.names_now: dict[str, Inode] = {}
        self.names_durable: dict[str, Inode] = {}
        self.pending_names: list[tuple[str, Inode | None]] = []
        self.operations = 0
        self.log: list[str] = []
        self.plan: Callable[[int, str], Fault | None] = lambda _number, _what: None
        self.space: int | None = None
        self.unreadable: set[str] = set()
        self._handles: dict[int, Inode] = {}
        self._next_handle = 3
        self._lock_handle: int | None = None
        self._is_dead = False
        self.is_read_only = False

    # ---- what happens to it

    def restart(self) -> None:
        """The process is gone, the kernel is not."""
        self._handles.clear()
        self._lock_handle = None
        self._is_dead = False

    def power_cut(self, dice: random.Random) -> None:
        """What was not synced is there in parts or not at all."""
        for name, inode in self.pending_names:
            if dice.random() < 0.5:
                _set(self.names_durable, name, inode)
        self.pending_names.clear()
        for inode in {id(each): each for each in self.names_durable.values()}.values():
            for change in inode.pending:
                _apply_some(inode.durable, change, dice)
            inode.pending.clear()
            inode.content = bytearray(inode.durable)
        self.names_now = dict(self.names_durable)
        self.restart()

    def flip(self, name: str, bit: int) -> None:
        """One bit is another one, on the disk and in every cache."""
        inode = self.names_now[name]
        for content in (inode.content, inode.durable):
            if bit // 8 < len(content):
                content[bit // 8] ^= 1 << bit % 8

    # ---- FileLayer

    def make_folder(self, folder: Path) -> None:
        pass

    def names(self, folder: Path) -> list[str]:
        return list(self.names_now)

    def size(self, path: Path) -> int:
        return len(self._inode(path).content)

    def read(self, path: Path, offset: int = 0, length: int = -1) -> bytes:
        inode = self._inode(path)
        if path.name in self.unreadable:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        end = len(inode.content) if length < 0 else offset + length
        return bytes(inode.content[offset:end])

    def create(self, path: Path) -> int:
        def change() -> int:
            if path.name in self.names_now:
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
            inode = Inode()
            self._name(path.name, inode)
            return self._handle(inode)

        return self._step(f"create {path.name}", change)

    def open(self, path: Path) -> int:
        if self.is_read_only:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return self._handle(self._inode(path))

    def write(self, handle: int, data: bytes, offset: int) -> int:
        inode = self._handles[handle]

        def change(part: bytes = data) -> int:
            _write(inode.content, offset, part)
            inode.pending.append((offset, part))
            return len(part)

        room = len(data)
        if self.space is not None:
            used = sum(len(each.content) for each in self.names_now.values())
            grown = max(0, offset + len(data) - len(inode.content))
            room = len(data) - max(0, used + grown - self.space)
        if room <= 0:
            return self._step("write", self._no_space)
        return self._step(
            "write", lambda: change(data[:room]), half=lambda: change(data[: len(data) // 2])
        )

    def fsync(self, handle: int) -> None:
        inode = self._handles[handle]

        def change() -> None:
            for pending in inode.pending:  # what an earlier failure lost stays lost
                _apply(inode.durable, pending)
            inode.pending.clear()

        def fail() -> None:
            inode.pending.clear()  # and never written again, unless somebody writes it again

        self._step("fsync", change, failing=fail)

    def truncate(self, handle: int, size: int) -> None:
        inode = self._handles[handle]

        def change() -> None:
            del inode.content[size:]
            inode.pending.append(size)

        self._step("truncate", change)

    def close(self, handle: int) -> None:
        if self._is_dead:
            return
        self._handles.pop(handle, None)
        if handle == self._lock_handle:
            self._lock_handle = None

    def rename(self, old: Path, new: Path) -> None:
        inode = self._inode(old)

        def change() -> None:
            # One change of the folder: both names or neither.
            self.names_now.pop(old.name)
            self.names_now[new.name] = inode
            self.pending_names.append((f"{old.name}\0{new.name}", inode))

        self._step(f"rename {new.name}", change)

    def unlink(self, path: Path) -> None:
        self._inode(path)
        self._step(f"unlink {path.name}", lambda: self._name(path.name, None))

    def fsync_folder(self, folder: Path) -> None:
        def change() -> None:
            self.names_durable = dict(self.names_now)
            self.pending_names.clear()

        self._step("fsync folder", change)

    def lock(self, folder: Path) -> int:
        if self._lock_handle is not None:
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        self._lock_handle = self._handle(Inode())
        return self._lock_handle

    # ---- inside

    def _step(
        self,
        what: str,
        change: Callable[[], _T],
        *,
        half: Callable[[], object] | None = None,
        failing: Callable[[], None] | None = None,
    ) -> _T:
        if self._is_dead:
            raise Cut
        if self.is_read_only:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        self.operations += 1
        self.log.append(what)
        fault = self.plan(self.operations, what)
        if fault is None:
            return change()
        if fault.kills:
            if fault is Fault.KILL_AFTER:
                change()
            elif fault is Fault.KILL_HALFWAY and half is not None:
                half()
            self._is_dead = True
            raise Cut
        if failing is not None:
            failing()
        elif half is not None:
            half()
        if fault is Fault.READ_ONLY:
            self.is_read_only = True
        number = {Fault.NO_SPACE: errno.ENOSPC, Fault.READ_ONLY: errno.EROFS}.get(fault, errno.EIO)
        raise OSError(number, os.strerror(number))

    def _no_space(self) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _inode(self, path: Path) -> Inode:
        if self._is_dead:
            raise Cut
        try:
            return self.names_now[path.name]
        except KeyError:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT)) from None

    def _handle(self, inode: Inode) -> int:
        self._next_handle += 1
        self._handles[self._next_handle] = inode
        return self._next_handle

    def _name(self, name: str, inode: Inode | None) -> None:
        _set(self.names_now, name, inode)
        self.pending_names.append((name, inode))


def _set(names: dict[str, Inode], name: str, inode: Inode | None) -> None:
    old, renamed, new = name.partition("\0")
    if renamed:
        names.pop(old, None)
        name = new
    if inode is None:
        names.pop(name, None)
    else:
        names[name] = inode


def _write(content: bytearray, offset: int, data: bytes) -> None:
    if len(content) < offset:
        content.extend(bytes(offset - len(content)))
    content[offset : offset + len(data)] = data


def _apply(content: bytearray, change: tuple[int, bytes] | int) -> None:
    if isinstance(change, int):
        del content[change:]
    else:
        _write(content, *change)


def _apply_some(content: bytearray, change: tuple[int, bytes] | int, dice: random.Random) -> None:
    if isinstance(change, int):
        if dice.random() < 0.5:
            del content[change:]
        return
    offset, data = change
    style = dice.randrange(3)  # nothing, the beginning, or sectors here and there
    kept_up_to = offset if style == 0 else dice.randint(offset, offset + len(data))
    for begin in range(offset - offset % SECTOR, offset + len(data), SECTOR):
        first, end = max(begin, offset), min(begin + SECTOR, offset + len(data))
        is_kept = end <= kept_up_to if style < 2 else dice.random() < 0.5
        if is_kept:
            _write(content, first, data[first - offset : end - offset])
