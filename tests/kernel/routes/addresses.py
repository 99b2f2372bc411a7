# SPDX-License-Identifier: Apache-2.0
"""Addresses, links and ports that the programs and the harness agree on."""

from __future__ import annotations

from typing import Final

LOOPBACKS4: Final = ("127.0.0.1", "127.0.0.2")
LOOPBACKS6: Final = ("::1",)
OTHER_LOOPBACK4: Final = "127.0.0.2"

FRESH4: Final = "10.76.0.1"
"""Second address of loopback in network "fresh": packets from outside may go to it."""
FRESH_SOURCE4: Final = "10.76.1.9"
"""Nobody's address there; crafted packets come from it."""

CLIENT4: Final = "10.77.0.1"
SERVER4: Final = "10.77.0.2"
CLIENT6: Final = "fd77::1"
SERVER6: Final = "fd77::2"
CLIENT_MAC: Final = "02:77:00:00:00:01"
SERVER_MAC: Final = "02:77:00:00:00:02"
CLIENT_LINK: Final = "route0"
SERVER_LINK: Final = "route1"
"""The veth pair of network "veth"; its MTU is 1500 bytes."""

SOURCE_PORT: Final = 7
"""Source port of crafted packets: below the ephemeral range, so that it is nobody's."""

EXPERIMENTAL_PROTOCOL: Final = 253
"""RFC 3692: an IP protocol for experiments."""
