# SPDX-License-Identifier: Apache-2.0
"""What hosts get comes from rows that were signed, and nothing else."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import text
from tests.unit.licplane.service.world import (
    PASSPHRASE,
    ROOT,
    SETTINGS,
    World,
    binding,
    license,
    make_world,
    resource,
)

from licapi.control.v1 import sync_pb2
from licplane.errors import ExitCode, PlaneError
from licplane.issuer.keyring import NO_KEYS, open_keys, seal_key
from licplane.service.plane import Plane
from licplane.service.requests import Change, Document, PageRequest
from licplane.service.values import CatalogObject, Kind, View
from licplane.store.database import Store
from lictoken.digest import digest_of
from lictoken.keys import SigningKey
from lictoken.sealed import SealPurpose, unseal
from lictoken.trust import TrustStore

pytest_plugins = ["tests.support.postgres"]
EAST = View("acme", "", "prod", "east")
WEST = View("acme", "", "prod", "west")
OTHER = View("other")


def tamper(world: World, statement: str, **values: object) -> None:
    """What somebody does who can write to the database."""
    with world.store._engine.begin() as connection:
        connection.execute(text(statement), values)


def scoped(name: str, *regions: str) -> Document:
    return binding(name, scope={"org": "acme", "regions": list(regions)})


def model(objects: tuple[CatalogObject, ...]) -> dict[tuple[Kind, str], bytes]:
    return {(one.kind, one.name): one.payload for one in objects}


def test_a_manifest_says_what_a_view_is(both: World) -> None:
    both.apply(scoped("a", "east"), resource(), license())
    state = both.plane.view_snapshot(EAST)
    assert state.digest == digest_of((one.kind, one.name, one.payload) for one in state.objects)
    seal = both.plane.sign_manifest(EAST, state.revision, state.digest, state.count)
    payload = unseal(SealPurpose.SNAPSHOT, seal, TrustStore.from_bytes(both.plane.trust()))
    manifest = sync_pb2.SnapshotManifest.FromString(payload)
    assert (manifest.view.region, manifest.revision, manifest.digest, manifest.objects) == (
        "east",
        state.revision,
        state.digest,
        len(state.objects),
    )


def test_a_view_shows_its_own_only(world: World) -> None:
    world.apply(scoped("a", "east"), scoped("b", "west"), resource(scope={"org": "other"}))
    east, other = (model(world.plane.view_snapshot(view).objects) for view in (EAST, OTHER))
    assert (Kind.BINDING, "a") in east
    assert (Kind.BINDING, "b") not in east
    assert (Kind.RESOURCE, "db") not in east
    assert set(other) == {(Kind.RESOURCE, "db"), (Kind.TRUST, "trust")}


def test_what_moves_away_is_removed_there_only(both: World) -> None:
    both.apply(scoped("a", "east"))
    since = both.plane.revision
    for view in (EAST, WEST, OTHER):
        both.plane.view_snapshot(view)
    both.apply(scoped("a", "west"))
    (gone,) = both.plane.view_changes(EAST, since).objects
    (came,) = both.plane.view_changes(WEST, since).objects
    assert (gone.removed, gone.payload, came.removed) == (True, b"", False)
    assert both.plane.view_changes(OTHER, since).objects == ()
    both.apply(Document("binding", "a", ""), delete=True)
    assert [one.removed for one in both.plane.view_changes(EAST, since).objects] == [True]
    assert both.plane.view_changes(OTHER, since).objects == ()


def test_revocations_come_first(world: World) -> None:
    world.apply(license())
    since = world.plane.revision
    world.apply(*(binding(f"b{at}") for at in range(3)))
    world.plane.set_license_state(ROOT, Change(), "acme-db", "revoke")
    world.plane.refresh()
    kinds = [one.kind for one in world.plane.view_changes(View("acme"), since).objects]
    assert kinds == [Kind.REVOCATION, Kind.BINDING, Kind.BINDING, Kind.BINDING]
    assert world.plane.view_snapshot(View("acme")).objects[0].kind is Kind.REVOCATION


def test_who_is_too_far_behind_or_ahead_gets_everything(world: World) -> None:
    world.apply(binding("z"))
    world.apply(Document("binding", "z", ""), delete=True)
    for at in range(5):
        world.apply(binding("a", selectors=[f"unix:uid:{at}"]))
    for since in (0, -1, world.plane.revision + 1, 2**60):
        delta = world.plane.view_changes(EAST, since)
        assert (delta.reset, delta.from_revision) == (True, 0)
    with world.store.transaction() as transaction:
        transaction.compact_changes(world.plane.revision - 1)
    plane = world.again()
    plane.refresh()
    assert plane.view_changes(EAST, 1).reset
    assert not plane.view_changes(EAST, world.plane.revision - 1).reset
    assert not plane.view_changes(EAST, world.plane.revision).objects


@settings(max_examples=25)
@given(
    steps=st.lists(
        st.tuples(
            st.sampled_from("abc"),
            st.sampled_from(["", "east", "west", "both", "every"]),
            st.integers(0, 2),
        ),
        min_size=1,
        max_size=12,
    ),
    cold=st.booleans(),
)
def test_any_delta_leads_to_the_snapshot(
    steps: list[tuple[str, str, int]], cold: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """From every revision, in every view, whatever moved where in between."""
    folder = tmp_path_factory.mktemp("state") / "s"
    folder.mkdir(mode=0o700)
    with Store.in_folder(folder) as store:
        world = make_world(store)
        seen = {view: {world.plane.revision: snapshot(world.plane, view)} for view in (EAST, WEST)}
        for name, where, uid in steps:
            regions = {"east": ["east"], "west": ["west"], "both": ["east", "west"], "every": []}
            if where:
                world.apply(
                    binding(
                        name,
                        selectors=[f"unix:uid:{uid}"],
                        scope={"org": "acme", "regions": regions[where]},
                    )
                )
            else:
                world.apply(Document("binding", name, ""), delete=True)
            for view, states in seen.items():
                states[world.plane.revision] = snapshot(world.plane, view)
        plane = world.plane
        if cold:
            plane = world.again()
            plane.refresh()
        for view, states in seen.items():
            for revision, had in states.items():
                delta = plane.view_changes(view, revision)
                assert not delta.reset
                for one in delta.objects:
                    if one.removed:
                        had.pop((one.kind, one.name), None)
                    else:
                        had[one.kind, one.name] = one.payload
                assert had == snapshot(plane, view)
                assert delta.digest == digest_of((k, n, p) for (k, n), p in had.items())
                assert delta.count == len(had)


def snapshot(plane: Plane, view: View) -> dict[tuple[Kind, str], bytes]:
    return model(plane.view_snapshot(view).objects)


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE objects SET payload = :payload WHERE name = 'b'",
        "UPDATE objects SET scope = :scope WHERE name = 'b'",
        "DELETE FROM objects WHERE name = 'b'",
    ],
)
def test_altered_rows_are_not_served(both: World, statement: str) -> None:
    both.apply(scoped("b", "east"))
    before = both.plane.view_snapshot(EAST)
    values = {
        "payload": b'{"license":"x","name":"b","selectors":["host"]}',
        "scope": '["","",[],[]]',
    }
    tamper(both, statement, **{k: v for k, v in values.items() if f":{k}" in statement})
    check = both.plane.verify_head()
    assert not check.intact
    assert "not those signed" in check.problem
    assert both.plane.view_snapshot(EAST) == before  # the last good state goes on
    assert not both.plane.refresh().intact  # and the alarm
    fresh = both.again()
    assert not fresh.refresh().intact  # and one that starts now has nothing to say
    assert fresh.view_snapshot(EAST).objects == ()


def test_an_alarm_ends_with_its_cause(world: World) -> None:
    world.apply(binding())
    with world.store.reading() as reader:
        found = reader.object(Kind.BINDING, "b")
    assert found is not None
    tamper(world, "UPDATE objects SET payload = :p WHERE name = 'b'", p=b"{}")
    assert not world.plane.housekeeping().intact
    # What comes properly is served on: it is judged by what was verified before.
    assert world.apply(binding("c")).revision == world.plane.revision
    tamper(world, "UPDATE objects SET payload = :p WHERE name = 'b'", p=found.payload)
    assert world.plane.housekeeping().intact
    assert world.plane.refresh().intact


def test_an_altered_database_is_not_signed(both: World) -> None:
    both.apply(binding())
    tamper(both, "UPDATE objects SET payload = :p WHERE name = 'b'", p=b"{}")
    with pytest.raises(PlaneError) as error:
        both.plane.apply(ROOT, Change(), [binding(selectors=["host"])])
    assert error.value.code is ExitCode.INTERNAL
    assert not both.again().verify_head().intact


def test_a_key_put_beside_ours_signs_nothing(world: World) -> None:
    """Somebody who writes to the database adds a key in the clear, and signs with it."""
    with world.store.transaction() as transaction:
        key = SigningKey.create("acme")
        transaction.put_key(seal_key(key, None, 0, None))
    with world.store.reading() as reader:
        keys = open_keys(reader, lambda: PASSPHRASE)
    assert key.kid in keys.signing
    assert key.kid not in keys.counted
    plane = Plane(world.store, keys, SETTINGS, now_ms=world.clock)
    assert plane.refresh().intact
    assert plane.sign_manifest(EAST, 1, b"", 0).kid != key.kid


def test_a_database_that_went_back_in_time(world: World) -> None:
    world.apply(binding())
    with world.store.reading() as reader:
        head = reader.head()
    world.apply(binding("c"))
    assert head.seal is not None
    tamper(
        world,
        "UPDATE head SET revision = :revision",
        revision=head.revision,
    )
    check = world.plane.refresh()
    assert not check.intact
    assert "went back" in check.problem


def test_without_keys_one_may_read_and_not_change(world: World) -> None:
    world.apply(resource())
    plane = Plane(world.store, None, SETTINGS)
    assert plane.list_hosts(ROOT, {}, PageRequest()).items == ()
    with pytest.raises(PlaneError) as error:
        plane.apply(ROOT, Change(), [binding()])
    assert error.value.code is ExitCode.PERMISSION
    assert "passphrase" in str(error.value)
    with world.store.reading() as reader, pytest.raises(PlaneError) as error:
        open_keys(reader, lambda: "not the passphrase")
    assert error.value.code is ExitCode.PERMISSION
    with pytest.raises(PlaneError):
        Plane(world.store, NO_KEYS, SETTINGS).create_key(
            ROOT, Change(), issuer="evil", passphrase="long enough words"
        )


def test_keys_come_and_go(both: World) -> None:
    both.apply(license())
    (first,) = TrustStore.from_bytes(both.plane.trust())
    with pytest.raises(PlaneError, match="encrypted"):
        both.plane.create_key(ROOT, Change(), issuer="acme", passphrase=None)
    with pytest.raises(PlaneError, match="another passphrase"):
        both.plane.create_key(ROOT, Change(), issuer="acme", passphrase="quite another one")
    both.clock.pass_s(5)
    second = both.plane.create_key(ROOT, Change(), issuer="acme", passphrase=PASSPHRASE)
    both.plane.refresh()
    # Hosts learn of the second from what the first one seals.
    assert both.plane.sign_manifest(EAST, 1, b"", 0).kid == first.kid
    _, changed, _ = both.plane.retire_key(ROOT, Change(), first.kid[:10])
    assert changed
    both.plane.refresh()
    assert both.plane.sign_manifest(EAST, 1, b"", 0).kid == second.kid
    assert both.plane.retire_key(ROOT, Change(), first.kid)[1] is False
    assert both.plane.refresh().intact
    assert both.again().refresh().intact
    assert both.plane.verify_audit(ROOT).intact  # what it signed before still counts there
    assert (Kind.TRUST, "trust") in model(both.plane.view_snapshot(OTHER).objects)
    # The last one signs its own retirement, and then nobody serves.
    both.plane.retire_key(ROOT, Change(), second.kid)
    assert not both.plane.refresh().intact
    both.clock.pass_s(5)
    both.plane.create_key(ROOT, Change(), issuer="acme", passphrase=PASSPHRASE)
    assert both.plane.refresh().intact


def test_beyond_what_hosts_hold(both: World) -> None:
    """An old copy was put back, and hosts hold revision 9 of a catalog that is gone."""
    both.apply(binding())
    before = snapshot(both.plane, EAST)
    assert both.plane.advance(ROOT, Change(reason="restored"), 9) == 10
    assert both.plane.refresh().intact
    assert both.plane.revision == 10
    assert snapshot(both.plane, EAST) == before
    assert both.plane.verify_audit(ROOT).intact
    assert both.actions().count("catalog.advance") == 1
    for wrong in (5, 10**9):
        with pytest.raises(PlaneError):
            both.plane.advance(ROOT, Change(), wrong)
