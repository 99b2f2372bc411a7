# SPDX-License-Identifier: Apache-2.0
"""Traffic whose payload is known to the byte; run as a program, standard library only.

    traffic.py tcp-sink HOST REPLY HOW             accept one connection, read to its end
    traffic.py tcp-send HOST PORT BYTES HOW        send, read the reply to its end
    traffic.py tcp-short HOST COUNT REPLY          COUNT connections, half are closed here first
    traffic.py tcp-shorts HOST PORT COUNT BYTES    make them
    traffic.py tcp-early HOST TAKE REPLY           reply, read at least TAKE, close with the rest
    traffic.py tcp-cut HOST PORT BYTES SIDE        read the reply; send until SIDE ends it
    traffic.py tcp-parts HOST PORT BYTES PARTS     tcp-send that waits for a line after each part
    traffic.py udp-sink HOST                       read datagrams until an empty line comes in
    traffic.py udp-send HOST PORT COUNT SIZE HOW   send datagrams, one size
    traffic.py give HOST PORT BYTES PATH           connect, pass the socket on over PATH, end
    traffic.py take PATH BYTES                     take a socket over PATH, send by it
    traffic.py raw-send HOST COUNT SIZE            IP protocol 253

HOW of sending: sendall, eagain, sendfile, splice, zerocopy, sendmsg, fastopen; for UDP: sendto,
connected, segments (UDP GSO), zerocopy, corked. HOW of reading: recv, peek, splice, recvmsg, late
(only after the peer has sent everything it can), told (when the input ends). Sinks print their
port, all print what they moved. --mptcp makes it MPTCP.
"""

from __future__ import annotations

import array
import errno
import fcntl
import os
import select
import socket
import struct
import sys
import tempfile
import termios
import threading

CHUNK = 65536
IPPROTO_MPTCP = 262
SO_ZEROCOPY, MSG_ZEROCOPY = 60, 0x4000000
UDP_CORK, UDP_SEGMENT = 1, 103
SO_RCVBUFFORCE = 33
PROTOCOL = 253
LIMIT_S = 30


def family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def stream(host: str) -> socket.socket:
    protocol = IPPROTO_MPTCP if "--mptcp" in sys.argv else 0
    made = socket.socket(family(host), socket.SOCK_STREAM, protocol)
    made.settimeout(LIMIT_S)
    return made


def say(value: object) -> None:
    sys.stdout.write(f"{value}\n")
    sys.stdout.flush()


# --- sending


def send_late(sock: socket.socket, data: memoryview) -> None:
    """Without waiting in the kernel: most attempts move a part or nothing."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, CHUNK)
    sock.setblocking(False)
    refused = 0
    while data:
        try:
            data = data[sock.send(data) :]
        except BlockingIOError:
            refused += 1
            select.select([], [sock], [], LIMIT_S)
    sock.settimeout(LIMIT_S)
    if not refused:
        raise SystemExit("it was never refused")


def send_file(sock: socket.socket, data: memoryview) -> None:
    with tempfile.TemporaryFile() as file:
        file.write(data)
        file.flush()
        sent = 0
        while sent < len(data):
            sent += os.sendfile(sock.fileno(), file.fileno(), sent, len(data) - sent)


def send_spliced(sock: socket.socket, data: memoryview) -> None:
    reader, writer = os.pipe()

    def fill() -> None:
        with open(writer, "wb") as pipe:
            pipe.write(data)

    thread = threading.Thread(target=fill)
    thread.start()
    left = len(data)
    while left:
        left -= os.splice(reader, sock.fileno(), min(left, CHUNK))
    thread.join()
    os.close(reader)


def drop_notices(sock: socket.socket) -> None:
    """The kernel says of each zerocopy send when its pages are free again."""
    try:
        while True:
            sock.recvmsg(1, 512, socket.MSG_ERRQUEUE | socket.MSG_DONTWAIT)
    except BlockingIOError:
        pass


def send_uncopied(sock: socket.socket, data: memoryview) -> None:
    sock.setsockopt(socket.SOL_SOCKET, SO_ZEROCOPY, 1)
    while data:
        try:
            data = data[sock.send(data[:CHUNK], MSG_ZEROCOPY) :]
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise
        drop_notices(sock)


def send_scattered(sock: socket.socket, data: memoryview) -> None:
    while data:
        data = data[sock.sendmsg([data[:1000], data[1000:30000], data[30000:31001]]) :]


SENDERS = {
    "sendall": lambda sock, data: sock.sendall(data),
    "eagain": send_late,
    "sendfile": send_file,
    "splice": send_spliced,
    "zerocopy": send_uncopied,
    "sendmsg": send_scattered,
}


# --- reading


def read(sock: socket.socket) -> int:
    total = 0
    while part := sock.recv(CHUNK):
        total += len(part)
    return total


def read_twice(sock: socket.socket) -> int:
    """Everything is looked at before it is taken."""
    total = 0
    while looked := sock.recv(CHUNK, socket.MSG_PEEK):
        total += len(sock.recv(len(looked)))
    return total


def read_spliced(sock: socket.socket) -> int:
    reader, writer = os.pipe()
    total = 0
    with open(os.devnull, "wb") as nothing:
        while part := os.splice(sock.fileno(), writer, CHUNK):
            total += part
            while part:
                part -= os.splice(reader, nothing.fileno(), part)
    return total


def read_scattered(sock: socket.socket) -> int:
    total = 0
    parts = [bytearray(100), bytearray(5000), bytearray(1)]
    while moved := sock.recvmsg_into(parts)[0]:
        total += moved
    return total


def waiting(sock: socket.socket) -> int:
    """How much could be read."""
    found = array.array("i", [0])
    fcntl.ioctl(sock, termios.FIONREAD, found)
    return found[0]


def read_late(sock: socket.socket) -> int:
    """Begin when the window is full: something has come, and no more does."""
    before = 0
    for _ in range(100):
        come = waiting(sock)
        if come and come == before:
            break
        before = come
        select.select([], [], [], 0.3)
    return read(sock)


def read_told(sock: socket.socket) -> int:
    sys.stdin.read()
    return read(sock)


READERS = {
    "recv": read,
    "peek": read_twice,
    "splice": read_spliced,
    "recvmsg": read_scattered,
    "late": read_late,
    "told": read_told,
}


# --- commands


def tcp_sink(host: str, reply: str, how: str) -> None:
    listener = stream(host)
    listener.bind((host, 0))
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_FASTOPEN, 5)
    listener.listen(1)
    say(listener.getsockname()[1])
    sock, _ = listener.accept()
    with sock:
        total = READERS[how](sock)
        sock.sendall(bytes(int(reply)))
    say(total)


def tcp_send(host: str, port: str, size: str, how: str) -> None:
    data = memoryview(bytes(int(size)))
    with stream(host) as sock:
        if how == "fastopen":
            sock.settimeout(None)
            data = data[sock.sendto(data[:1000], socket.MSG_FASTOPEN, (host, int(port))) :]
            how = "sendall"
        else:
            sock.connect((host, int(port)))
        sock.settimeout(None)  # with a limit, Python's sockets do not block in the kernel
        SENDERS[how](sock, data)
        sock.shutdown(socket.SHUT_WR)
        say(read(sock))


def tcp_short(host: str, count: str, reply: str) -> None:
    """Half of the connections are closed by this side first."""
    listener = stream(host)
    listener.bind((host, 0))
    listener.listen(100)
    say(listener.getsockname()[1])
    total = 0
    for number in range(int(count)):
        sock, _ = listener.accept()
        with sock:
            sock.settimeout(None)
            if number % 2:
                sock.sendall(bytes(int(reply)))
                sock.shutdown(socket.SHUT_WR)
                total += read(sock)
            else:
                total += read(sock)
                sock.sendall(bytes(int(reply)))
    say(total)


def tcp_shorts(host: str, port: str, count: str, size: str) -> None:
    total = 0
    for number in range(int(count)):
        with stream(host) as sock:
            sock.connect((host, int(port)))
            sock.settimeout(None)
            if number % 2:
                total += read(sock)
                sock.sendall(bytes(int(size)))
            else:
                sock.sendall(bytes(int(size)))
                sock.shutdown(socket.SHUT_WR)
                total += read(sock)
    say(total)


def tcp_parts(host: str, port: str, size: str, parts: str) -> None:
    with stream(host) as sock:
        sock.connect((host, int(port)))
        sock.settimeout(None)
        for _ in range(int(parts)):
            sock.sendall(bytes(int(size) // int(parts)))
            say("sent")
            sys.stdin.readline()
        sock.shutdown(socket.SHUT_WR)
        say(read(sock))


def read_reply(sock: socket.socket) -> None:
    """The first line; it says how long it is."""
    length = int(sock.recv(10, socket.MSG_WAITALL))
    sock.recv(length - 10, socket.MSG_WAITALL)


def tcp_early(host: str, take: str, reply: str) -> None:
    listener = stream(host)
    listener.bind((host, 0))
    listener.listen(1)
    say(listener.getsockname()[1])
    sock, _ = listener.accept()
    total = 0
    with sock:
        sock.settimeout(None)
        sock.sendall(reply.rjust(10).encode() + bytes(int(reply) - 10))
        try:
            while total < int(take):
                part = sock.recv(CHUNK)
                total += len(part)
                if not part:
                    break
        except ConnectionResetError:
            pass
        select.select([sock], [], [], LIMIT_S)
    say(total)


def tcp_cut(host: str, port: str, size: str, side: str) -> None:
    with stream(host) as sock:
        sock.connect((host, int(port)))
        sock.settimeout(None)
        read_reply(sock)
        try:
            if side == "writer":
                sock.sendall(bytes(int(size) // 2))
                # SO_LINGER with no time: what is not acknowledged yet is thrown away.
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            else:
                sock.sendall(bytes(int(size)))
        except (ConnectionResetError, BrokenPipeError):
            pass
    say(size)


def udp_sink(host: str) -> None:
    """It ends when its input does; what has come by then is in the buffer already."""
    with socket.socket(family(host), socket.SOCK_DGRAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 64 << 20)
        sock.bind((host, 0))
        say(sock.getsockname()[1])
        sys.stdin.read()
        sock.setblocking(False)
        count = total = 0
        try:
            while True:
                total += len(sock.recv(CHUNK))
                count += 1
        except BlockingIOError:
            pass
    say(f"{count} {total}")


def udp_send(host: str, port: str, count: str, size: str, how: str) -> None:
    to = (host, int(port))
    data = bytes(int(size))
    with socket.socket(family(host), socket.SOCK_DGRAM) as sock:
        if how != "sendto":
            sock.connect(to)
        if how == "segments":
            sock.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, len(data))
            each = 40
            for _ in range(int(count) // each):
                sock.send(data * each)
            say(int(count) // each * each * len(data))
            return
        if how == "zerocopy":
            sock.setsockopt(socket.SOL_SOCKET, SO_ZEROCOPY, 1)
        for _ in range(int(count)):
            if how == "sendto":
                sock.sendto(data, to)
            elif how == "corked":
                sock.setsockopt(socket.IPPROTO_UDP, UDP_CORK, 1)
                sock.send(data[:10])
                sock.send(data[10:])
                sock.setsockopt(socket.IPPROTO_UDP, UDP_CORK, 0)
            elif how == "zerocopy":
                sock.send(data, MSG_ZEROCOPY)
                drop_notices(sock)
            else:
                sock.send(data)
    say(int(count) * len(data))


def give(host: str, port: str, size: str, path: str) -> None:
    with stream(host) as sock, socket.socket(socket.AF_UNIX) as way:
        sock.connect((host, int(port)))
        sock.sendall(bytes(int(size)))
        way.connect(path)
        rights = array.array("i", [sock.fileno()]).tobytes()
        way.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
    say(size)


def take(path: str, size: str) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(1)
        say("ready")
        way, _ = listener.accept()
        _, descriptors, _, _ = socket.recv_fds(way, 1, 1)
        # Not before the giver is gone: from here on it is nobody else's.
        while way.recv(1):
            pass
    with socket.socket(fileno=descriptors[0]) as sock:
        sock.settimeout(LIMIT_S)
        sock.sendall(bytes(int(size)))
        sock.shutdown(socket.SHUT_WR)
        say(read(sock))


def raw_send(host: str, count: str, size: str) -> None:
    with socket.socket(family(host), socket.SOCK_RAW, PROTOCOL) as sock:
        for _ in range(int(count)):
            sock.sendto(bytes(int(size)), (host, 0))
    say(int(count) * int(size))


COMMANDS = {
    "tcp-sink": tcp_sink,
    "tcp-send": tcp_send,
    "tcp-short": tcp_short,
    "tcp-shorts": tcp_shorts,
    "tcp-parts": tcp_parts,
    "tcp-early": tcp_early,
    "tcp-cut": tcp_cut,
    "udp-sink": udp_sink,
    "udp-send": udp_send,
    "give": give,
    "take": take,
    "raw-send": raw_send,
}


if __name__ == "__main__":
    words = [word for word in sys.argv[1:] if not word.startswith("--")]
    COMMANDS[words[0]](*words[1:])  # type: ignore[operator]
