# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from licagent.host.mounts import MountTable, parse_mountinfo, unescape


def test_a_line_of_each_form() -> None:
    (first, second) = parse_mountinfo(
        "36 35 98:0 /mnt1 /mnt\\0402 rw,noatime master:1 shared:7 - ext3 /dev/root rw,errors=x\n"
        "nonsense\n"
        "37 35 0:5 / / rw - fuse.sshfs user@host:/\\011x rw\n"
    )
    assert (first.mount_id, first.parent_id, first.major, first.minor) == (36, 35, 98, 0)
    assert (first.root, first.point, first.filesystem) == ("/mnt1", "/mnt 2", "ext3")
    assert first.options == {"rw", "noatime"}
    assert first.super_options == {"rw", "errors=x"}
    assert second.filesystem == "fuse.sshfs"
    assert second.source == "user@host:/\tx"


@given(st.text(max_size=200))
def test_any_text_is_survived(text: str) -> None:
    list(parse_mountinfo(text))
    unescape(text)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_a_new_mount_is_seen_at_once(tmp_path: Path) -> None:
    table = MountTable()
    point = tmp_path / "a b"
    point.mkdir()
    try:
        assert all(mount.point != str(point) for mount in table.of_filesystem("tmpfs"))
        subprocess.run(["mount", "-t", "tmpfs", "none", point], check=True)
        try:
            device = point.stat().st_dev
            (mount,) = table.on_device(os.major(device), os.minor(device))
            assert mount.point == str(point)
            assert table.by_id(mount.mount_id) == mount
        finally:
            subprocess.run(["umount", point], check=True)
        assert table.on_device(os.major(device), os.minor(device)) == ()
        assert table.by_id(-1) is None
    finally:
        table.close()
