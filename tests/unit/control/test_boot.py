# SPDX-License-Identifier: Apache-2.0
"""What is on the disk is verified before it counts; what is wrong costs only what it is about."""

from __future__ import annotations

import sqlite3
from dataclasses import replace

import pytest

from licagent.control.session import ControlPhase, ControlSession
from licagent.domain.catalog import CatalogObject, Kind, SignedBytes
from licagent.domain.lease import StoredLeases


def signed(message):
    return SignedBytes(message.payload, message.kid, message.signature)


@pytest.fixture
def stored(folder, model, kit):
    """A host that was in sync and leased, and its session's boot."""
    identity = folder.enrolled()
    model.change((1, "db", b"{}"), (2, "b", b"{}"), (3, "acme-1", b"token"))
    objects = [
        CatalogObject(Kind(kind), name, revision, payload)
        for (kind, name), (revision, payload) in model.objects.items()
    ]
    manifest = signed(model.manifest())
    folder.catalogs.begin(identity.host_id, manifest, objects, (), reset=True).commit()

    class Asked:
        nonce = b"\1" * 16
        boot_id = kit.BOOT_ID

    bundle = signed(model.leases(Asked, identity, "acme-1"))
    folder.catalogs.save_leases(StoredLeases(bundle, Asked.nonce, kit.BOOT_ID, 5))
    folder.catalogs.close()
    return identity


@pytest.fixture
def boot(folder, kernel, kit):
    return lambda: ControlSession(folder.identities, folder.catalogs, kernel, kit.SETTINGS).boot()


def test_what_is_whole_is_in_force_before_the_network(stored, boot, kit):
    found = boot()
    assert found.problems == ()
    assert found.catalog.revision == 1
    assert found.catalog.is_whole
    assert found.assignment.labels == kit.LABELS
    assert found.leases.end_of("acme-1", 1) == 5 + 600_000 * 1_000_000


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE objects SET payload = x'00' WHERE name = 'b'",
        "UPDATE objects SET name = 'c' WHERE name = 'b'",
        "UPDATE objects SET kind = 2 WHERE name = 'db'",
        "DELETE FROM objects WHERE name = 'acme-1'",
        "INSERT INTO objects VALUES (2, 'mine', 1, x'00')",
        "UPDATE manifest SET payload = x'00'",
        "UPDATE manifest SET signature = x'00'",
        "UPDATE manifest SET kid = '../../etc/passwd'",
        "UPDATE manifest SET host_id = 'another'",
        "UPDATE objects SET kind = 99 WHERE name = 'b'",
        "UPDATE objects SET payload = 'text' WHERE name = 'b'",
        "DROP TABLE objects",
    ],
)
def test_an_altered_catalog_is_refused_and_nothing_else(stored, boot, folder, change):
    with sqlite3.connect(folder.path / "catalog.db") as connection:
        connection.execute(change)
    connection.close()
    found = boot()
    assert found.catalog is None
    assert found.assignment is not None
    assert len(found.problems) == 1
    assert "sends it again" in found.problems[0]


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE leases SET payload = x'00'",
        "UPDATE leases SET signature = x'00'",
    ],
)
def test_altered_leases_are_none(stored, boot, folder, change):
    with sqlite3.connect(folder.path / "catalog.db") as connection:
        connection.execute(change)
    connection.close()
    found = boot()
    assert found.leases.leases == {}
    assert found.catalog is not None
    assert len(found.problems) == 1


def test_a_torn_file_is_set_aside(stored, boot, folder):
    path = folder.path / "catalog.db"
    path.write_bytes(path.read_bytes()[:5000])
    found = boot()
    assert found.catalog is None
    assert "set aside" in found.problems[0]
    assert boot().problems == ()


def test_an_altered_assignment_is_no_identity(stored, boot, folder, kernel, kit):
    forged = replace(stored.assignment, payload=stored.assignment.payload + b"\0")
    folder.identities.save(replace(stored, assignment=forged))
    session = ControlSession(folder.identities, folder.catalogs, kernel, kit.SETTINGS)
    found = session.boot()
    assert (found.catalog, found.assignment) == (None, None)
    assert "licagent enroll" in found.problems[0]
    assert session.state.phase is ControlPhase.UNENROLLED


async def test_a_host_whose_catalog_is_lost_gets_it_again(stored, folder, plane, run_host, kernel):
    model = plane.model
    folder.identities.save(replace(stored, control_address=plane.control))
    with sqlite3.connect(folder.path / "catalog.db") as connection:
        connection.execute("DELETE FROM objects")
    connection.close()
    run_host()
    peer = await plane.stream()
    assert peer.hello.revision == 0
    await peer.welcome()
    await peer.push(model.parts(0))
    assert (await peer.receive("ack")).revision == 1
    assert kernel.objects == model.live()
    assert {each.name for each in folder.catalogs.load().objects} == {"db", "b", "acme-1"}
