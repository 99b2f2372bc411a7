# SPDX-License-Identifier: Apache-2.0
"""Connects to a loopback port and says how it went, in lines of JSON.

`once PORT` ends after that. `stay PORT` does, for each line it reads, the same again: connected,
it sends the line and says what came back; refused, it tries to connect once more.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import struct
import sys

SO_COOKIE = 57


def say(**facts: object) -> None:
    sys.stdout.write(json.dumps(facts) + "\n")
    sys.stdout.flush()


def name(error: OSError) -> str:
    return errno.errorcode.get(error.errno or 0, str(error))


def connect(port: int) -> socket.socket | None:
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    sock.settimeout(10)
    cookie = struct.unpack("=Q", sock.getsockopt(socket.SOL_SOCKET, SO_COOKIE, 8))[0]
    try:
        sock.connect(("127.0.0.1", port))
    except OSError as error:
        say(outcome=name(error), cookie=cookie, pid=os.getpid())
        return None
    local = "{}:{}".format(*sock.getsockname())
    say(outcome="ok", cookie=cookie, pid=os.getpid(), local=local, remote=f"127.0.0.1:{port}")
    return sock


def stay(sock: socket.socket | None, port: int) -> None:
    for line in sys.stdin:
        if sock is None:
            sock = connect(port)
            continue
        try:
            sock.sendall(line.encode())
            data = sock.recv(65536)
            say(outcome="ok" if data == line.encode() else "closed")
        except OSError as error:
            say(outcome=name(error))


found = connect(int(sys.argv[2]))
if sys.argv[1] == "stay":
    stay(found, int(sys.argv[2]))
