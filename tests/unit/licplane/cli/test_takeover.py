# SPDX-License-Identifier: Apache-2.0
"""The state folder of licplane 0.1, used by the commands of today."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest_plugins = ["tests.support.postgres"]

FILES = Path(__file__).parents[1] / "store" / "folder-0.1.json"
PASSPHRASE = "correct horse battery"


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """Two keys, three licenses: one renewed, one suspended, one revoked."""
    root = tmp_path / "old"
    for name, content in json.loads(FILES.read_text()).items():
        path = root / name
        path.parent.mkdir(mode=0o700, exist_ok=True, parents=True)
        path.write_text(content)
        path.chmod(0o600)
    root.chmod(0o700)
    return root


def states(run: Any, *place: str) -> dict[str, str]:
    listed = json.loads(run(*place, "license", "list", "--json").stdout)["licenses"]
    return {one["id"]: one["state"] for one in listed}


def test_the_first_command_takes_the_files_over(run: Any, old: Path, monkeypatch: Any) -> None:
    issued = json.loads((old / "licenses" / "acme-orders.json").read_text())["issues"]
    monkeypatch.setenv("LICPLANE_STATE", str(old))
    found = states(run)
    assert set(found) == {"acme-orders", "acme-web", "acme-old"}
    assert (found["acme-web"], found["acme-old"]) == ("suspended", "revoked")
    assert run("license", "show", "acme-orders", "--token").stdout == issued[-1]["token"]
    assert not list(old.glob("licenses/*.json"))

    monkeypatch.setenv("LICPLANE_PASSPHRASE", PASSPHRASE)
    run("keys", "create", "--issuer", "acme")
    run("license", "revoke", "acme-orders")
    assert states(run)["acme-orders"] == "revoked"
    issue = ("license", "issue", "--id", "new", "--subject", "N", "--org", "acme")
    made = json.loads(run(*issue, "--resource", "r", "--expires", "+1d", "--json").stdout)
    assert made["number"] == 4


def test_into_postgresql_by_name(run: Any, old: Path, postgres_url: str) -> None:
    database = ("--database", postgres_url)
    assert "Took over" in run(*database, "db", "import", str(old)).stderr
    assert states(run, *database)["acme-old"] == "revoked"
    assert "No change" in run(*database, "db", "import", str(old)).stderr
