# SPDX-License-Identifier: Apache-2.0
"""`licplane serve` as a process, and the commands that ask it over gRPC."""

from __future__ import annotations

import json
import os
import re
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from licplane.errors import ExitCode
from lictoken.armour import Label, unarmour
from lictoken.trust import TrustStore
from lictoken.verify import verify_license

pytest_plugins = ["tests.support.postgres"]

PROGRAM = Path(sys.executable).with_name("licplane")
LISTEN = ("--listen", "127.0.0.1:0", "--public-listen", "127.0.0.1:0")


class Server:
    """One `licplane serve` on ports of its own, and what it said until it served."""

    def __init__(self, state: Path, *options: str, **environment: str) -> None:
        kept = {key: value for key, value in os.environ.items() if not key.startswith("LICPLANE_")}
        place = () if "--database" in options else ("--state", str(state))
        self.process = subprocess.Popen(
            [PROGRAM, "serve", *place, *LISTEN, *options],
            env={**kept, **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.words = ""
        assert self.process.stderr is not None
        for line in self.process.stderr:  # ends with the process; pytest's timeout bounds it
            self.words += line
            if "licplane host list" in line:
                break
        found = re.findall(r"on (127\.0\.0\.1:\d+) \(", self.words)
        self.control, self.public = found[-2:] if len(found) >= 2 else ("", "")

    def stop(self) -> int:
        """SIGTERM; the exit status."""
        self.process.terminate()
        _, rest = self.process.communicate(timeout=60)
        self.words += rest
        return self.process.returncode

    def kill(self) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        if self.process.stderr is not None:
            self.process.stderr.close()


@pytest.fixture
def server(state: Path) -> Iterator[Server]:
    made = Server(state, "--issuer", "acme", "--unencrypted")
    try:
        assert made.control, made.words
        yield made
    finally:
        made.kill()


@pytest.fixture
def ops(run: Any, server: Server, tmp_path: Path) -> Any:
    """Runs a command over the mutual TLS listener, as a role."""
    made: dict[str, Path] = {}

    def ask(*arguments: str, role: str = "admin", code: int | None = 0) -> Any:
        if role not in made:
            made[role] = tmp_path / f"{role}.pem"
            run("admin", "create", f"{role}-1", "--role", role, "--out", str(made[role]))
        place = ("--server", server.control, "--identity", str(made[role]))
        return run(*place, *arguments, code=code)

    return ask


def test_the_first_start_says_what_it_made_and_what_to_do_next(run: Any, server: Server) -> None:
    for words in (
        "First start: made a signing key of the issuer acme and a certification authority",
        "Warning: private keys are kept unencrypted",
        "licplane token create",
        "licagent enroll JOIN",
        "licplane apply -f DIR --dry-run",
    ):
        assert words in server.words
    join = json.loads(run("token", "create", "--json").stdout)["join"]
    from lictoken import base64url

    inside = json.loads(base64url.decode(join.partition(".")[2], "the token"))
    assert (inside["control"], inside["public"]) == (server.control, server.public)
    assert server.stop() == 0
    assert "Stopped." in server.words


def test_a_second_start_finds_what_the_first_made(state: Path, tmp_path: Path) -> None:
    words = tmp_path / "passphrase"
    words.write_text("correct horse battery\n")
    first = Server(state, "--passphrase-file", str(words))
    try:
        assert "without it, all is lost" in first.words
        assert first.stop() == 0
    finally:
        first.kill()
    second = Server(state, LICPLANE_PASSPHRASE="correct horse battery")
    try:
        assert second.control, second.words
        assert "First start" not in second.words
    finally:
        second.kill()
    wrong = Server(state, LICPLANE_PASSPHRASE="wrong horse battery")
    try:
        assert wrong.process.wait() == ExitCode.PERMISSION
        assert "does not open" in wrong.words
    finally:
        wrong.kill()


def test_no_passphrase_makes_nothing(run: Any, state: Path) -> None:
    refused = run("serve", *LISTEN, code=ExitCode.USAGE)
    assert "--passphrase-file" in refused.stderr
    assert not state.exists()


def test_documents_and_licenses_over_the_network(
    run: Any, ops: Any, documents: Path, state: Path, tmp_path: Path
) -> None:
    dry = ops("apply", "-f", str(documents), "--dry-run")
    assert "create resource orders-db" in dry.stdout
    assert ops("resource", "list").stdout == ""
    assert "3 created" in ops("apply", "-f", str(documents), role="issuer").stderr
    assert "No change" in ops("apply", "-f", str(documents), role="issuer").stderr
    assert "orders-db" in run("resource", "show", "orders-db").stdout
    assert "orders-db" in ops("resource", "show", "orders-db", role="auditor").stdout
    assert "orders.service" in ops("binding", "show", "orders").stdout

    out = tmp_path / "b.lic"
    arguments = ("--id", "b", "--subject", "B", "--org", "acme", "--resource", "orders-db")
    issue = ("license", "issue", *arguments, "--expires", "2100-01-01T00:00:00Z")
    made = json.loads(ops(*issue, "--out", str(out), "--json").stdout)
    assert (made["id"], made["generation"], made["out"]) == ("b", 1, str(out))
    trust = TrustStore.from_bytes(run("keys", "export").stdout.encode())
    assert verify_license(out.read_bytes(), trust).number == made["number"]
    renewed = json.loads(
        ops("license", "renew", "b", "--expires", "2101-01-01T00:00:00Z", "--json").stdout
    )
    assert (renewed["generation"], renewed["number"]) == (2, made["number"])
    listed = json.loads(ops("license", "list", "--json").stdout)["licenses"]
    assert [one["name"] for one in listed] == ["acme-orders", "b"]
    assert "2101-01-01" in ops("license", "show", "b").stdout

    revoked = ops("license", "revoke", "b", "--reason", "contract ended")
    assert "revoke b" in revoked.stderr
    assert unarmour(revoked.stdout.encode(), Label.REVOCATION)
    state_now = json.loads(run("license", "show", "b", "--json").stdout)["license"]
    assert state_now["state"] == "revoked"
    assert state_now["statements"][0]["reason"] == "contract ended"
    entry = json.loads(ops("audit", "list", "--json").stdout)["entries"][-1]
    assert (entry["actor"], entry["reason"]) == ("admin-1", "contract ended")
    for refused in (("--key", "x" * 43), ("--after-revocation",)):
        assert "does not take" in ops(*issue, *refused, code=ExitCode.USAGE).stderr


def test_hosts_tokens_shadow_and_audit_over_the_network(fleet: Any, ops: Any, run: Any) -> None:
    host_id = fleet.join("db-1", org="acme")
    table = ops("host", "list", role="auditor").stdout
    assert "db-1" in table
    shown = json.loads(ops("host", "show", "db-1", "--json").stdout)["host"]
    local = json.loads(run("host", "show", "db-1", "--json").stdout)["host"]
    assert shown == local
    assert shown["host_id"] == host_id
    stale = ("host", "label", "db-1", "region=eu-1", "--etag", "stale")
    ops(*stale, code=ExitCode.REFUSED)
    ops("host", "label", "db-1", "region=eu-1", "--etag", shown["etag"])
    assert "region=eu-1" in run("host", "list").stdout
    join = ops("token", "create", "--label", "org=acme").stdout.strip()
    assert join.startswith("licjoin1.")
    [token] = [
        one
        for one in json.loads(ops("token", "list", "--json").stdout)["tokens"]
        if not one["uses"]
    ]
    ops("token", "delete", token["id"])
    assert "licagent enroll --again" in ops("host", "split", "db-1").stderr
    ops("host", "ban", "db-1")
    assert json.loads(ops("host", "show", host_id, "--json").stdout)["host"]["status"] == "banned"
    assert json.loads(ops("shadow", "--json").stdout)["usage"] == []
    assert ops("audit", "list").stdout == run("audit", "list").stdout
    assert json.loads(ops("audit", "verify", "--json").stdout)["intact"] is True


def test_a_key_made_beside_a_running_server(run: Any, ops: Any, documents: Path) -> None:
    """It signs from then on, and the server believes it without a restart."""
    ops("host", "list")
    kid = run("keys", "create", "--issuer", "acme", "--unencrypted").stdout.strip()
    run("apply", "-f", str(documents))
    shown = json.loads(run("license", "show", "acme-orders", "--json").stdout)["license"]
    assert shown["kid"] == kid
    for _ in range(600):  # until it was told of the change
        found = json.loads(ops("audit", "verify", "--json", code=None).stdout)
        if found["intact"]:
            break
        time.sleep(0.05)
    assert found["problems"] == []


def test_roles_hold_over_the_network(ops: Any, run: Any, documents: Path) -> None:
    apply = ("apply", "-f", str(documents))
    for role, arguments in (
        ("auditor", apply),
        ("auditor", ("token", "create")),
        ("issuer", ("token", "list")),
        ("issuer", ("audit", "list")),
        ("issuer", ("host", "evict", "nobody")),
    ):
        refused = ops(*arguments, role=role, code=ExitCode.PERMISSION)
        assert f"The role {role} may not" in refused.stderr
    ops(*apply, role="issuer")
    run("admin", "delete", "issuer-1")
    ops(*apply, role="issuer", code=ExitCode.PERMISSION)
    states = {
        one["name"]: one["revoked"]
        for one in json.loads(run("admin", "list", "--json").stdout)["admins"]
    }
    assert states == {"auditor-1": False, "issuer-1": True}


def test_a_bearer_token_on_the_public_listener(run: Any, server: Server, tmp_path: Path) -> None:
    file = tmp_path / "ci.token"
    made = run("admin", "create", "ci", "--role", "auditor", "--token", "--out", str(file))
    assert "--token-file" in made.stderr
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    secret = file.read_text().splitlines()[0]
    for text in (made.stdout, made.stderr, run("admin", "list", "--json").stdout):
        assert secret not in text
    place = ("--server", server.public, "--token-file", str(file))
    assert "no hosts" in run(*place, "host", "list").stderr
    run(*place, "token", "create", code=ExitCode.PERMISSION)
    run("admin", "delete", "ci")
    run(*place, "host", "list", code=ExitCode.PERMISSION)


def test_a_server_that_is_not_there_or_another_one(run: Any, ops: Any, tmp_path: Path) -> None:
    ops("host", "list")
    place = ("--server", "127.0.0.1:1", "--identity", str(tmp_path / "admin.pem"))
    gone = run(*place, "host", "list", "--json", code=ExitCode.BUSY)
    assert "cannot be reached: nobody listens there" in gone.stderr
    assert json.loads(gone.stdout)["error"]["code"] == "BUSY"


def test_another_ca_is_not_believed(run: Any, server: Server, tmp_path: Path) -> None:
    other = tmp_path / "other"
    create = ("--state", str(other), "keys", "create", "--issuer", "evil", "--unencrypted")
    run(*create)
    second = Server(other, "--unencrypted")
    second.kill()
    file = tmp_path / "evil.pem"
    admin = ("admin", "create", "evil", "--role", "admin", "--out", str(file))
    run("--state", str(other), *admin)
    place = ("--server", server.control, "--identity", str(file))
    refused = run(*place, "host", "list", code=ExitCode.BUSY)
    assert "not of the CA in the credential" in refused.stderr


def test_two_servers_on_one_postgresql(
    run: Any, state: Path, postgres_url: str, documents: Path, tmp_path: Path
) -> None:
    """The same commands by URL; what one server is told, the other one knows."""
    database = ("--database", postgres_url)
    options = ("--unencrypted", "--issuer", "acme")
    servers = [Server(state, *database, *options) for _ in range(2)]
    try:
        assert "in the database" in servers[0].words
        assert "First start" not in servers[1].words
        identity = tmp_path / "ops.pem"
        run(*database, "admin", "create", "ops", "--role", "admin", "--out", str(identity))
        one, two = (("--server", server.control, "--identity", str(identity)) for server in servers)
        assert "3 created" in run(*one, "apply", "-f", str(documents)).stderr
        assert "No change" in run(*two, "apply", "-f", str(documents)).stderr
        run(*two, "license", "revoke", "acme-orders")
        shown = json.loads(run(*database, "license", "show", "acme-orders", "--json").stdout)
        assert shown["license"]["state"] == "revoked"
        assert "intact" in run(*database, "audit", "verify").stderr
        current = json.loads(run(*database, "db", "current", "--json").stdout)
        assert current["is_newest"] is True
        assert not state.exists()
        assert [server.stop() for server in servers] == [0, 0]
    finally:
        for server in servers:
            server.kill()


def test_workers_share_the_addresses(run: Any, state: Path, tmp_path: Path) -> None:
    server = Server(state, "--unencrypted", "--workers", "2", "--metrics-listen", "127.0.0.1:0")
    try:
        assert ", 2 workers" in server.words
        assert server.words.count("/metrics") == 2
        identity = tmp_path / "ops.pem"
        run("admin", "create", "ops", "--role", "admin", "--out", str(identity))
        place = ("--server", server.control, "--identity", str(identity))
        for _ in range(4):
            assert "no hosts" in run(*place, "host", "list").stderr
        assert server.stop() == 0
    finally:
        server.kill()
