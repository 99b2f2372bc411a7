# SPDX-License-Identifier: Apache-2.0
"""Addresses to listen on: parsed, and held while worker processes share them."""

from __future__ import annotations

import ipaddress
import socket
from dataclasses import dataclass, replace

from licplane.api.settings import Addresses, ServerSettings
from licplane.errors import ExitCode, PlaneError

_WILDCARDS = frozenset({"0.0.0.0", "::", ""})  # noqa: S104  # recognized, not bound to


def split_address(address: str, what: str) -> tuple[str, int]:
    """Host and port of `host:port` or `[v6]:port`. Raises PlaneError USAGE."""
    host, colon, port = address.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        colon = ""
    if not colon or not host or not port.isascii() or not port.isdigit() or int(port) > 65_535:
        raise PlaneError(
            ExitCode.USAGE,
            f"{what}: {address!r} is no address",
            "Write host:port, such as 0.0.0.0:8443 or [::]:8443",
        )
    return host, int(port)


def join_address(host: str, port: int) -> str:
    """The other way round."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


@dataclass(frozen=True, slots=True)
class Held:
    """An address that is ours: bound, never listening, so that it stays ours between workers."""

    address: str
    socket: socket.socket


def hold(address: str, what: str) -> Held:
    """Take an address; port 0 becomes a free one.

    Raises PlaneError BUSY when somebody listens there, or it is not this machine's.
    """
    host, port = split_address(address, what)
    try:
        family, kind, number, _name, where = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind, number) as probe:
            # Without SO_REUSEPORT this fails where anybody listens, another licplane too.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(where)
        held = socket.socket(family, kind, number)
    except OSError as error:
        raise _taken(what, address, error) from error
    try:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        held.bind(where)
    except OSError as error:
        held.close()
        raise _taken(what, address, error) from error
    return Held(join_address(host, held.getsockname()[1]), held)


def _taken(what: str, address: str, error: OSError) -> PlaneError:
    return PlaneError(
        ExitCode.BUSY,
        f"{what}: the address {address} cannot be had ({error.strerror or error})",
        "Another program listens there, or it is not this machine's: choose another one",
    )


def server_names(settings: ServerSettings, addresses: Addresses) -> tuple[str, ...]:
    """Names and addresses that hosts may reach the server by, for its certificate."""
    found: dict[str, None] = {}
    for address in (
        addresses.control,
        addresses.public,
        settings.control_address,
        settings.public_address,
    ):
        if not address:
            continue
        host, _port = split_address(address, "address")
        if host in _WILDCARDS:
            found[socket.gethostname()] = None
        else:
            found[host] = None
            if host == "localhost" or _is_loopback(host):
                found["localhost"] = None
    found |= dict.fromkeys(settings.server_names)
    return tuple(found)


def metrics_address(settings: ServerSettings, worker: int) -> str:
    """Where a worker serves its metrics; "" for nowhere."""
    if not settings.metrics_listen:
        return ""
    host, port = split_address(settings.metrics_listen, "--metrics-listen")
    return join_address(host, port + worker if port else 0)


def advertised(settings: ServerSettings, addresses: Addresses) -> ServerSettings:
    """Settings with the addresses that hosts are told."""
    return replace(
        settings,
        control_address=settings.control_address or _reachable(addresses.control),
        public_address=settings.public_address or _reachable(addresses.public),
    )


def _reachable(address: str) -> str:
    host, port = split_address(address, "address")
    return join_address(socket.gethostname(), port) if host in _WILDCARDS else address


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
