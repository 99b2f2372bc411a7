# SPDX-License-Identifier: Apache-2.0
"""The control plane's addresses: they pass whatever the policy says (DESIGN, failure policy).

They are looked up while names can be, and kept for a boot at which they cannot: the host must
reach its control plane before its resolvers answer.
"""

from __future__ import annotations

import ipaddress
import logging
import socket
from collections.abc import Iterable
from typing import Final

from licagent.domain.config import FailsafeSetting
from licagent.store.errors import StoreError
from licagent.store.statedir import StateDir
from licagent.uplink.client import UplinkError, uplink

_log: Final = logging.getLogger(__name__)

_DOCUMENT: Final = "control-addresses"
_SCHEMA: Final = "licagent.control-addresses/1"

_ADDRESSES_MAX: Final = 64
"""More would be a way to open the network by DNS."""

Address = tuple[str, int]


class Reach:
    """Addresses and ports at which the control plane answers."""

    def __init__(self, state: StateDir) -> None:
        self._state = state
        self._found: dict[str, tuple[Address, ...]] = {}  # host:port -> addresses
        try:
            body = state.read_document(_DOCUMENT, _SCHEMA)
            for name, addresses in (body or {"servers": {}})["servers"].items():
                self._found[name] = tuple((str(at), int(port)) for at, port in addresses)
        except StoreError as error:
            _log.error("the control plane's last addresses are not known: %s", error)

    @property
    def addresses(self) -> tuple[Address, ...]:
        """All of them, each once."""
        return tuple(sorted({each for found in self._found.values() for each in found}))

    def settings(self) -> tuple[FailsafeSetting, ...]:
        """Lines of the failsafe list."""
        return tuple(
            FailsafeSetting("out", str(ipaddress.ip_network(address)), (str(port),), "tcp")
            for address, port in self.addresses[:_ADDRESSES_MAX]
        )

    def resolve(self, servers: Iterable[str]) -> bool:
        """Look up each "host:port"; whether the addresses are others than before. Blocking.

        A name that does not resolve now keeps the addresses it had.
        """
        before = self.addresses
        found = {}
        for server in dict.fromkeys(servers):
            addresses = _look_up(server) or self._found.get(server, ())
            if addresses:
                found[server] = addresses
        self._found = found
        if self.addresses == before:
            return False
        self._state.write_document(
            _DOCUMENT, _SCHEMA, {"servers": {name: list(each) for name, each in found.items()}}
        )
        return True


def _look_up(server: str) -> tuple[Address, ...]:
    host, _, port = server.rpartition(":")
    way_out = uplink()
    if way_out is not None:
        try:
            return way_out.resolve(server)
        except UplinkError:
            return ()
    try:
        rows = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)
    except (OSError, ValueError, UnicodeError):
        return ()
    found = set()
    for _family, _type, _protocol, _name, place in rows:
        address = str(place[0]).partition("%")[0]
        found.add((address, int(port)))
    return tuple(sorted(found))
