# SPDX-License-Identifier: Apache-2.0
"""`licplane audit` and `licplane db`."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from licplane.errors import ExitCode


def entries(run: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(run("audit", "list", "--json").stdout)["entries"]
    return found


def test_every_change_is_on_record(run: Any, fleet: Any, documents: Path) -> None:
    before = len(entries(run))
    run("apply", "-f", str(documents), "--reason", "first policy", "--request-id", "r1")
    run("license", "revoke", "acme-orders", "--reason", "contract ended")
    run("apply", "-f", str(documents), "--dry-run", code=0)
    found = entries(run)
    new = found[before:]
    assert [one["sequence"] for one in found] == list(range(1, len(found) + 1))
    assert {one["reason"] for one in new} == {"first policy", "contract ended"}
    assert {one["role"] for one in new} == {"admin"}
    assert new[0]["request_id"] == "r1"
    assert found[0]["previous_hash"] == "00" * 32
    assert all(one["previous_hash"] == last["hash"] for last, one in pairwise(found))
    assert "contract ended" in run("audit", "list", "--after", str(before)).stdout
    assert len(json.loads(run("audit", "list", "--limit", "1", "--json").stdout)["entries"]) == 1


@pytest.mark.parametrize(
    "tampering",
    [
        "UPDATE audit SET reason = 'other' WHERE sequence = 2",
        "DELETE FROM audit WHERE sequence = 2",
        "DELETE FROM audit WHERE sequence = (SELECT max(sequence) FROM audit)",
        "UPDATE audit SET sequence = 1000 WHERE sequence = 2",
    ],
)
def test_verify_finds_what_was_done_to_the_log(
    run: Any, state: Path, fleet: Any, documents: Path, tampering: str
) -> None:
    run("apply", "-f", str(documents))
    run("license", "revoke", "acme-orders")
    well = json.loads(run("audit", "verify", "--json").stdout)
    assert (well["intact"], well["problems"]) == (True, [])
    assert well["entries"] == len(entries(run))
    with closing(sqlite3.connect(state / "licplane.db")) as database:
        database.execute(tampering)
        database.commit()
    found = json.loads(run("audit", "verify", "--json", code=ExitCode.REFUSED).stdout)
    assert found["intact"] is False
    assert found["problems"]
    assert "not intact" in run("audit", "verify", code=ExitCode.REFUSED).stderr


def test_an_exported_head_finds_a_log_that_was_put_back(
    run: Any, state: Path, fleet: Any, tmp_path: Path, documents: Path
) -> None:
    backup = tmp_path / "backup.db"
    with (
        closing(sqlite3.connect(state / "licplane.db")) as database,
        closing(sqlite3.connect(backup)) as copy,
    ):
        database.backup(copy)
    run("apply", "-f", str(documents))
    head = tmp_path / "head.json"
    run("audit", "head", "--out", str(head))
    run("audit", "verify", "--head", str(head))
    with (
        closing(sqlite3.connect(state / "licplane.db")) as database,
        closing(sqlite3.connect(backup)) as copy,
    ):
        copy.backup(database)
    run("audit", "verify")  # by itself it looks well
    run("audit", "verify", "--head", str(head), code=ExitCode.REFUSED)
    run("audit", "verify", "--head", str(tmp_path / "absent"), code=ExitCode.NOT_FOUND)


def test_the_schema_goes_down_and_up(run: Any, fleet: Any) -> None:
    now = json.loads(run("db", "current", "--json").stdout)
    assert now["is_newest"] is True
    assert "No change" in run("db", "upgrade").stderr
    assert "--yes" in run("db", "downgrade", "base", code=ExitCode.REFUSED).stderr
    down = json.loads(run("db", "downgrade", "base", "--yes", "--json").stdout)
    assert (down["changed"], down["current"]) == (True, None)
    assert "licplane db upgrade" in run("db", "current").stderr
    up = json.loads(run("db", "upgrade", "--json").stdout)
    assert up["current"] == now["newest"]
