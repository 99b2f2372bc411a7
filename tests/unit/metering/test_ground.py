# SPDX-License-Identifier: Apache-2.0
"""Mounts: which a walk enters, and what a path is inside of its filesystem."""

from __future__ import annotations

from pathlib import Path

import pytest

from licagent.metering.ground import Ground, Place, inside_filesystem, is_below, mounts

TABLE = rb"""22 1 8:1 / / rw shared:1 - ext4 /dev/sda1 rw
30 22 8:2 /vol/one /srv/my\040data rw - xfs /dev/sdb1 rw
31 22 0:5 / /proc rw - proc proc rw
32 22 0:40 / /net rw - nfs4 server:/ rw
33 22 0:41 / /sub rw - btrfs /dev/sdc rw
a line of another form
"""


@pytest.fixture
def places(tmp_path: Path) -> dict[bytes, Place]:
    path = tmp_path / "mountinfo"
    path.write_bytes(TABLE)
    return {place.point: place for place in mounts(str(path))}


def test_the_table(places: dict[bytes, Place]) -> None:
    assert set(places) == {b"/", b"/srv/my data", b"/proc", b"/net", b"/sub"}
    assert places[b"/srv/my data"].root == b"/vol/one"
    assert [place.point for place in places.values() if not place.may_be_entered] == [
        b"/proc",
        b"/net",
    ]
    assert [place.point for place in places.values() if place.shares_blocks] == [b"/sub"]


def test_where_a_path_is(places: dict[bytes, Place]) -> None:
    ground = Ground(places.values())
    assert ground.around(b"/srv/other") == places[b"/"]
    assert ground.around(b"/srv/my data/x/y") == places[b"/srv/my data"]
    assert ground.around(b"/srv/my data2") == places[b"/"]
    assert ground.covered_in(b"/srv") == {b"my data"}
    assert ground.covered_in(b"/") == {b"proc", b"net", b"sub", b""}
    assert [place.point for place in ground.below(b"/srv")] == [b"/srv/my data"]


def test_inside_of_a_filesystem(places: dict[bytes, Place]) -> None:
    data, root = places[b"/srv/my data"], places[b"/"]
    assert inside_filesystem(b"/srv/my data/a", data) == b"/vol/one/a"
    assert inside_filesystem(b"/srv/my data", data) == b"/vol/one"
    assert inside_filesystem(b"/srv", data) == b""
    assert inside_filesystem(b"/srv/x", root) == b"/srv/x"
    assert inside_filesystem(b"/", root) == b"/"


def test_below() -> None:
    assert is_below(b"/a/b", b"/a")
    assert is_below(b"/a", b"/a/")
    assert is_below(b"/a", b"/")
    assert not is_below(b"/ab", b"/a")
