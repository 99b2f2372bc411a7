# SPDX-License-Identifier: Apache-2.0
"""Who answers for a subordinate uid."""

from __future__ import annotations

from pathlib import Path

import pytest

from licagent.host import subordinates
from licagent.host.subordinates import Subordinates

PASSWD = "root:x:0:0::/root:/bin/sh\nanna:x:1000:1000::/:/bin/sh\nbroken\n"
SUBUID = "anna:100000:65536\n1001:165536:10\nldap:200000:10\nroot:300000:10\nx:y:z\n\n"


def test_ranges_of_all_kinds(tmp_path: Path) -> None:
    (tmp_path / "subuid").write_text(SUBUID)
    (tmp_path / "passwd").write_text(PASSWD)
    found = Subordinates(tmp_path / "subuid", tmp_path / "passwd")
    for uid, owner in (
        (100_000, 1000),
        (165_535, 1000),
        (165_536, 1001),
        (165_546, 165_546),
        (200_009, 200_000),  # no name service is asked for the user
        (300_005, 300_000),  # not root
        (0, 0),
        (1000, 1000),
    ):
        assert found.owner_of(uid) == owner


def test_a_change_is_seen_and_a_missing_file_is_no_range(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subordinates, "_LOOK_AGAIN_S", 0.0)
    found = Subordinates(tmp_path / "subuid", tmp_path / "passwd")
    assert found.owner_of(100_000) == 100_000
    (tmp_path / "passwd").write_text(PASSWD)
    (tmp_path / "subuid").write_text(SUBUID)
    assert found.owner_of(100_000) == 1000
