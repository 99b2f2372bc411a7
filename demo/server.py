#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The demo's service: greets, and streams a slow download that says when each line was sent.

    server.py PORT_FILE

listens on a free port of 127.0.0.1 and writes its number to PORT_FILE. GET /hello answers at
once; GET /stream sends one line every 50 ms for ten minutes, each with the time (RFC 3339, UTC)
at which it was handed to the kernel. So a line with a later time than T cannot have reached a
client before T, whatever buffers lie between.

    server.py --free-ports COUNT

prints ports that nobody listens on.
"""

from __future__ import annotations

import random
import socket
import sys
import time
from contextlib import suppress
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Final

INTERVAL_S: Final = 0.05
STREAM_S: Final = 600.0


class Handler(BaseHTTPRequestHandler):
    """GET /hello and GET /stream."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """Answer."""
        # A client whose license ended goes away in the middle; that is the point of the demo.
        with suppress(OSError):
            if self.path == "/hello":
                self._hello()
            elif self.path == "/stream":
                self._stream()
            else:
                self.send_error(404)

    def _hello(self) -> None:
        body = b"hello from the orders service\n"
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _stream(self) -> None:
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        end = time.monotonic() + STREAM_S
        number = 0
        while time.monotonic() < end:
            number += 1
            sent = datetime.now(UTC).isoformat(timespec="milliseconds").removesuffix("+00:00")
            line = f"{sent}Z order {number:05d}\n".encode()
            self.wfile.write(b"%x\r\n%s\r\n" % (len(line), line))
            time.sleep(INTERVAL_S)
        self.wfile.write(b"0\r\n\r\n")

    def log_message(self, *_arguments: object) -> None:
        """Say nothing: the narration is the demo's."""


def free_ports(count: int) -> list[int]:
    """Ports that nobody has, outside the range that the kernel hands out by itself."""
    text = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text(encoding="ascii")
    low, high = (int(word) for word in text.split())
    ports = [port for port in range(10_000, 65_536) if not low <= port <= high]
    found: list[int] = []
    for port in random.sample(ports, len(ports)):
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            found.append(port)
        if len(found) == count:
            break
    return found


def main() -> None:
    """Serve until a signal."""
    if sys.argv[1] == "--free-ports":
        print(*free_ports(int(sys.argv[2])))
        return
    port_file = Path(sys.argv[1])
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    written = port_file.with_suffix(".new")
    written.write_text(f"{server.server_port}\n", encoding="ascii")
    written.rename(port_file)
    server.serve_forever()


if __name__ == "__main__":
    main()
