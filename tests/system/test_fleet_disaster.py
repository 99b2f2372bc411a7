# SPDX-License-Identifier: Apache-2.0
"""The control plane is lost and put back from a backup: nothing is wider, nothing billed twice."""

from __future__ import annotations

import contextlib
import gzip
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from psycopg import sql
from sqlalchemy import text
from sqlalchemy.engine import make_url
from tests.system.harness.controlplane import ControlPlane, Host, binding, license
from tests.system.harness.looking import seen
from tests.system.harness.scene import STRANGER, eventually

from licplane.store.engine import make_engine, parse_url

if TYPE_CHECKING:
    from tests.support.postgres import Postgres

pytest_plugins = ["tests.support.postgres"]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

SPARE = 62_001


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest) -> str:
    """Of the control plane; "": in its state folder."""
    if request.param == "sqlite":
        return ""
    url: str = request.getfixturevalue("postgres_url")
    return url


def disaster(plane: ControlPlane, request: pytest.FixtureRequest) -> None:
    """The machine is gone, with all that was on its disk; another one has an empty database."""
    plane.kill()
    shutil.rmtree(plane.state, ignore_errors=True)
    if plane.database:
        postgres: Postgres = request.getfixturevalue("postgres")
        name = sql.Identifier(str(make_url(plane.database).database))
        postgres.run(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(name))
        postgres.run(sql.SQL("CREATE DATABASE {}").format(name))


def chain(plane: ControlPlane, name: str) -> tuple[int, int, int]:
    """Of a host's newest chain of usage: where it stands, how many records and gaps there are."""
    engine = make_engine(parse_url(plane.database or str(plane.state)), pool_size=1)
    try:
        with engine.connect() as rows:
            one = rows.execute(
                text(
                    "SELECT epoch, acked_sequence FROM usage_epochs WHERE host_id = :host"
                    " ORDER BY epoch DESC LIMIT 1"
                ),
                {"host": name},
            ).one_or_none()
            if one is None:
                return 0, 0, 0
            records = rows.execute(
                text(
                    "SELECT count(*), count(DISTINCT sequence) FROM usage_records"
                    " WHERE epoch = :epoch"
                ),
                {"epoch": one[0]},
            ).one()
            assert records[0] == records[1], "a record is there twice"
            gaps = rows.execute(
                text("SELECT count(*) FROM usage_gaps WHERE host_id = :host"), {"host": name}
            ).scalar_one()
    finally:
        engine.dispose()
    return int(one[1]), int(records[0]), int(gaps)


def settled(plane: ControlPlane, name: str, beyond: int) -> None:
    """Wait until usage after this sequence has come in."""
    eventually(lambda: chain(plane, name)[0] > beyond, f"usage beyond {beyond}")


def in_step(plane: ControlPlane, name: str) -> None:
    """Wait until nothing differs between a host and what is wanted of it."""
    try:
        eventually(lambda: not seen(plane, name).drift)
    except AssertionError as error:
        raise AssertionError(plane.host(name), plane.log()) from error


def test_put_back_from_yesterdays_backup(
    database: str,
    make_plane: Callable[..., ControlPlane],
    make_host: Callable[..., Host],
    request: pytest.FixtureRequest,
    tmp_path: Path,
) -> None:
    plane = make_plane("--lease-ttl", "20s", database=database)
    host = make_host(of=plane, settings="metering_interval_s = 1\n")
    host.enroll()
    spare = (license("spare"), binding("spare", SPARE))
    plane.apply(host.resource(), binding(), license(), *spare)
    host.until("ok", SPARE)
    name = host.id
    settled(plane, name, 0)
    file = tmp_path / "yesterday.licplane"
    made = plane.ask("backup", "create", file)
    assert file.stat().st_mode & 0o777 == 0o600
    at_backup = chain(plane, name)[0]

    # Everything that a day brings: rights are taken away, tokens used, usage counted.
    unused = plane.join(uses=5)
    plane.do("license", "revoke", "spare", "--reason", "contract ended")
    host.until("EKEYREVOKED", SPARE)
    plane.apply(binding(uid=62_003))
    plane.apply(binding(uid=62_004))
    host.until("ok", 62_004)
    plane.do("host", "label", host.id, "site=two")
    eventually(lambda: host.control["labels"].get("site") == "two", "the label")
    settled(plane, name, at_backup + 1)
    before = chain(plane, name)[0]
    assert plane.cli("backup", "restore", file).status == 7  # over what is there? No.
    disaster(plane, request)
    verified = plane.ask("backup", "verify", file)
    assert (verified["rows"], verified["deep"]) == (made["rows"], True)
    restored = plane.ask("backup", "restore", file)
    assert (restored["rows"], restored["revision"]) == (made["rows"], made["revision"])
    plane.start()
    host.agent.kill()
    host.agent.start()
    eventually(lambda: host.control["state"] == "connected", "the host found back")

    # Nothing is granted by a copy that nobody has looked at.
    assert plane.ask("token", "list")["tokens"] == []
    newcomer = make_host(of=plane)
    assert newcomer.cli("enroll", unused).status == 7
    refused = newcomer.cli("enroll", plane.join())
    assert refused.status == 7
    assert "put back" in refused.err
    host.until("EKEYEXPIRED")

    # The host hands back what it was told after the backup: signed, and only to take away.
    eventually(lambda: plane.metric("licplane_remembered_total") == 1, "the revocation came back")
    assert plane.ask("license", "show", "spare")["license"]["state"] == "revoked"
    found = plane.host(name)
    assert "site" not in found["labels"]  # not known to be less, so it drains
    assert found["status"] == "draining"
    assert "older copy" in str(found["drift"])

    advanced = plane.ask("db", "advance", "--reason", "looked at")
    assert advanced["changed"] is True
    assert advanced["recovered"] >= 2
    plane.do("host", "label", name, "site=two")
    plane.do("host", "activate", name)
    host.until("ok")
    in_step(plane, name)
    assert host.connect(SPARE) == "EKEYREVOKED"
    assert host.connect(62_004) == "ENOKEY"  # granted after the backup: to be granted again

    # A host that comes now gets the revoked license neither from the catalog nor by a lease.
    newcomer.enroll()
    eventually(lambda: newcomer.state_of("spare") == "revoked", "it knows of the revocation")
    plane.apply(license("later"), binding("later", STRANGER))
    host.until("ok", STRANGER)

    # Usage that was acknowledged before came again, each record once, or by the name of a gap.
    settled(plane, name, before + 1)
    acked, records, _gaps = chain(plane, name)
    assert before < acked >= records
    check = plane.cli("usage", "verify")
    assert check.status == 0, check
    assert plane.ask("audit", "verify")["intact"] is True


def test_a_backup_that_is_damaged_is_found(plane: ControlPlane, tmp_path: Path) -> None:
    file = tmp_path / "backup"
    plane.do("backup", "create", file)
    data = gzip.decompress(file.read_bytes())
    lines = data.splitlines(keepends=True)
    elsewhere = ControlPlane()
    try:
        for what, text in {
            "cut off": b"".join(lines[:-1]),
            "a row less": b"".join(lines[:3] + lines[4:]),
            "a byte": data.replace(b"acme", b"acne", 1),
            "nothing": b"",
        }.items():
            bad = tmp_path / "bad"
            bad.write_bytes(gzip.compress(text))
            assert plane.cli("backup", "verify", bad).status == 7, what
            assert elsewhere.cli("backup", "restore", bad).status == 7, what
            with contextlib.suppress(FileNotFoundError):
                (elsewhere.state / "licplane.db").unlink()
        assert plane.cli("backup", "verify", tmp_path / "none").status == 6
    finally:
        elsewhere.close()
