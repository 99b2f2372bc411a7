# SPDX-License-Identifier: Apache-2.0
"""The authority changes while hosts hang on several servers, one of them with two workers."""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Callable

import pytest
from tests.system.harness.controlplane import START_S, ControlPlane, Host, binding
from tests.system.harness.looking import roots
from tests.system.harness.scene import STRANGER, eventually
from tests.system.test_fleet_rotation import STALE_S, not_ready, reported, talks

MakePlane = Callable[..., ControlPlane]
MakeHost = Callable[..., Host]

pytest_plugins = ["tests.support.postgres"]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

_TRIES = 8
"""Connections that are looked at, of which the kernel gives each worker some."""


def shows(address: str, pem: bytes) -> bool:
    """Whether a server's chain is verified by this root alone."""
    host, _, port = address.rpartition(":")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.load_verify_locations(cadata=pem.decode())
    try:
        with (
            socket.create_connection((host, int(port)), timeout=10) as plain,
            context.wrap_socket(plain),
        ):
            return True
    except OSError:  # not by this root, or a worker that is not there yet
        return False


def every_worker_shows(address: str, pem: bytes) -> bool:
    """The same for several connections in a row."""
    return all(shows(address, pem) for _ in range(_TRIES))


def active_pem(plane: ControlPlane) -> bytes:
    """The root that issues now."""
    with plane.opened() as service:
        authorities = service._core.authorities()
        return bytes(authorities.issuing.pem)


def test_hosts_on_both_servers_change_over(
    postgres_url: str, make_plane: MakePlane, make_host: MakeHost
) -> None:
    first = make_plane("--workers", "2", database=postgres_url)
    second = make_plane(replica_of=first)
    servers = (first, second)
    hosts = [make_host(of=each) for each in (first, first, second)]
    for host in hosts:
        # Join tokens name the addresses of the server that was started last.
        host.agent.settings += f'control = "{host.plane.control}"\n'
        host.agent.stop()
        host.agent.start()
        host.enroll(host.plane.join())
    hosts[0].licensed()
    hosts[2].plane.apply(hosts[2].resource("other"), binding(uid=STRANGER))
    pids = [host.agent.pid for host in hosts]
    old = roots(first)["active"].fingerprint
    with hosts[0].program() as (program, report):
        assert report["outcome"] == "ok"

        first.do("ca", "create", "--reason", "every few years")
        created_s = time.monotonic()
        assert second.cli("ca", "create").status == 7  # one at a time, also of another server
        eventually(lambda: roots(second)["coming"].hosts == 3, "all hosts trust the next root")
        for token in first.ask("token", "list")["tokens"]:
            if token["uses"] < token["uses_max"]:
                first.do("token", "delete", token["id"])
        time.sleep(max(0.0, created_s + STALE_S - time.monotonic()))
        assert not_ready(first, "coming") == []

        # Promoted at one server: the other one and each worker show it, and issue by it.
        second.do("ca", "promote")
        pem = active_pem(first)
        for server in servers:
            for address in (server.control, server.public):
                eventually(
                    lambda address=address: every_worker_shows(address, pem),
                    f"the new root at {address}",
                )
        eventually(lambda: not not_ready(first, "active"), "every host has a new certificate")
        for host in hosts:
            eventually(lambda host=host: host.control["state"] == "connected", "connected")
        first.do("ca", "retire", old[:12])
        for host in hosts:
            eventually(
                lambda host=host: (found := reported(first, host)) and old not in found,
                "the host trusts only the new root",
            )
        assert talks(program)
    # All servers serve all of them, both ways.
    revision = second.apply(binding("acme-db", 62_100))["revision"]
    eventually(
        lambda: all(row["acked_revision"] >= revision for row in first.hosts().values()),
        "in force on the hosts of both",
    )
    assert [host.agent.pid for host in hosts] == pids
    assert {row["status"] for row in first.hosts().values()} == {"active"}
    for server in servers:
        newcomer = make_host(of=server)
        newcomer.agent.settings += f'control = "{server.control}"\n'
        newcomer.agent.stop()
        newcomer.agent.start()
        newcomer.enroll(server.join())
        eventually(lambda newcomer=newcomer: newcomer.control["state"] == "connected", "a newcomer")
    # A server that is started anew shows what is valid now.
    first.kill()
    first.start()
    end_s = time.monotonic() + START_S  # its workers begin to listen one after the other
    while not every_worker_shows(first.control, pem):
        assert time.monotonic() < end_s, first.log()
        time.sleep(0.5)
    # Each try that failed while it was away has doubled the wait for the next one.
    eventually(
        lambda: hosts[0].control["state"] == "connected",
        "connected to it again",
        within_s=START_S,
    )
    assert first.ask("audit", "verify")["intact"] is True
