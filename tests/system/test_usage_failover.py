# SPDX-License-Identifier: Apache-2.0
"""PostgreSQL fails over to a streaming standby while usage comes in: what is kept, and what is said
of the rest. The same licplane process goes on, by the addresses of both servers.

One control plane for all tests, from fail-over to fail-over: making another one takes longer than
what is shown with it. Two tests say what that asks of their order.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from psycopg import sql
from tests.bench.usage_throughput import (
    check_exactly_once,
    enrolled,
    issue_licenses,
    run_agent,
    start_agent,
    stored,
)
from tests.support.postgres_standby import Pair, running_pair
from tests.support.usage_agent import Outcome, Settings, total
from tests.system.harness.controlplane import ControlPlane
from tests.system.harness.scene import eventually

from licplane.store.announce_postgres import PostgresAnnouncer
from licplane.store.catalog_model import Kind, ObjectDraft, Scope
from licplane.store.database import Store

if TYPE_CHECKING:
    from tests.support.postgres import Postgres

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

NAME = "licplane"


@pytest.fixture(scope="module")
def servers() -> Iterator[Pair]:
    with running_pair() as made:
        made.primary.run(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(NAME)))
        yield made


@pytest.fixture
def pair(servers: Pair) -> Pair:
    """A primary that the control plane is at, and a standby that streams."""
    if servers.is_promoted:
        servers.renew()
    return servers


@pytest.fixture(scope="module")
def plane(servers: Pair) -> Iterator[ControlPlane]:
    """A control plane that knows both servers."""
    with ControlPlane(database=servers.url(NAME)) as made:
        made.make_keys()
        # Records of tests have dates of their own: none may be too old to be kept.
        made.do("usage", "retention", "--records", "0", "--hourly", "0")
        made.start()
        issue_licenses(made)
        yield made


def ask(server: Postgres, query: str, *values: object) -> Any:
    """One value, from this server and no other."""
    where = server.url(NAME).replace("postgresql+psycopg", "postgresql")
    with psycopg.connect(where, autocommit=True) as connection:
        row = connection.execute(query.encode(), values).fetchone()
    return row[0] if row else None


def acked(server: Postgres, host_id: str) -> int:
    query = "SELECT coalesce(sum(acked_sequence), 0) FROM usage_epochs WHERE host_id = %s"
    return int(ask(server, query, host_id))


def verified(plane: ControlPlane) -> None:
    """`usage verify` and `audit verify` find nothing."""
    check = plane.cli("usage", "verify")
    assert check.status == 0, check
    assert plane.ask("audit", "verify")["intact"] is True


def owned(server: Postgres) -> None:
    """Each row's owner and scope are there: without them it would be in no sum by unit or user."""
    for table, key in (("usage_owners", "owner_id"), ("usage_scopes", "scope_id")):
        query = f"SELECT count(*) FROM usage_records LEFT JOIN {table} USING ({key})"
        assert ask(server, f"{query} WHERE {table}.{key} IS NULL") == 0, table


def test_what_an_asynchronous_standby_lost_comes_again(
    pair: Pair, plane: ControlPlane, tmp_path: Path
) -> None:
    """Acknowledged, then gone with the primary: the host still has it, and sends it again."""
    identity = enrolled(plane)
    settings = Settings(str(tmp_path / "spool"), identity.write(), plane.control, 6_000)
    pair.caught_up()
    pair.part()
    # The standby has seen nothing of this: no chain, no owners, no parts of tables.
    assert ask(pair.standby, "SELECT count(*) FROM usage_owners") == 0, "the first to send usage"
    run_agent(settings, 300)
    # Of an earlier epoch, too: one that the host is through with, and has noted so on its disk.
    slowly = dataclasses.replace(settings, each=100, a_second=500)
    run_agent(dataclasses.replace(slowly, records=7_000, beside=True), 300)
    assert acked(pair.primary, identity.host_id) == 7_000
    pair.fail_over()
    assert acked(pair.standby, identity.host_id) == 0
    outcome = run_agent(dataclasses.replace(slowly, records=9_000), 300)
    assert outcome.alarms == []
    check_exactly_once(pair.standby.url(NAME), identity.host_id, 9_000)
    owned(pair.standby)
    verified(plane)
    # By unit, which is the owner's: a record without its owner would be missing in it.
    shown = plane.ask("usage", "--by", "unit", "--since", "2026-09-01")
    cpu_ns = sum(int(line["quantities"].get("cpu_ns", 0)) for line in shown["usage"])
    assert cpu_ns == total(1, 9_000)["cpu_ns"], shown


def test_what_no_host_has_any_more_is_a_gap_by_name(
    pair: Pair, plane: ControlPlane, tmp_path: Path
) -> None:
    identity = enrolled(plane)
    settings = Settings(
        str(tmp_path / "spool"),
        identity.write(),
        plane.control,
        2_000,
        each=200,
        spool_max_bytes=400_000,  # what was acknowledged goes as soon as there is need for room
    )
    run_agent(settings, 300)
    pair.caught_up()
    kept = acked(pair.standby, identity.host_id)
    assert kept == 2_000
    pair.part()
    run_agent(dataclasses.replace(settings, records=20_000), 300)
    assert acked(pair.primary, identity.host_id) == 20_000
    pair.fail_over()
    run_agent(dataclasses.replace(settings, records=22_000), 300)
    assert acked(pair.standby, identity.host_id) == 22_000
    found = stored(pair.standby.url(NAME), identity.host_id)
    assert found["rows"] == found["sequences"] == found["licensed"]
    lost = ask(
        pair.standby,
        "SELECT coalesce(sum(last_sequence - first_sequence + 1), 0) FROM usage_gaps"
        " WHERE host_id = %s",
        identity.host_id,
    )
    assert 0 < lost <= 18_000
    assert found["rows"] + lost == 22_000
    code = "SELECT count FROM usage_alarms WHERE host_id = %s AND code = 'gap'"
    assert ask(pair.standby, code, identity.host_id) >= 1
    verified(plane)


def test_a_synchronous_standby_has_each_record_once(
    pair: Pair, plane: ControlPlane, tmp_path: Path
) -> None:
    assert f"@127.0.0.1:{pair.primary.port}," in plane.database, "the first one in the URL"
    pair.be_synchronous()
    identity = enrolled(plane)
    # Some ten seconds of usage: there is more to come when the primary fails.
    records = 20_000
    settings = Settings(
        str(tmp_path / "spool"), identity.write(), plane.control, records, each=500, a_second=2_000
    )
    with start_agent(settings) as process:
        eventually(lambda: acked(pair.primary, identity.host_id) >= 2_000, "usage comes in")
        pair.fail_over()
        before = acked(pair.standby, identity.host_id)
        eventually(
            lambda: before == records or acked(pair.standby, identity.host_id) > before,
            "and goes on",
        )
        # The old primary comes back, as somebody's restart would have it: it takes changes too,
        # and it is the first one in our URL.
        pair.primary.start()
        at_return = acked(pair.primary, identity.host_id)
        out, _ = process.communicate(timeout=300)
        assert process.returncode == 0
    outcome = Outcome(**json.loads(out))
    assert outcome.alarms == []
    check_exactly_once(pair.standby.url(NAME), identity.host_id, records)
    owned(pair.standby)
    verified(plane)
    assert acked(pair.primary, identity.host_id) == at_return < records
    # A process that has never seen the other one finds the right one too, also for a change.
    plane.do("host", "label", identity.host_id, "site=two")
    labels = "SELECT labels FROM hosts WHERE host_id = %s"
    assert "two" in ask(pair.standby, labels, identity.host_id)
    assert "two" not in ask(pair.primary, labels, identity.host_id)
    # Alone it is not taken for the database: what was seen once is not forgotten.
    pair.standby.stop()
    late = dataclasses.replace(settings, records=records + 500)
    with start_agent(late) as process:
        eventually(lambda: "left behind" in plane.log(), "it is refused")
        assert acked(pair.primary, identity.host_id) == at_return
        pair.standby.start()
        process.communicate(timeout=300)
        assert process.returncode == 0
    check_exactly_once(pair.standby.url(NAME), identity.host_id, records + 500)


def test_a_catalog_that_went_back_is_said_and_advanced(pair: Pair, plane: ControlPlane) -> None:
    """A revocation that only the lost primary had: nothing is served on top of the older state."""
    pair.caught_up()
    pair.part()
    before = plane.metric("licplane_catalog_revision")
    plane.do("license", "revoke", "license-3", "--reason", "contract ended")
    eventually(lambda: plane.metric("licplane_catalog_revision") > before, "it is served")
    pair.fail_over()
    eventually(lambda: "went back" in plane.log(), "the server sees it")
    assert not ready(plane)
    plane.stop()
    plane.do("db", "advance", "--reason", "fail-over lost transactions")
    plane.do("license", "revoke", "license-3", "--reason", "contract ended")
    plane.start()
    eventually(lambda: ready(plane), "it serves again")
    assert plane.ask("license", "show", "license-3")["license"]["state"] == "revoked"
    assert plane.ask("audit", "verify")["intact"] is True


async def test_a_listener_leaves_a_primary_that_was_left_behind(pair: Pair) -> None:
    """Both live on. The engine's connections break, the one that listens does not."""

    def change(store: Store, name: str) -> None:
        with store.transaction() as transaction:
            transaction.put_object(ObjectDraft(Kind.RESOURCE, name, Scope(), b""))

    pair.primary.run(sql.SQL("CREATE DATABASE listened"))
    with Store.open(pair.url("listened")) as store:
        store.upgrade()
        pair.caught_up()
        subscription = await PostgresAnnouncer(store._engine, poll_s=0.1).listen()
        try:
            pair.promote()
            pair.refuse_changes()
            store._engine.dispose()
            for name in "ab":
                await asyncio.to_thread(change, store, name)
                async with asyncio.timeout(30):
                    await subscription.wait()
        finally:
            await subscription.close()


def ready(plane: ControlPlane) -> bool:
    """What /-/ready says."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"http://{plane.metrics}/-/ready", timeout=10) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False
