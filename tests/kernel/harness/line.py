# SPDX-License-Identifier: Apache-2.0
"""A client, a router and a server, joined by veth pairs: what goes over the wire is counted there.

The router's interfaces and nftables are the references; neither knows of processes. The links
towards the hosts segment (offloads off in the router), so that the router's transmit counters
see each packet by itself, whatever the hosts' own links were told.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Self

from tests.kernel.harness.namespaces import Netns

ETHERNET_BYTES: Final = 14
OFFLOADS: Final = ("tso", "gso", "gro", "tx-udp-segmentation")
CLIENT4: Final = "10.78.1.1"
SERVER4: Final = "10.78.2.1"
CLIENT6: Final = "fd78:1::1"
SERVER6: Final = "fd78:2::1"
_ENDS: Final = (("c", "10.78.1", "fd78:1:"), ("s", "10.78.2", "fd78:2:"))
_NFT: Final = """
table inet count {
    counter up_tcp {}
    counter up_udp {}
    counter down_tcp {}
    counter down_udp {}
    chain seen {
        type filter hook prerouting priority -300;
        iifname "rc" meta l4proto tcp counter name up_tcp
        iifname "rc" meta l4proto udp counter name up_udp
        iifname "rs" meta l4proto tcp counter name down_tcp
        iifname "rs" meta l4proto udp counter name down_udp
    }
    chain lost { type filter hook forward priority 0; }
}
"""


@dataclass(frozen=True, slots=True)
class Counted:
    """Packets, and their bytes from the IP header on."""

    packets: int
    bytes: int

    def __sub__(self, other: Counted) -> Counted:
        return Counted(self.packets - other.packets, self.bytes - other.bytes)


class Line:
    """The three namespaces. `client` and `server` are where traffic begins and ends."""

    def __init__(self) -> None:
        self._held = contextlib.ExitStack()

    def __enter__(self) -> Self:
        try:
            self._build()
        except BaseException:
            self._held.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._held.close()

    def _build(self) -> None:
        self.client, self.router, self.server = (
            self._held.enter_context(Netns.new()) for _ in range(3)
        )
        hosts = {"c": self.client, "s": self.server}
        for side, four, six in _ENDS:
            host = hosts[side]
            into = f"/proc/{os.getpid()}/fd/{host.descriptor}"
            self.router.ip(
                "link", "add", f"r{side}", "type", "veth", "peer", "name", "host0", "netns", into
            )
            for where, link, last in ((self.router, f"r{side}", 254), (host, "host0", 1)):
                # Nothing on the wire but what is sent here: no neighbour discovery, no reports.
                where.sysctl(f"ipv6/conf/{link}/accept_ra", "0")
                where.sysctl(f"ipv6/conf/{link}/addr_gen_mode", "1")
                where.ip("address", "add", f"{four}.{last}/24", "dev", link)
                where.ip("address", "add", f"{six}:{last}/64", "dev", link, "nodad")
                where.ip("link", "set", link, "up")
            host.ip("route", "add", "default", "via", f"{four}.254")
            host.ip("route", "add", "default", "via", f"{six}:254")
        for side, four, six in _ENDS:
            for where, link, to, last in (
                (self.router, f"r{side}", hosts[side], 1),
                (hosts[side], "host0", self.router, 254),
            ):
                mac = _link(to, "host0" if where is self.router else f"r{side}")["address"]
                for address in (f"{four}.{last}", f"{six}:{last}"):
                    where.ip("neigh", "replace", address, "lladdr", mac, "dev", link)
        self.router.sysctl("ipv4/ip_forward", "1")
        self.router.sysctl("ipv6/conf/all/forwarding", "1")
        self.nft(_NFT)
        for link in ("rc", "rs"):
            self._ethtool(self.router, link, on=False)
        self.offload(on=True)

    def offload(self, *, on: bool) -> None:
        """Segmentation by, and reassembly for, the hosts' own links."""
        # A veth link whose peer reassembles counts what the peer took, without Ethernet's header.
        self._header = 0 if on else ETHERNET_BYTES
        for host in (self.client, self.server):
            self._ethtool(host, "host0", on=on)

    def _ethtool(self, where: Netns, link: str, *, on: bool) -> None:
        state = "on" if on else "off"
        words = [word for name in OFFLOADS for word in (name, state)]
        command = ["ethtool", "-K", link, *words]
        where.run(lambda: subprocess.run(command, check=True, capture_output=True))

    def nft(self, text: str) -> None:
        """Add to the router's rules."""
        self.router.run(lambda: subprocess.run(["nft", "-f", "-"], input=text.encode(), check=True))

    def lose(self, one_in: int) -> None:
        """Drop packets that go to the server; 0: none."""
        rule = (
            f"add rule inet count lost iifname rc numgen random mod {one_in} == 0 drop\n"
            if one_in
            else ""
        )
        self.nft("flush chain inet count lost\n" + rule)

    def sent(self) -> Counted:
        """What the client sent, as its link gave it: whole only while its offloads are off."""
        return _counted(_link(self.router, "rc")["stats64"]["rx"])

    def arrived(self) -> Counted:
        """What the server was sent, packet by packet."""
        return _counted(_link(self.router, "rs")["stats64"]["tx"], self._header)

    def returned(self) -> Counted:
        """What the client was sent, packet by packet."""
        return _counted(_link(self.router, "rc")["stats64"]["tx"], self._header)

    def nft_counter(self, name: str) -> Counted:
        """One of nftables' counters: before anything is dropped."""
        done = self.router.run(
            lambda: subprocess.run(
                ["nft", "-j", "list", "counter", "inet", "count", name],
                check=True,
                capture_output=True,
            )
        )
        found = next(
            each["counter"] for each in json.loads(done.stdout)["nftables"] if "counter" in each
        )
        return Counted(found["packets"], found["bytes"])

    def inside(self, where: Netns) -> tuple[str, ...]:
        """What stands before a command that is to run there."""
        return ("nsenter", f"--net=/proc/{os.getpid()}/fd/{where.descriptor}", "--")


def _link(where: Netns, name: str) -> dict[str, Any]:
    done = where.run(
        lambda: subprocess.run(
            ["ip", "-s", "-j", "link", "show", "dev", name], check=True, capture_output=True
        )
    )
    found = json.loads(done.stdout)[0]
    assert isinstance(found, dict)
    return found


def _counted(row: dict[str, int], ethernet_bytes: int = ETHERNET_BYTES) -> Counted:
    return Counted(row["packets"], row["bytes"] - ethernet_bytes * row["packets"])
