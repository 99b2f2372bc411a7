# SPDX-License-Identifier: Apache-2.0
"""Nothing but the issuer's key grants: not the database, not a backup of it, not the wire."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable, Iterable, Iterator

import pytest
from tests.system.harness.controlplane import ControlPlane, Host, binding, license
from tests.system.harness.looking import lag
from tests.system.harness.proxy import Proxy, as_it_is, stolen
from tests.system.harness.scene import HOLDER, STRANGER, eventually

from licapi.control.v1 import common_pb2, sync_pb2

Server = sync_pb2.ServerMessage
Change = Callable[[Server], Iterable[Server]]


# ------------------------------------------------------------------------------ the database

EDITS = {
    "a binding names somebody else": (
        "UPDATE objects SET payload ="
        " CAST(REPLACE(CAST(payload AS TEXT), '{holder}', '{stranger}') AS BLOB)"
        " WHERE name = 'acme-db-{holder}'"
    ),
    "a binding is deleted": "DELETE FROM objects WHERE name = 'acme-db-{holder}'",
    "a revocation is taken out": (
        "DELETE FROM objects WHERE kind = 4",
        "DELETE FROM changes WHERE kind = 4",
    ),
    "an object is moved to another tenant": (
        """UPDATE objects SET scope = '["other","",[],[]]' WHERE name = 'db'"""
    ),
    "the revision is set back": "UPDATE head SET revision = revision - 1",
}


@pytest.mark.parametrize("what", EDITS)
def test_rows_edited_behind_its_back_are_not_published(host: Host, what: str) -> None:
    plane, name = host.plane, host.id
    plane.apply(license("spare"), binding("spare", 62_001))
    host.until("ok", 62_001)
    plane.do("license", "revoke", "spare")
    host.until("EKEYREVOKED", 62_001)
    eventually(lambda: lag(plane, name) == 0, "the ACK, which is written down a little later")
    before = plane.host(name)["acked_revision"]
    statements = EDITS[what]
    with plane.rows() as rows:
        for each in (statements,) if isinstance(statements, str) else statements:
            rows.execute(each.format(holder=HOLDER, stranger=STRANGER))
    # A server that starts on it, or that is told of a change, publishes none of it.
    plane.stop()
    plane.start()
    eventually(lambda: plane.metric("licplane_catalog_intact") == 0, "the alarm")
    assert (host.connect(HOLDER), host.connect(STRANGER)) == ("ok", "ENOKEY")
    assert host.connect(62_001) == "EKEYREVOKED"
    assert plane.host(name)["acked_revision"] == before
    assert "digest" in plane.log() or "signed" in plane.log()


def test_a_catalog_that_is_whole_raises_no_alarm(host: Host) -> None:
    host.plane.stop()
    host.plane.start()
    eventually(lambda: host.control["state"] == "connected", "connected")
    assert host.plane.metric("licplane_catalog_intact") == 1


def test_a_database_that_was_put_back_is_refused_by_the_hosts(host: Host) -> None:
    """A restored backup does not bring back what was revoked since."""
    plane = host.plane
    plane.stop()
    backup = plane.folder / "backup"
    shutil.copytree(plane.state, backup)
    plane.start()
    eventually(lambda: host.control["state"] == "connected", "connected")
    plane.apply(binding(uid=STRANGER))
    plane.do("license", "revoke", "acme-db")
    host.until("EKEYREVOKED")
    plane.stop()
    shutil.rmtree(plane.state)
    shutil.copytree(backup, plane.state)
    plane.start()
    assert host.agent.process is not None
    host.agent.process.send_signal(signal.SIGHUP)  # it may wait long after two outages
    # Its counters are old, too, which must not make the host look like a clone.
    eventually(lambda: "older" in json.dumps(host.control), "refused")
    eventually(lambda: "older copy" in json.dumps(plane.host(host.id)["drift"]), "shown")
    assert plane.host(host.id)["status"] == "active"
    assert host.connect(HOLDER) == "EKEYREVOKED"
    host.agent.kill()
    host.agent.start()
    assert host.connect(HOLDER) == "EKEYREVOKED"
    # The documented way out: what the host then gets is the old catalog, as a newer revision. What
    # the host itself was told of a revocation stays.
    assert plane.ask("db", "advance", "--reason", "backup put back")["changed"]
    eventually(lambda: not plane.host(host.id)["drift"], "taken")
    assert host.connect(HOLDER) == "EKEYREVOKED"
    assert not plane.ask("db", "advance")["changed"]


def test_keys_are_not_in_the_state_folder_in_the_clear(plane: ControlPlane) -> None:
    """Encrypted under the passphrase: without it nobody signs."""
    plane.stop()
    for file in (each for each in plane.state.rglob("*") if each.is_file()):
        assert file.stat().st_mode & 0o077 == 0 or file.suffix == ".jwks", file
        data = file.read_bytes()
        assert b"PRIVATE KEY" not in data, file
    wrong = {**plane.environment, "LICPLANE_PASSPHRASE": "other words"}

    class Thief(ControlPlane):
        @property
        def environment(self) -> dict[str, str]:
            return wrong

    thief = Thief(replica_of=plane)
    try:
        issue = ("--id", "x", "--subject", "x", "--org", "acme", "--resource", "db")
        for words in (
            ("token", "create"),
            ("license", "issue", *issue, "--expires", "+1d"),
        ):
            found = thief.cli(*words)
            assert found.status == 5, found
    finally:
        thief.close()


# ------------------------------------------------------------------------------ the wire


@pytest.fixture
def proxied(host: Host) -> Iterator[tuple[Host, Proxy]]:
    """A host whose control plane is behind a proxy."""
    identity = stolen(host)
    with Proxy(host.plane, identity) as proxy:
        host.agent.settings += f'control = "{proxy.address}"\n'
        host.agent.stop()
        host.agent.start()
        eventually(lambda: host.control["state"] == "connected", host.state())
        yield host, proxy


def edited(old: bytes, new: bytes) -> Change:
    """Replace bytes in every object's payload."""

    def change(message: Server) -> Iterable[Server]:
        for each in message.delta.objects:
            each.payload = each.payload.replace(old, new)
        return (message,)

    return change


def added(message: Server) -> Iterable[Server]:
    """Slip a binding into every delta."""
    if message.HasField("delta"):
        table = {
            "license": "acme-db",
            "name": "slipped-in",
            "selectors": [f"unix:uid:{STRANGER}"],
        }
        message.delta.objects.append(
            common_pb2.Object(
                kind=common_pb2.KIND_BINDING,
                name="slipped-in",
                revision=message.delta.to_revision,
                payload=json.dumps(table, sort_keys=True, separators=(",", ":")).encode(),
            )
        )
    return (message,)


def emptied(message: Server) -> Iterable[Server]:
    """Take every object out of every delta."""
    if message.HasField("delta"):
        del message.delta.objects[:]
    return (message,)


def resigned(message: Server) -> Iterable[Server]:
    """Claim another revision in the manifest."""
    if message.HasField("delta") and message.delta.HasField("manifest"):
        manifest = sync_pb2.SnapshotManifest.FromString(message.delta.manifest.payload)
        manifest.revision += 5
        message.delta.to_revision += 5
        message.delta.manifest.payload = manifest.SerializeToString()
    return (message,)


ON_THE_WIRE: dict[str, tuple[Change, set[str]]] = {
    "a binding names somebody else": (
        edited(b"62777", str(STRANGER).encode()),
        {"NACK_REASON_DIGEST"},
    ),
    "a binding is slipped in": (added, {"NACK_REASON_DIGEST"}),
    "what changed is left out": (emptied, {"NACK_REASON_DIGEST"}),
    "the manifest is edited": (resigned, {"NACK_REASON_SIGNATURE"}),
}


@pytest.mark.parametrize("what", ON_THE_WIRE)
def test_changed_messages_are_refused(proxied: tuple[Host, Proxy], what: str) -> None:
    host, proxy = proxied
    proxy.change, reasons = ON_THE_WIRE[what]
    host.plane.apply(binding(uid=62_777))
    eventually(lambda: proxy.nacks, "refused")
    assert {sync_pb2.NackReason.Name(each.reason) for each in proxy.nacks} & reasons
    outcomes = (host.connect(HOLDER), host.connect(STRANGER), host.connect(62_777))
    assert outcomes == ("ok", "ENOKEY", "ENOKEY")
    # It was the change that was refused: left alone, the same comes through.
    proxy.change = as_it_is
    host.plane.apply(binding(uid=62_779))
    host.until("ok", 62_777)
    assert host.connect(STRANGER) == "ENOKEY"


def test_an_old_delta_is_not_taken_again(proxied: tuple[Host, Proxy]) -> None:
    host, proxy = proxied
    plane = host.plane
    plane.apply(binding(uid=STRANGER))
    host.until("ok", STRANGER)
    old = [Server.FromString(m.SerializeToString()) for m in proxy.seen if m.HasField("delta")][-1]
    plane.do("binding", "delete", f"acme-db-{STRANGER}")
    host.until("ENOKEY", STRANGER)

    def replayed(message: Server) -> Iterable[Server]:
        again = Server.FromString(old.SerializeToString())
        again.nonce = message.nonce + 1_000_000
        return (message, again) if message.HasField("delta") else (message,)

    proxy.change = replayed
    plane.apply(binding(uid=62_778))
    host.until("ok", 62_778)
    eventually(lambda: proxy.nacks, "refused")
    assert host.connect(STRANGER) == "ENOKEY"


def test_leases_of_another_moment_extend_nothing(
    make_plane: Callable[..., ControlPlane], make_host: Callable[..., Host]
) -> None:
    """A bundle answers one request: recorded and played again, it does not count."""
    plane = make_plane("--lease-ttl", "10s")
    host = make_host(of=plane)
    host.enroll()
    host.licensed()
    with Proxy(plane, stolen(host)) as proxy:
        host.agent.settings += f'control = "{proxy.address}"\n'
        host.agent.stop()
        host.agent.start()
        host.until("ok")
        bundle = eventually(lambda: [m for m in proxy.seen if m.HasField("leases")])[-1]

        def frozen(message: Server) -> Iterable[Server]:
            if message.HasField("leases"):
                message.leases.CopyFrom(bundle.leases)
            return (message,)

        proxy.change = frozen
        host.until("EKEYEXPIRED")
