# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
import socket
import subprocess

import pytest

from licagent.host import isolated
from licagent.host.namespaces import run_inside
from licagent.host.netwatch import Link, LinkChange, list_links, watching


def test_loopback_is_there() -> None:
    links = list_links()
    assert sorted(link.name for link in links) == sorted(n for _, n in socket.if_nameindex())
    (loopback,) = (link for link in links if link.name == "lo")
    assert loopback.up
    assert loopback.index == socket.if_nametoindex("lo")
    assert loopback.mtu > 0
    assert loopback in isolated.list_links()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs CAP_NET_ADMIN")
def test_changes_are_seen_in_a_namespace(netns: str) -> None:
    def watch() -> list[LinkChange]:
        seen: list[LinkChange] = []
        with watching() as watch:
            assert [link.name for link in watch.links()] == ["lo"]
            for command in (
                ["link", "add", "blue", "type", "veth", "peer", "name", "red"],
                ["link", "set", "blue", "up"],
                ["link", "delete", "blue"],
            ):
                subprocess.run(["ip", "-n", netns, *command], check=True)
            while {change.link.name for change in seen if change.gone} != {"blue", "red"}:
                seen.extend(watch.wait())
        return seen

    with open(f"/run/netns/{netns}") as namespace:
        seen = run_inside(namespace.fileno(), watch)
    blue = [change.link for change in seen if change.link.name == "blue" and not change.gone]
    assert any(link.up for link in blue)
    assert not blue[0].up
    assert isinstance(blue[0], Link)
    assert blue[0].kind == "veth"
