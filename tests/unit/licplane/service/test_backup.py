# SPDX-License-Identifier: Apache-2.0
"""Backups: every row, of one moment, into either database; and what is not believed of a copy."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.support.usage import Spool, record
from tests.unit.licplane.service.billing.test_closing import october
from tests.unit.licplane.service.usage_sender import Sender, stored, totals
from tests.unit.licplane.service.world import (
    CHEAP,
    PASSPHRASE,
    ROOT,
    SETTINGS,
    START_MS,
    FakeHost,
    World,
    binding,
    license,
    resource,
)

from licplane.errors import Conflict, ExitCode, PlaneError
from licplane.issuer.keyring import open_keys
from licplane.issuer.registry import OpenRegistry, Registry
from licplane.service import foundations
from licplane.service.backup import (
    GENERATIONS_BEYOND,
    NUMBERS_BEYOND,
    create_backup,
    read_backup,
    restore_backup,
)
from licplane.service.core import PUT_BACK_SETTING
from licplane.service.plane import Plane
from licplane.service.requests import Change, Machine, PageRequest
from licplane.service.values import HostStatus
from licplane.service.work import run_once
from licplane.store.database import Store
from licplane.store.schema import metadata
from lictoken.claims import U32_MAX
from lictoken.sealed import Seal
from lictoken.trust import TrustStore
from lictoken.validity import Standing, standing

pytest_plugins = ["tests.support.postgres"]


def rows_of(store: Store) -> dict[str, list[str]]:
    """Every row of every table."""
    with store.reading() as reader:
        return {name: sorted(map(repr, reader.rows(name))) for name, _ in reader.tables()}


def filled(world: World) -> World:
    """With something in most tables."""
    world.apply(resource(), binding(), license(), license("spare"))
    host = world.host()
    host.connect()
    world.token()
    sender = Sender(world, host, Spool(host_id=host.id))
    sender.send(sender.spool.commit([record(number) for number in range(5)]))
    sender.send(sender.spool.lose(2))
    sender.send(sender.spool.commit([record(9)]))
    return world


def opened(store: Store, world: World) -> Plane:
    with store.reading() as reader:
        keys = open_keys(reader, lambda: PASSPHRASE)
    return Plane(store, keys, SETTINGS, now_ms=world.clock, cost=CHEAP)


@contextmanager
def other_place(kind: str, request: pytest.FixtureRequest, folder: Path) -> Iterator[Store]:
    """An empty database of a kind."""
    if kind == "sqlite":
        folder.mkdir(mode=0o700)
        with Store.open(str(folder)) as store:
            yield store
        return
    with request.getfixturevalue("postgres").database() as url, Store.open(url) as store:
        yield store


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_all_rows_come_back_in_either_database(
    both: World, kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    world, file = filled(both), tmp_path / "backup"
    made = create_backup(world.store, file, START_MS)
    assert read_backup(file) == made
    before = rows_of(world.store)
    assert sum(map(len, before.values())) == made.rows
    with other_place(kind, request, tmp_path / "other") as store:
        restore_backup(file, store, START_MS, untouched=True)
        assert rows_of(store) == before
        plane = opened(store, world)
        assert plane.verify_head().intact
        assert plane.verify_audit(ROOT).intact
        assert not plane.is_put_back
        with pytest.raises(PlaneError, match="already"):
            restore_backup(file, store, START_MS)


def test_a_copy_grants_nothing_until_it_was_looked_at(world: World, tmp_path: Path) -> None:
    filled(world)
    world.plane.create_admin(ROOT, Change(), name="ops", role=ROOT.role, means="token", ttl_s=3600)
    file = tmp_path / "backup"
    create_backup(world.store, file, START_MS)
    with other_place("sqlite", None, tmp_path / "other") as store:  # type: ignore[arg-type]
        restore_backup(file, store, START_MS)
        plane = opened(store, world)
        assert plane.is_put_back
        assert plane.list_join_tokens(ROOT) == ()
        assert all(one.revoked for one in plane.list_admins(ROOT))
        [host] = plane.list_hosts(ROOT, {}, _page()).items
        with pytest.raises(PlaneError, match="put back") as caught:
            plane.lease(host.host_id, b"k" * 32, "boot", b"n" * 16)
        assert caught.value.code is ExitCode.BUSY
        with store.reading() as reader, world.store.reading() as lost:
            numbers = [reader.rows("head"), lost.rows("head")]
            after, before = (next(iter(rows)) for rows in numbers)
        at = [c.name for c in metadata.tables["head"].columns].index("next_number")
        assert after[at] - before[at] == NUMBERS_BEYOND
        plane.refresh()
        revision = plane.revision
        assert plane.advance(ROOT, Change(), revision) == revision + 1
        assert not plane.is_put_back
        plane.refresh()
        plane.lease(host.host_id, b"k" * 32, "boot", b"n" * 16)


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_a_restore_that_was_interrupted_left_nothing_that_is_believed(
    world: World,
    kind: str,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Rows and doubt come together; also where the copy is of a copy that was doubted before."""
    filled(world)
    world.plane.create_admin(ROOT, Change(), name="ops", role=ROOT.role, means="token", ttl_s=3600)
    world.token(uses=5)
    with world.store.transaction() as transaction:
        transaction.put_setting(PUT_BACK_SETTING, b'{"at_unix_ms": 1}')
    file = tmp_path / "backup"
    create_backup(world.store, file, START_MS)
    upgrade = Store.upgrade

    def cut(store: Store, revision: str = "head") -> bool:
        if revision == "head":
            raise KeyboardInterrupt
        return upgrade(store, revision)

    with other_place(kind, request, tmp_path / "other") as store:
        monkeypatch.setattr(Store, "upgrade", cut)
        with pytest.raises(KeyboardInterrupt):
            restore_backup(file, store, START_MS + 5)
        monkeypatch.undo()
        store.upgrade()
        with store.reading() as reader:
            note = json.loads(reader.setting(PUT_BACK_SETTING) or b"{}")
            assert note["at_unix_ms"] == START_MS + 5
            assert reader.join_tokens() == ()
            assert [one.revoked_at_unix_ms for one in reader.admins()] == [START_MS + 5]
        assert opened(store, world).is_put_back


def test_generations_are_not_used_again(world: World, tmp_path: Path) -> None:
    """What is said after a restore reaches licenses that were renewed after the backup."""
    filled(world)
    file = tmp_path / "backup"
    create_backup(world.store, file, START_MS)
    world.apply(license("spare", expires="2100-02-01T00:00:00Z"))
    with world.store.reading() as reader:
        lost = Registry(reader).get("spare").latest
    with world.store.transaction() as transaction:
        record = OpenRegistry(transaction).get("acme-db")
        OpenRegistry(transaction).put(replace(record, generation=U32_MAX - 1))
    full = tmp_path / "full"
    create_backup(world.store, full, START_MS)
    with other_place("sqlite", None, tmp_path / "other") as store:  # type: ignore[arg-type]
        restore_backup(file, store, START_MS)
        plane = opened(store, world)
        plane.set_license_state(ROOT, Change(), "spare", "suspend")
        plane.set_license_state(ROOT, Change(), "spare", "reinstate")
        plane.apply(ROOT, Change(), [license("spare", expires="2100-03-01T00:00:00Z")])
        with store.reading() as reader:
            record = Registry(reader).get("spare")
        assert record.latest.generation > lost.generation
        suspended = record.statements[0].revocation
        assert standing(lost, [suspended]) is Standing.SUSPENDED
        assert lost.generation + 100 < suspended.generation <= GENERATIONS_BEYOND + 2
    with other_place("sqlite", None, tmp_path / "third") as store:  # type: ignore[arg-type]
        restore_backup(full, store, START_MS)
        opened(store, world).set_license_state(ROOT, Change(), "acme-db", "revoke")


def test_going_beyond_is_one_transaction_and_ends_the_doubt(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However far a host says it is, and whoever changes something in between."""
    filled(world)
    file = tmp_path / "backup"
    create_backup(world.store, file, START_MS)
    with other_place("sqlite", None, tmp_path / "other") as store:  # type: ignore[arg-type]
        restore_backup(file, store, START_MS)
        plane, between = opened(store, world), opened(store, world)
        plane.refresh()
        start, calls = plane.revision, 0

        def after_another(*args: Any) -> int:
            nonlocal calls
            calls += 1
            assert calls == 1
            between.apply(ROOT, Change(), [license("late")])
            return run_once(*args)

        monkeypatch.setattr(foundations, "run_once", after_another)
        beyond = start + foundations.ADVANCE_MAX
        assert plane.advance(ROOT, Change(), beyond) == beyond + 1
        assert not plane.is_put_back
        assert opened(store, world).refresh().intact
        again = opened(store, world)
        again.refresh()
        assert again.revision == beyond + 1
        assert again.apply(ROOT, Change(), [license("later")]).changed
        assert again.refresh().intact


def test_usage_comes_again_and_is_billed_once(world: World, tmp_path: Path) -> None:
    """What was sent after the backup is sent again; a period that was closed comes to the same."""
    world.apply(resource(), license())
    host, file = world.host(org="acme"), tmp_path / "backup"
    sender = Sender(world, host)
    batches = [sender.spool.commit([record(3 * n + i) for i in range(3)]) for n in range(3)]
    october(world)
    sender.send(batches[0])
    create_backup(world.store, file, START_MS)
    for batch in batches[1:]:
        sender.send(batch)
    wanted = totals(stored(world.store))
    bill = world.plane.money.close(ROOT, Change(), "standard", "2026-10")
    with other_place("sqlite", None, tmp_path / "other") as store:  # type: ignore[arg-type]
        restore_backup(file, store, START_MS)
        again = replace(world, plane=opened(store, world), store=store)
        later = Sender(again, replace(host, plane=again.plane), sender.spool)
        chain = later.open()
        assert (chain.acked_sequence, chain.acked_hash) == (3, batches[0].hash)
        with pytest.raises(Conflict):
            later.send(batches[0])
        for batch in batches[1:]:
            later.send(batch)
        assert totals(stored(store)) == wanted
        assert len({row["sequence"] for row in stored(store) if row["host_id"] == host.id}) == 9
        done = again.plane.money.close(ROOT, Change(), "standard", "2026-10")
        assert (done.changed, done.entries, done.total) == (True, bill.entries, bill.total)
        assert not again.plane.money.close(ROOT, Change(), "standard", "2026-10").changed


def test_what_hosts_remember_only_takes_away(world: World, tmp_path: Path) -> None:
    """A revocation is taken over, a reinstatement is not; nor is anything that we did not sign."""
    filled(world)
    file = tmp_path / "backup"
    world.plane.set_license_state(ROOT, Change(), "acme-db", "suspend")
    create_backup(world.store, file, START_MS)
    world.plane.set_license_state(ROOT, Change(), "acme-db", "reinstate")
    world.plane.set_license_state(ROOT, Change(), "spare", "revoke")
    [host] = world.plane.list_hosts(ROOT, {}, _page()).items
    world.plane.update_host(ROOT, Change(), host.host_id, labels={"org": "acme", "site": "two"})
    world.plane.refresh()
    view = world.plane.view_of(host.host_id)
    told = [
        one.payload
        for one in world.plane.view_snapshot(view).objects
        if one.kind.name == "REVOCATION"
    ]
    assigned = world.plane.host_state(host.host_id).assignment
    with other_place("sqlite", None, tmp_path / "other") as store:  # type: ignore[arg-type]
        restore_backup(file, store, START_MS)
        plane = opened(store, world)
        forged = Seal(assigned.payload + b"\x08\x01", assigned.kid, assigned.signature)
        nothing = plane.take_remembered(host.host_id, [b"x", told[0][:-4] + b"AAAA"], forged)
        assert (nothing.statements, nothing.assignment) == (0, False)
        found = plane.take_remembered(host.host_id, told, assigned)
        assert (found.statements, found.assignment) == (1, True)
        again = plane.take_remembered(host.host_id, told, assigned)
        assert (again.statements, again.assignment) == (0, False)
        with store.reading() as reader:
            standings = {one.jti: one.standing.value for one in Registry(reader)}
        assert standings == {"acme-db": "suspended", "spare": "revoked"}
        left = plane.get_host(ROOT, host.host_id)
        assert "site" not in left.labels  # what of them is wider is not known
        assert left.status is HostStatus.DRAINING
        assert plane.verify_head().intact
        assert plane.verify_audit(ROOT).intact


def test_a_host_that_was_put_out_since_is_out_again(world: World, tmp_path: Path) -> None:
    filled(world)
    file = tmp_path / "backup"
    create_backup(world.store, file, START_MS)
    [host] = world.plane.list_hosts(ROOT, {}, _page()).items
    world.plane.update_host(ROOT, Change(), host.host_id, labels={}, status=HostStatus.BANNED)
    assigned = world.plane.host_state(host.host_id).assignment
    with other_place("sqlite", None, tmp_path / "other") as store:  # type: ignore[arg-type]
        restore_backup(file, store, START_MS)
        plane = opened(store, world)
        plane.take_remembered(host.host_id, [], assigned)
        assert plane.get_host(ROOT, host.host_id).status is HostStatus.BANNED


def test_what_a_retired_key_signed_is_not_taken(world: World, tmp_path: Path) -> None:
    """Whoever has a key that leaked must not rule hosts and licenses by a host's memory."""
    filled(world)
    file = tmp_path / "backup"
    create_backup(world.store, file, START_MS)
    world.plane.set_license_state(ROOT, Change(), "spare", "revoke")
    [host] = world.plane.list_hosts(ROOT, {}, _page()).items
    world.plane.update_host(ROOT, Change(), host.host_id, labels={}, status=HostStatus.BANNED)
    world.plane.refresh()
    told = [
        one.payload
        for one in world.plane.view_snapshot(world.plane.view_of(host.host_id)).objects
        if one.kind.name == "REVOCATION"
    ]
    assigned = world.plane.host_state(host.host_id).assignment
    with other_place("sqlite", None, tmp_path / "other") as store:  # type: ignore[arg-type]
        restore_backup(file, store, START_MS)
        plane = opened(store, world)
        [leaked] = TrustStore.from_bytes(plane.trust())
        plane.create_key(ROOT, Change(), issuer="acme", passphrase=PASSPHRASE)
        plane.retire_key(ROOT, Change(), leaked.kid, resign=True, anyway=True)
        assert told
        found = plane.take_remembered(host.host_id, told, assigned)
        assert (found.statements, found.assignment) == (0, False)
        assert plane.get_host(ROOT, host.host_id).status is HostStatus.ACTIVE
        with store.reading() as reader:
            assert {one.standing.value for one in Registry(reader)} == {"active"}


@pytest.mark.parametrize(
    ("then", "since", "found"),
    [
        (HostStatus.ACTIVE, HostStatus.DRAINING, HostStatus.DRAINING),
        (HostStatus.DRAINING, HostStatus.ACTIVE, HostStatus.DRAINING),
        (HostStatus.DRAINING, HostStatus.LEAVING, HostStatus.LEAVING),
        (HostStatus.ACTIVE, HostStatus.EVICTED, HostStatus.EVICTED),
        (HostStatus.BANNED, HostStatus.ACTIVE, HostStatus.BANNED),
        (HostStatus.BANNED, HostStatus.EVICTED, HostStatus.BANNED),
    ],
)
def test_no_status_is_handed_back_that_is_more(
    world: World, tmp_path: Path, then: HostStatus, since: HostStatus, found: HostStatus
) -> None:
    host, file = world.host(), tmp_path / "backup"
    if then is not HostStatus.ACTIVE:
        world.plane.update_host(ROOT, Change(), host.id, labels={}, status=then)
    create_backup(world.store, file, START_MS)
    world.plane.update_host(ROOT, Change(), host.id, labels={}, status=since)
    told = world.plane.host_state(host.id)
    with other_place("sqlite", None, tmp_path / "other") as store:  # type: ignore[arg-type]
        restore_backup(file, store, START_MS)
        plane = opened(store, world)
        assert plane.take_remembered(host.id, [], told.assignment).assignment
        left = plane.host_state(host.id)
        assert left.status is found
        assert left.assignment_sequence == told.assignment_sequence + 1  # the host takes ours
        assert not plane.take_remembered(host.id, [], told.assignment).assignment


def test_an_agent_that_is_too_new_uses_up_no_token(world: World) -> None:
    machine = Machine("late-1", "b" * 32, "boot", "99.0.0", "6.1")
    late = FakeHost(world.plane, machine)
    with pytest.raises(PlaneError, match="newer than this control plane"):
        late.enroll(world.token().join)
    with world.store.reading() as reader:
        assert [one.uses for one in reader.join_tokens()] == [0]


def _page() -> PageRequest:
    return PageRequest()
