# SPDX-License-Identifier: Apache-2.0
"""Several servers over one PostgreSQL, and several processes behind one address."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from psycopg import sql
from tests.system.harness.controlplane import ControlPlane, Host, binding
from tests.system.harness.scene import STRANGER, eventually

if TYPE_CHECKING:
    from tests.support.postgres import Postgres

MakePlane = Callable[..., ControlPlane]
MakeHost = Callable[..., Host]

pytest_plugins = ["tests.support.postgres"]


def test_two_replicas_and_one_dies(
    postgres_url: str, make_plane: MakePlane, make_host: MakeHost
) -> None:
    first = make_plane(database=postgres_url)
    second = make_plane(replica_of=first)
    hosts = {name: make_host(of=each) for name, each in (("a", first), ("b", second))}
    # Join tokens name the addresses of the server that was started last; each host gets its own.
    for host in hosts.values():
        host.agent.settings += f'control = "{host.plane.control}"\n'
        host.agent.stop()
        host.agent.start()
        host.enroll(host.plane.join())
    hosts["a"].licensed()
    eventually(lambda: all(row["connected"] for row in first.hosts().values()), "both connected")
    # What one is told reaches the hosts of the other, by NOTIFY.
    for number, plane in enumerate((first, second)):
        revision = plane.apply(binding(uid=62_100 + number))["revision"]
        eventually(
            lambda revision=revision: all(
                row["acked_revision"] >= revision for row in first.hosts().values()
            ),
            "in force on the hosts of both",
        )
    # One dies: its host moves over, the other's goes on.
    first.kill()
    a = hosts["a"]
    assert a.connect() == "ok"
    a.agent.settings = a.agent.settings.replace(first.control, second.control)
    a.agent.stop()
    a.agent.start()
    eventually(lambda: all(row["connected"] for row in second.hosts().values()), "moved over")
    second.apply(binding(uid=STRANGER))
    a.until("ok", STRANGER)
    second.do("license", "revoke", "acme-db")
    a.until("EKEYREVOKED")
    assert second.cli("audit", "verify").status == 0
    found = {row["status"] for row in second.hosts().values()}
    assert found == {"active"}, "moving is no cloning"


def test_changes_are_found_without_their_announcement(
    postgres: Postgres, postgres_url: str, make_plane: MakePlane, make_host: MakeHost
) -> None:
    """NOTIFY is only a hint: polling finds what it did not tell."""
    plane = make_plane(database=postgres_url)
    host = make_host(of=plane)
    host.enroll()
    host.licensed()
    # Every listener's connection is ended: announcements in the meantime are lost.
    postgres.run(
        sql.SQL(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query ILIKE 'LISTEN%'"
        )
    )
    plane.apply(binding(uid=STRANGER))
    host.until("ok", STRANGER)


def test_processes_behind_one_address(make_plane: MakePlane, make_host: MakeHost) -> None:
    plane = make_plane("--workers", "2")
    children = Path(f"/proc/{plane.pid}/task/{plane.pid}/children").read_text().split()
    assert len(children) >= 2
    hosts = [make_host(of=plane) for _ in range(4)]
    join = plane.join(uses=4)
    for host in hosts:
        host.enroll(join)
    hosts[0].licensed()
    revision = plane.apply(binding(uid=STRANGER))["revision"]
    eventually(
        lambda: all(row["acked_revision"] >= revision for row in plane.hosts().values()),
        "hosts of all workers",
    )
    assert len(plane.hosts()) == 4
    status = plane.stop()
    assert status == 0
    end = time.monotonic() + 20
    while any(Path(f"/proc/{child}").exists() for child in children):
        assert time.monotonic() < end, "a worker stays"
        time.sleep(0.1)
