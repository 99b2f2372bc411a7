# SPDX-License-Identifier: Apache-2.0
"""Network links: which there are, and being told when one comes, goes or changes.

rtnetlink(7) through pyroute2, imported when a function is called.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Link:
    """A network interface."""

    index: int
    name: str
    up: bool  # set up by the administrator (IFF_UP)
    carrier: bool  # running: it has a cable, or what stands for one
    kind: str | None  # veth, bridge, bond, wireguard...; None: hardware or loopback
    mtu: int


@dataclass(frozen=True, slots=True)
class LinkChange:
    """A link is there (new or changed), or gone."""

    link: Link
    gone: bool


_IFF_UP = 0x1
_IFF_RUNNING = 0x40


def list_links() -> tuple[Link, ...]:
    """All links of the caller's network namespace."""
    from pyroute2.iproute.linux import IPRoute  # type: ignore[import-untyped]

    with IPRoute() as route:
        return tuple(_link(message) for message in route.get_links())


@contextmanager
def watching() -> Iterator[LinkWatch]:
    """Watch the links of the caller's network namespace.

    From the moment the block is entered no change is missed: list after that, then wait.
    """
    from pyroute2.iproute.linux import IPRoute
    from pyroute2.netlink.rtnl import RTMGRP_LINK  # type: ignore[import-untyped]

    with IPRoute() as route:
        route.bind(groups=RTMGRP_LINK)
        yield LinkWatch(route)


class LinkWatch:
    """Changes of links, as they come."""

    def __init__(self, route: Any) -> None:
        """Use `watching`."""
        self._route = route

    def links(self) -> tuple[Link, ...]:
        """All links now."""
        return tuple(_link(message) for message in self._route.get_links())

    def wait(self) -> tuple[LinkChange, ...]:
        """The next changes; waits for the first."""
        return tuple(
            LinkChange(_link(message), message["event"] == "RTM_DELLINK")
            for message in self._route.get()
            if message.get("event") in ("RTM_NEWLINK", "RTM_DELLINK")
        )


def _link(message: Any) -> Link:
    info = message.get_attr("IFLA_LINKINFO")
    return Link(
        index=message["index"],
        name=message.get_attr("IFLA_IFNAME") or "",
        up=bool(message["flags"] & _IFF_UP),
        carrier=bool(message["flags"] & _IFF_RUNNING),
        kind=info.get_attr("IFLA_INFO_KIND") if info is not None else None,
        mtu=message.get_attr("IFLA_MTU") or 0,
    )
