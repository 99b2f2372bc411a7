# SPDX-License-Identifier: Apache-2.0
"""Ports for servers that are bound later, or again after a restart."""

from __future__ import annotations

import contextlib
import random
import socket


def free_port(ports: range) -> int:
    """A TCP port of 127.0.0.1 that nobody has. RuntimeError where none of a hundred is free.

    `ports` lie outside net.ipv4.ip_local_port_range: the kernel gives none of them to anybody.
    """
    for port in random.sample(ports, 100):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise RuntimeError(f"none of 100 ports from {ports[0]} to {ports[-1]} is free")
