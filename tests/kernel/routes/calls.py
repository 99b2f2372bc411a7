# SPDX-License-Identifier: Apache-2.0
"""System calls and socket addresses that Python's socket module hides or normalises."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import socket
import struct
from typing import Final

LIBC: Final = ctypes.CDLL(None, use_errno=True)

SYS_PIDFD_GETFD: Final = 438
CLONE_NEWNET: Final = 0x40000000
IPPROTO_MPTCP: Final = 262
TCP_FASTOPEN_CONNECT: Final = 30
IP_BIND_ADDRESS_NO_PORT: Final = 24
IPV6_HDRINCL: Final = 36
IPV6_CHECKSUM: Final = 7
UDP_SEGMENT: Final = 103
SO_ZEROCOPY: Final = 60
MSG_ZEROCOPY: Final = 0x4000000
PACKET_QDISC_BYPASS: Final = 20


def checked(result: int) -> int:
    """Raise OSError for a libc call that answered -1."""
    if result < 0:
        number = ctypes.get_errno()
        if number == errno.EAGAIN:
            raise TimeoutError(number, os.strerror(number))
        raise OSError(number, os.strerror(number))
    return result


def syscall(number: int, *arguments: int | bytes | None) -> int:
    """Any system call by number; pointers are given as addresses or bytes."""
    converted = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    return checked(LIBC.syscall(ctypes.c_long(number), *converted))


def address4(host: str, port: int, family: int = socket.AF_INET) -> bytes:
    """A struct sockaddr_in, with any family in its first field."""
    packed = struct.pack("=H", family) + struct.pack("!H", port) + socket.inet_aton(host)
    return packed + bytes(8)


def address6(host: str, port: int, family: int = socket.AF_INET6) -> bytes:
    """A struct sockaddr_in6, with any family in its first field."""
    head = struct.pack("=H", family) + struct.pack("!HI", port, 0)
    return head + socket.inet_pton(socket.AF_INET6, host) + bytes(4)


def bound_waits(sock: socket.socket, seconds: float) -> None:
    """Make the descriptor blocking, and bound its waits in the kernel.

    A socket with a Python timeout is non-blocking below; calls that go past Python need this.
    """
    sock.setblocking(True)
    limit = struct.pack("=qq", int(seconds), int(seconds % 1 * 1_000_000))
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)


def _blocking(sock: socket.socket) -> None:
    limit_s = sock.gettimeout()
    if limit_s is not None:  # else an earlier call has bound it
        bound_waits(sock, limit_s)


def connect(sock: socket.socket, address: bytes) -> None:
    """connect(2) with a raw socket address."""
    _blocking(sock)
    checked(LIBC.connect(sock.fileno(), address, len(address)))


def disconnect(sock: socket.socket) -> None:
    """connect(2) to AF_UNSPEC: takes the association back, and passes no hook."""
    connect(sock, struct.pack("=H", socket.AF_UNSPEC) + bytes(14))


def bind(sock: socket.socket, address: bytes) -> None:
    """bind(2) with a raw socket address."""
    checked(LIBC.bind(sock.fileno(), address, len(address)))


def sendto(sock: socket.socket, payload: bytes, address: bytes, flags: int = 0) -> int:
    """sendto(2) with a raw socket address."""
    _blocking(sock)
    sent = LIBC.sendto(sock.fileno(), payload, len(payload), flags, address, len(address))
    return checked(sent)


class IoVector(ctypes.Structure):
    """struct iovec."""

    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


class MessageHeader(ctypes.Structure):
    """struct msghdr of a 64-bit system."""

    _fields_ = (
        ("name", ctypes.c_void_p),
        ("name_length", ctypes.c_uint32),
        ("vectors", ctypes.POINTER(IoVector)),
        ("vector_count", ctypes.c_size_t),
        ("control", ctypes.c_void_p),
        ("control_length", ctypes.c_size_t),
        ("flags", ctypes.c_int),
    )


class ManyMessageHeader(ctypes.Structure):
    """struct mmsghdr."""

    _fields_ = (("header", MessageHeader), ("sent", ctypes.c_uint))


def message(payload: bytes, address: bytes | None) -> tuple[MessageHeader, list[object]]:
    """A struct msghdr, and the objects that must live as long as it is used."""
    data = ctypes.create_string_buffer(payload, len(payload))
    vector = IoVector(ctypes.cast(data, ctypes.c_void_p), len(payload))
    header = MessageHeader(vectors=ctypes.pointer(vector), vector_count=1)
    keep: list[object] = [data, vector]
    if address is not None:
        name = ctypes.create_string_buffer(address, len(address))
        keep.append(name)
        header.name = ctypes.cast(name, ctypes.c_void_p)
        header.name_length = len(address)
    return header, keep


def address_of(structure: ctypes.Structure) -> int:
    """Where a structure lies in memory."""
    return ctypes.addressof(structure)


def sendmmsg(sock: socket.socket, messages: list[tuple[bytes, bytes | None]]) -> int:
    """sendmmsg(2); a message's address may be None on a connected socket. Answers how many."""
    _blocking(sock)
    headers = (ManyMessageHeader * len(messages))()
    keep: list[object] = []
    for slot, (payload, address) in zip(headers, messages, strict=True):
        slot.header, kept = message(payload, address)
        keep += kept
    return checked(LIBC.sendmmsg(sock.fileno(), headers, len(messages), 0))


def pidfd_getfd(pid: int, descriptor: int) -> int:
    """Take a copy of another process's descriptor."""
    pidfd = os.pidfd_open(pid)
    try:
        return syscall(SYS_PIDFD_GETFD, pidfd, descriptor, 0)
    finally:
        os.close(pidfd)


def new_network_namespace() -> None:
    """unshare(CLONE_NEWNET), and loopback up in it."""
    checked(LIBC.unshare(CLONE_NEWNET))
    link_up("lo")


def link_up(name: str) -> None:
    """Set IFF_UP of a link of the current network namespace."""
    get_flags, set_flags, up = 0x8913, 0x8914, 1
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        request = bytearray(struct.pack("=16sH22x", name.encode(), 0))
        fcntl.ioctl(control, get_flags, request)
        struct.pack_into("=H", request, 16, struct.unpack_from("=H", request, 16)[0] | up)
        fcntl.ioctl(control, set_flags, bytes(request))
