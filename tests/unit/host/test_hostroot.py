# SPDX-License-Identifier: Apache-2.0
"""Paths of the host where this process has a /tmp of its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from licagent.host import hostroot

_PRIVATE = (
    "30 1 8:1 / / rw shared:1 - ext4 /dev/sda1 rw\n"
    "40 30 8:1 /tmp/systemd-private-0123-licagent.service-aB3/tmp /tmp rw - ext4 /dev/sda1 rw\n"
    "41 30 0:40 /systemd-private-0123-licagent.service-cD4/tmp /var/tmp rw - tmpfs tmpfs rw\n"
    "42 30 0:41 / /run rw - tmpfs tmpfs rw\n"
)


@pytest.fixture
def private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mount table as systemd makes it by PrivateTmp=yes."""
    file = tmp_path / "mountinfo"
    file.write_text(_PRIVATE)
    found = hostroot.hidden_folders(file)
    monkeypatch.setattr(hostroot, "hidden_folders", lambda: found)


@pytest.mark.usefixtures("private")
def test_what_is_hidden_is_looked_up_from_process_1() -> None:
    assert hostroot.as_host_sees("/tmp/prog") == "/proc/1/root/tmp/prog"
    assert hostroot.as_host_sees("/var/tmp") == "/proc/1/root/var/tmp"
    assert hostroot.as_host_sees("/tmpfiles/prog") == "/tmpfiles/prog"
    assert hostroot.as_host_sees("/usr/bin/python3") == "/usr/bin/python3"


def test_without_a_private_folder_a_path_is_itself(tmp_path: Path) -> None:
    file = tmp_path / "mountinfo"
    file.write_text("30 1 8:1 / / rw - ext4 /dev/sda1 rw\n31 30 0:5 / /tmp rw - tmpfs tmpfs rw\n")
    assert hostroot.hidden_folders(file) == ()
