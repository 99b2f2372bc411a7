# SPDX-License-Identifier: Apache-2.0
"""`control_sender.py PORT PACE_S`: connects to a loopback port and sends a byte again and again."""

from __future__ import annotations

import socket
import sys
import time

sock = socket.socket()
try:
    sock.connect(("127.0.0.1", int(sys.argv[1])))
except OSError:
    print('{"connected": false}', flush=True)
    sys.exit(1)
print('{"connected": true}', flush=True)
sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
pace_s = float(sys.argv[2])
try:
    while True:
        sock.send(b"x")
        time.sleep(pace_s)
except OSError:
    sys.exit(0)
