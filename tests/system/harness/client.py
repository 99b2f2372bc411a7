# SPDX-License-Identifier: Apache-2.0
"""Connects to a loopback port and says how it went, in lines of JSON.

`once PORT` ends after that; `stay PORT` sends each line it reads and says what came back.
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
    print(json.dumps(facts), flush=True)


def connect(port: int) -> socket.socket | None:
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    sock.settimeout(10)
    cookie = struct.unpack("=Q", sock.getsockopt(socket.SOL_SOCKET, SO_COOKIE, 8))[0]
    try:
        sock.connect(("127.0.0.1", port))
    except OSError as error:
        say(
            outcome=errno.errorcode.get(error.errno or 0, str(error)),
            cookie=cookie,
            pid=os.getpid(),
        )
        return None
    local = "{}:{}".format(*sock.getsockname())
    say(outcome="ok", cookie=cookie, pid=os.getpid(), local=local, remote=f"127.0.0.1:{port}")
    return sock


def stay(sock: socket.socket | None) -> None:
    for line in sys.stdin:
        if sock is None:
            say(outcome="no socket")
            continue
        try:
            sock.sendall(line.encode())
            data = sock.recv(65536)
            say(outcome="ok" if data == line.encode() else "closed")
        except OSError as error:
            say(outcome=errno.errorcode.get(error.errno or 0, str(error)))


found = connect(int(sys.argv[2]))
if sys.argv[1] == "stay":
    stay(found)
