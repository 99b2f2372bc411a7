# SPDX-License-Identifier: Apache-2.0
"""The least of io_uring that the routes need, by raw system calls.

One request at a time: `Ring.call` submits it and waits for its completion. Offsets are those
of struct io_uring_params in include/uapi/linux/io_uring.h.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import struct
import time
from types import TracebackType
from typing import Final, Self

from tests.kernel.routes import calls
from tests.kernel.routes.base import PATIENCE_S, Unsupported

SYS_SETUP: Final = 425
SYS_ENTER: Final = 426
SETUP_SQPOLL: Final = 1 << 1
ENTER_GETEVENTS: Final = 1
ENTER_SQ_WAKEUP: Final = 2
SQ_NEED_WAKEUP: Final = 1
OFFSET_SQ_RING: Final = 0
OFFSET_SQES: Final = 0x10000000
FEATURE_SINGLE_MMAP: Final = 1

OP_WRITE: Final = 23
OP_CONNECT: Final = 16
OP_SENDMSG: Final = 9
OP_ACCEPT: Final = 13
OP_SEND: Final = 26
OP_SOCKET: Final = 45
OP_SEND_ZC: Final = 47
OP_BIND: Final = 56
OP_LISTEN: Final = 57

_ENTRY_BYTES: Final = 64
_COMPLETION_BYTES: Final = 16
_MORE: Final = 2  # IORING_CQE_F_MORE: another completion of the same request follows
_NOTIFICATION: Final = 8  # IORING_CQE_F_NOTIF: the buffer of a zero-copy send is free


class Ring:
    """A ring of eight entries, with a kernel thread that polls it if `polled`."""

    def __init__(self, *, polled: bool = False) -> None:
        self._polled = polled
        parameters = bytearray(120)
        # flags at byte 8; sq_thread_idle (ms) at byte 16
        struct.pack_into("=III", parameters, 8, SETUP_SQPOLL if polled else 0, 0, 50)
        buffer = (ctypes.c_char * len(parameters)).from_buffer(parameters)
        try:
            self._fd = calls.syscall(SYS_SETUP, 8, ctypes.addressof(buffer))
        except OSError as error:
            if error.errno in {errno.ENOSYS, errno.EPERM}:
                raise Unsupported(
                    f"io_uring_setup: {error}; see kernel.io_uring_disabled"
                ) from error
            raise
        entries, self._completions = struct.unpack_from("=II", parameters, 0)
        (features,) = struct.unpack_from("=I", parameters, 20)
        if not features & FEATURE_SINGLE_MMAP:
            raise Unsupported("io_uring without a single ring mapping (kernel before 5.4)")
        self._sq = struct.unpack_from("=7I", parameters, 40)
        self._cq = struct.unpack_from("=6I", parameters, 80)
        ring_bytes = max(
            self._sq[6] + entries * 4, self._cq[5] + self._completions * _COMPLETION_BYTES
        )
        self._ring = mmap.mmap(self._fd, ring_bytes, offset=OFFSET_SQ_RING)
        self._entries = mmap.mmap(self._fd, entries * _ENTRY_BYTES, offset=OFFSET_SQES)
        self._mask = self._word(self._sq[2])
        self._keep: list[object] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._entries.close()
        self._ring.close()
        os.close(self._fd)

    def _word(self, offset: int) -> int:
        (value,) = struct.unpack_from("=I", self._ring, offset)
        assert isinstance(value, int)
        return value

    def buffer(self, data: bytes) -> int:
        """The address of a copy of `data` that lives as long as the ring."""
        copy = ctypes.create_string_buffer(data, len(data))
        self._keep.append(copy)
        return ctypes.addressof(copy)

    def call(
        self,
        opcode: int,
        descriptor: int,
        *,
        address: int = 0,
        length: int = 0,
        offset: int = 0,
        flags: int = 0,
        address_length: int = 0,
    ) -> int:
        """Run one request; answers its result or raises its error."""
        tail = self._word(self._sq[1])
        index = tail & self._mask
        entry = struct.pack(
            "=BBHiQQIIQHHIQQ",
            opcode,
            0,  # sqe flags
            0,  # io priority
            descriptor,
            offset,
            address,
            length,
            flags,
            tail,  # user data
            0,
            0,
            address_length,  # two 16-bit fields: addr_len, padding
            0,
            0,
        )
        self._entries[index * _ENTRY_BYTES : (index + 1) * _ENTRY_BYTES] = entry
        struct.pack_into("=I", self._ring, self._sq[6] + index * 4, index)
        struct.pack_into("=I", self._ring, self._sq[1], tail + 1)
        self._enter()
        return self._wait()

    def _enter(self) -> None:
        if not self._polled:
            calls.syscall(SYS_ENTER, self._fd, 1, 0, 0, 0, 0)
        elif self._word(self._sq[4]) & SQ_NEED_WAKEUP:
            calls.syscall(SYS_ENTER, self._fd, 1, 0, ENTER_SQ_WAKEUP, 0, 0)

    def _wait(self) -> int:
        limit = time.monotonic() + PATIENCE_S  # it comes for what is refused, too
        while True:
            head, tail = self._word(self._cq[0]), self._word(self._cq[1])
            if head != tail:
                place = self._cq[5] + (head & self._word(self._cq[2])) * _COMPLETION_BYTES
                _, result, flags = struct.unpack_from("=QiI", self._ring, place)
                struct.pack_into("=I", self._ring, self._cq[0], head + 1)
                if flags & _NOTIFICATION:
                    continue
                if result < 0:
                    raise OSError(-result, os.strerror(-result))
                assert isinstance(result, int)
                return result
            if time.monotonic() > limit:
                raise TimeoutError(errno.ETIMEDOUT, "no completion")
            time.sleep(0.0005)  # the completion is posted by another thread; 0.5 ms is no race
            if self._polled and self._word(self._sq[4]) & SQ_NEED_WAKEUP:
                calls.syscall(SYS_ENTER, self._fd, 1, 0, ENTER_SQ_WAKEUP, 0, 0)
            elif not self._polled:
                # completions of task work are posted when the task enters the kernel
                calls.syscall(SYS_ENTER, self._fd, 0, 0, ENTER_GETEVENTS, 0, 0)
