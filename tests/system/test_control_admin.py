# SPDX-License-Identifier: Apache-2.0
"""Administration: dry runs, declared state, roles, the audit log, hosts without a network."""

from __future__ import annotations

import json
from collections.abc import Callable

import grpc
import pytest
from tests.system.harness.adminapi import AdminClient
from tests.system.harness.controlplane import ControlPlane, Host, binding, license
from tests.system.harness.scene import HOLDER, STRANGER, eventually

from licapi.control.v1 import admin_pb2

MakeHost = Callable[..., Host]


def test_a_dry_run_names_the_live_sockets_and_cuts_none(host: Host) -> None:
    plane = host.plane
    with host.program() as (program, report):
        assert report["outcome"] == "ok"

        def impact() -> list[dict[str, object]]:
            found = plane.ask("license", "revoke", "acme-db", "--dry-run")
            assert found["dry_run"] is True
            return [row for row in found["impact"] if row["sockets"]]

        [row] = eventually(impact, "the report with the live socket")
        assert (row["license"], row["resource"], row["sockets"]) == ("acme-db", "db", 1)
        assert row["host_id"] == host.id
        assert "python" in str(row["selector"])
        words = ("license", "revoke", "acme-db", "--dry-run")
        eventually(  # a later report may be of a moment with another number of sockets
            lambda: "would cut 1 live socket" in plane.cli(*words).err, "the same in words"
        )
        assert host.connect() == "ok"
        delete = ("binding", "delete", f"acme-db-{HOLDER}", "--dry-run")
        eventually(  # a report may have been made while `connect` had a socket, too
            lambda: [row["sockets"] for row in plane.ask(*delete)["impact"]] == [1], "one socket"
        )
        assert host.connect() == "ok"
        assert program.process.poll() is None


def test_declared_state_is_idempotent_and_pruned_only_when_told(host: Host) -> None:
    plane = host.plane
    documents = (host.resource(), binding(), license(), binding(uid=STRANGER))
    assert plane.apply(*documents)["changed"] is True
    again = plane.apply(*documents)
    assert again["changed"] is False
    assert {row["action"] for row in again["differences"]} <= {"none"}
    fewer = documents[:3]
    kept = plane.apply(*fewer)
    assert kept["changed"] is False
    host.until("ok", STRANGER)
    dry = plane.apply(*fewer, options=("--prune", "--dry-run"))
    [gone] = [row for row in dry["differences"] if row["action"] == "delete"]
    assert gone["name"] == f"acme-db-{STRANGER}"
    assert host.connect(STRANGER) == "ok"
    plane.apply(*fewer, options=("--prune",))
    host.until("ENOKEY", STRANGER)
    assert host.connect(HOLDER) == "ok"
    changed = plane.cli("apply", "-f", plane.folder_of(host.resource(mode="observe")))
    assert '-  "mode": "enforce"' in changed.out or "-mode" in changed.out.replace(" ", "")
    refused = plane.cli("apply", "-f", plane.folder_of(binding(selektors=["x"])))
    assert refused.status == 7
    assert "did you mean" in refused.err


def test_roles_hold(host: Host) -> None:
    plane = host.plane
    clients = {}
    for role in ("admin", "issuer", "auditor"):
        file = plane.folder / f"{role}.pem"
        plane.do("admin", "create", f"{role}-1", "--role", role, "--out", file)
        assert file.stat().st_mode & 0o077 == 0
        clients[role] = AdminClient(plane.control, file)
    evict = admin_pb2.UpdateHostRequest(host=host.id, labels={"rack": "7"})

    def allowed(role: str, what: Callable[[AdminClient], object]) -> bool:
        try:
            what(clients[role])
        except grpc.RpcError as error:
            return error.code() is not grpc.StatusCode.PERMISSION_DENIED
        return True

    def label(client: AdminClient) -> object:
        evict.change.CopyFrom(client.change())
        return client.stub.UpdateHost(evict, timeout=30)

    def suspend(client: AdminClient) -> object:
        client.set_license_state("acme-db", "suspend")
        return client.set_license_state("acme-db", "reinstate")

    def read(client: AdminClient) -> object:
        return client.stub.ListAudit(admin_pb2.ListAuditRequest(page_size=5), timeout=30)

    try:
        assert [allowed(r, label) for r in clients] == [True, False, False]
        assert [allowed(r, suspend) for r in clients] == [True, True, False]
        assert [allowed(r, read) for r in clients] == [True, False, True]
    finally:
        for client in clients.values():
            client.__exit__(None, None, None)
    entries = plane.ask("audit", "list")["entries"]
    assert {"admin", "issuer"} <= {row["role"] for row in entries}


def test_an_etag_and_a_request_id_over_the_wire(host: Host) -> None:
    plane = host.plane
    file = plane.folder / "admin.pem"
    plane.do("admin", "create", "wire", "--role", "admin", "--out", file)
    with AdminClient(plane.control, file) as client:
        listed = client.stub.ListObjects(admin_pb2.ListObjectsRequest(kind="binding"), timeout=30)
        [old] = listed.documents
        change = client.change(etag=old.etag)
        document = admin_pb2.Document(
            kind="binding", name=old.name, json=json.dumps(binding(note=None).but(note=None).table)
        )
        document.json = json.dumps({**json.loads(old.json), "selectors": [f"unix:uid:{STRANGER}"]})
        request = admin_pb2.ApplyRequest(change=change, documents=[document])
        first = client.stub.Apply(request, timeout=30)
        assert first.changed
        repeated = client.stub.Apply(request, timeout=30)
        assert repeated.revision == first.revision
        assert repeated.changed == first.changed
        stale = admin_pb2.ApplyRequest(change=client.change(etag=old.etag), documents=[document])
        with pytest.raises(grpc.RpcError) as refused:
            client.stub.Apply(stale, timeout=30)
        assert refused.value.code() is grpc.StatusCode.ABORTED
    host.until("ok", STRANGER)


def test_commands_over_a_server_do_the_same(host: Host) -> None:
    plane = host.plane
    token = plane.folder / "issuer.token"
    plane.do("admin", "create", "remote", "--role", "issuer", "--token", "--out", token)
    remote = ("--server", plane.public, "--token-file", str(token))
    outside = {"LICPLANE_STATE": "", "LICPLANE_PASSPHRASE": ""}
    kept = {k: v for k, v in plane.environment.items() if k not in outside}

    class Elsewhere(ControlPlane):
        @property
        def environment(self) -> dict[str, str]:
            return kept

    other = Elsewhere()
    try:
        found = other.cli(*remote, "license", "suspend", "acme-db", "--json")
        assert found.status == 0, found
        host.until("EKEYREVOKED")
        refused = other.cli(*remote, "host", "evict", host.id)
        assert refused.status == 5, refused
    finally:
        other.close()


def test_the_audit_log_shows_every_edit(host: Host) -> None:
    plane = host.plane
    plane.apply(binding(uid=STRANGER))
    plane.do("license", "revoke", "acme-db", "--reason", "over")
    head = plane.folder / "head.json"
    plane.do("audit", "head", "--out", head)
    assert plane.cli("audit", "verify").status == 0
    assert plane.cli("audit", "verify", "--head", head).status == 0
    plane.stop()
    whole = (plane.state / "licplane.db").read_bytes()
    edits = {
        "edited": "UPDATE audit SET reason = 'never happened' WHERE reason = 'over'",
        "deleted": "DELETE FROM audit WHERE sequence = (SELECT MAX(sequence) - 1 FROM audit)",
        "truncated": "DELETE FROM audit WHERE sequence > (SELECT MAX(sequence) - 2 FROM audit)",
        "reordered": (
            "UPDATE audit SET sequence = CASE sequence WHEN 2 THEN 3 ELSE 2 END"
            " WHERE sequence IN (2, 3)"
        ),
    }
    for what, statement in edits.items():
        with plane.rows() as rows:
            if what == "reordered":
                a, b = rows.execute("SELECT sequence FROM audit ORDER BY sequence LIMIT 2")
                for old, new in ((a[0], -1), (b[0], a[0]), (-1, b[0])):
                    rows.execute("UPDATE audit SET sequence = ? WHERE sequence = ?", (new, old))
            else:
                assert rows.execute(statement).rowcount > 0, what
        found = plane.cli("audit", "verify", "--json")
        assert found.status != 0, what
        assert json.loads(found.out)["problems"], what
        (plane.state / "licplane.db").write_bytes(whole)
        for part in ("-wal", "-shm"):
            (plane.state / f"licplane.db{part}").unlink(missing_ok=True)
    assert plane.cli("audit", "verify").status == 0


def test_a_host_without_a_network_is_enrolled_by_files(
    plane: ControlPlane, make_host: MakeHost
) -> None:
    host = make_host(settings='control = "off"\n')
    plane.apply(host.resource(), binding(), license())
    request = host.agent.folder / "request.json"
    bundle = host.agent.folder / "bundle.json"
    host.ask("enroll", "--request", request)
    plane.ask("host", "admit", request, "--label=org=acme", "--out", bundle)
    plane.stop()
    assert host.ask("enroll", "--bundle", bundle)["changed"] is True
    host.until("ok")
    assert host.connect(STRANGER) == "ENOKEY"
    # A bundle that was changed on its way is refused, and what is in force stays.
    text = bundle.read_text()
    forged = host.file("forged.json", text.replace("acme-db", "acme-dc").replace('"eyJ', '"eyK'))
    assert host.cli("enroll", "--bundle", forged).status != 0
    assert host.connect() == "ok"
