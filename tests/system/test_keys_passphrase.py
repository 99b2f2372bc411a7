# SPDX-License-Identifier: Apache-2.0
"""The keys' passphrase is changed under a server with two workers."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from tests.bench import control_peer
from tests.system.harness.controlplane import PASSPHRASE, ControlPlane, takes_connections
from tests.system.harness.looking import roots
from tests.system.harness.scene import eventually

pytest_plugins = ["tests.support.postgres"]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

NEW = "other words for it"
LOST = "which this server does not have"
HAD = "which this server has"


class Changing(ControlPlane):
    """A control plane whose commands take the passphrase from here."""

    words = PASSPHRASE

    @property
    def environment(self) -> dict[str, str]:
        """The environment of its commands."""
        return {**super().environment, "LICPLANE_PASSPHRASE": self.words}


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest) -> str:
    """Of the control plane; "": in its state folder."""
    if request.param == "sqlite":
        return ""
    url: str = request.getfixturevalue("postgres_url")
    return url


def roots_told(plane: ControlPlane) -> int:
    """How many roots a host is told of that joins now."""
    join = control_peer.Join.parse(plane.join())
    return asyncio.run(control_peer.enroll(join)).ca_pem.count(b"BEGIN CERTIFICATE")


def test_the_passphrase_changes_under_a_server(database: str, tmp_path: Path) -> None:
    file, new = tmp_path / "passphrase", tmp_path / "new"
    file.write_text(f"{PASSPHRASE}\n")
    new.write_text(f"{NEW}\n")
    with Changing("--passphrase-file", str(file), "--workers", "2", database=database) as plane:
        plane.make_keys()
        plane.start()
        assert all(map(takes_connections, plane.workers_metrics(2))), "both workers serve"
        change = ("keys", "passphrase", "--new-passphrase-file", new)
        answer = plane.cli(*change, "--json", timeout_s=120).json
        assert (answer["changed"], answer["left"]) == (2, [])

        # Each worker says that it cannot follow, and goes on with what it has.
        eventually(lambda: plane.log().count(LOST) == 2, "both workers say so")
        plane.words = NEW
        assert roots_told(plane) == 1

        # With the new one in the server's file, it takes up what is made from now on.
        file.write_text(f"{NEW}\n")
        plane.do("ca", "create")
        assert roots(plane)["coming"]
        eventually(lambda: roots_told(plane) == 2, "the server has the next root too")

        # It is changed while the server has the new one already: that is said as well.
        new.write_text(f"{NEW} still\n")
        file.write_text(f"{NEW} still\n")
        plane.do(*change)
        eventually(lambda: plane.log().count(HAD) == 2, "both workers say so")
        plane.words = f"{NEW} still"
        plane.stop()
        file.write_text(f"{PASSPHRASE}\n")
        assert plane.cli("serve", *plane.addresses, *plane.options).status == 5
        file.write_text(f"{NEW} still\n")
        plane.start()
        assert roots_told(plane) == 2
        assert plane.ask("audit", "verify")["intact"] is True
