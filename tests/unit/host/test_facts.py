# SPDX-License-Identifier: Apache-2.0
"""Posture facts, from made-up trees, and from this machine where that shows something."""

from __future__ import annotations

import base64
import hashlib
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from licagent.host.disk_encryption import root_is_encrypted
from licagent.host.facts import FactReader
from licagent.host.integrity import Integrity, files_of, measured, own_folders, recorded
from licagent.host.measurable import FRESH_NS

Tree = Callable[..., Path]


def mountinfo(root: Path, device: str, filesystem: str = "ext4", source: str = "/dev/x") -> None:
    (root / "proc/self").mkdir(parents=True, exist_ok=True)
    (root / "proc/self/mountinfo").write_text(
        "1 0 0:2 / / rw - rootfs rootfs rw\n"
        f"22 1 {device} / / rw - {filesystem} {source} rw\n"
        "23 22 9:9 / /boot rw - ext4 /dev/boot rw\n"
    )


@pytest.fixture
def device(tmp_path: Path) -> Tree:
    """Makes a block device in a made-up sysfs, and answers its folder."""

    def make(name: str, number: str, *slaves: str, uuid: str = "", partition_of: str = "") -> Path:
        blocks = tmp_path / "sys/devices/block"
        folder = blocks / partition_of / name if partition_of else blocks / name
        folder.mkdir(parents=True)
        (folder / "dev").write_text(f"{number}\n")
        if partition_of:
            (folder / "partition").write_text("1\n")
        if uuid:
            (folder / "dm").mkdir()
            (folder / "dm/uuid").write_text(f"{uuid}\n")
        (folder / "slaves").mkdir()
        for slave in slaves:
            (folder / "slaves" / slave).symlink_to(next(blocks.rglob(slave)))
        numbers = tmp_path / "sys/dev/block"
        numbers.mkdir(parents=True, exist_ok=True)
        (numbers / number).symlink_to(folder)
        return folder

    return make


def test_a_plain_disk(tmp_path: Path, device: Tree) -> None:
    device("vda", "8:0")
    device("vda1", "8:1", partition_of="vda")
    mountinfo(tmp_path, "8:1")
    assert root_is_encrypted(tmp_path) is False


def test_crypt_below_logical_volumes(tmp_path: Path, device: Tree) -> None:
    device("vda", "8:0")
    device("dm-0", "253:0", "vda", uuid="CRYPT-LUKS2-0123-root")
    device("dm-1", "253:1", "dm-0", uuid="LVM-abc")
    mountinfo(tmp_path, "253:1")
    assert root_is_encrypted(tmp_path) is True


def test_one_plain_disk_of_several_is_enough_to_be_plain(tmp_path: Path, device: Tree) -> None:
    device("vda", "8:0")
    device("vdb", "8:16")
    device("dm-0", "253:0", "vda", uuid="CRYPT-LUKS2-0123-a")
    device("md0", "9:0", "dm-0", "vdb")
    mountinfo(tmp_path, "9:0")
    assert root_is_encrypted(tmp_path) is False


def test_a_name_that_only_looks_encrypted_is_not(tmp_path: Path, device: Tree) -> None:
    device("dm-0", "253:0", uuid="LVM-CRYPT-abc")
    mountinfo(tmp_path, "253:0")
    assert root_is_encrypted(tmp_path) is False


@pytest.mark.parametrize(("second", "expected"), [("CRYPT-PLAIN-b", True), ("LVM-b", False)])
def test_btrfs_lies_on_all_its_devices(
    tmp_path: Path, device: Tree, second: str, expected: bool
) -> None:
    members = tmp_path / "sys/fs/btrfs/uuid/devices"
    members.mkdir(parents=True)
    for name, number, uuid in (("dm-0", "253:0", "CRYPT-LUKS2-a"), ("dm-1", "253:1", second)):
        (members / name).symlink_to(device(name, number, uuid=uuid))
    (tmp_path / "dev/mapper").mkdir(parents=True)
    (tmp_path / "dev/dm-0").touch()
    (tmp_path / "dev/mapper/root").symlink_to("../dm-0")
    mountinfo(tmp_path, "0:31", "btrfs", "/dev/mapper/root")
    assert root_is_encrypted(tmp_path) is expected


@pytest.mark.parametrize("filesystem", ["overlay", "tmpfs", "nfs", "zfs", "btrfs"])
def test_what_lies_on_no_device_that_is_known_is_not_known(tmp_path: Path, filesystem: str) -> None:
    (tmp_path / "sys").mkdir()
    mountinfo(tmp_path, "0:31", filesystem, "nothing")
    assert root_is_encrypted(tmp_path) is None


def test_a_missing_tree_is_not_known(tmp_path: Path, device: Tree) -> None:
    assert root_is_encrypted(tmp_path) is None
    mountinfo(tmp_path, "8:1")
    assert root_is_encrypted(tmp_path) is None
    # A loop, which sysfs has none of.
    folder = device("dm-0", "253:0", uuid="LVM-a")
    (folder / "slaves/dm-0").symlink_to(folder)
    mountinfo(tmp_path, "253:0")
    assert root_is_encrypted(tmp_path) is None


def test_facts_of_a_made_up_host(tmp_path: Path) -> None:
    reader = FactReader(tmp_path, synchronised=lambda: None)
    assert dict(reader.read()) == {}, "nothing is known of nothing"
    (tmp_path / "proc/sys/kernel").mkdir(parents=True)
    (tmp_path / "proc/sys/kernel/osrelease").write_text("6.1.0-18-amd64\n")
    (tmp_path / "sys/firmware/efi/efivars").mkdir(parents=True)
    (tmp_path / "run").mkdir()
    whole = FactReader(tmp_path, synchronised=lambda: True, is_whole=lambda: False)
    assert dict(whole.read()) == {
        "kernel": "6.1.0-18-amd64",
        "clock_in_sync": "true",
        "agent_integrity": "false",
        "pending_reboot": "false",
    }
    name = "SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c"
    variable = tmp_path / "sys/firmware/efi/efivars" / name
    for content, expected in ((b"\6\0\0\0\1", "true"), (b"\6\0\0\0\0", "false"), (b"", None)):
        variable.write_bytes(content)
        assert whole.read().get("secure_boot") == expected


def test_a_host_without_efi_has_no_secure_boot(tmp_path: Path) -> None:
    (tmp_path / "sys/firmware/acpi").mkdir(parents=True)
    assert FactReader(tmp_path).read()["secure_boot"] == "false"


@pytest.mark.parametrize("mark", ["reboot-required", "reboot-needed"])
def test_a_pending_reboot_comes_and_goes(tmp_path: Path, mark: str) -> None:
    (tmp_path / "run").mkdir()
    reader = FactReader(tmp_path)
    found = [reader.read()["pending_reboot"]]
    (tmp_path / "run" / mark).touch()
    found.append(reader.read()["pending_reboot"])
    (tmp_path / "run" / mark).unlink()
    found.append(reader.read()["pending_reboot"])
    assert found == ["false", "true", "false"]


def test_this_machine() -> None:
    found = FactReader().read()
    assert found["kernel"] == os.uname().release
    assert found["clock_in_sync"] in ("true", "false")
    assert set(found.values()) - {found["kernel"]} <= {"true", "false"}


# --- the agent's own files


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    package = tmp_path / "site/agent"
    (package / "sub/__pycache__").mkdir(parents=True)
    (package / "a.py").write_text("one")
    (package / "sub/b.o").write_text("two")
    (package / "sub/__pycache__/a.pyc").write_text("three")
    (package / "notes.txt").write_text("four")
    return package


def next_tick() -> None:
    """What is changed now has another change time than before, which the clock's ticks bound."""
    time.sleep(2 * FRESH_NS / 1e9)


def test_an_altered_file_is_found_and_a_restored_one_is_good_again(folder: Path) -> None:
    integrity = Integrity(measured([folder]))
    assert len(integrity) == 2
    assert integrity.check() == ()
    status = (folder / "a.py").stat()
    next_tick()
    (folder / "a.py").write_text("0ne")
    # As long as before, and its time of change set back.
    os.utime(folder / "a.py", ns=(status.st_atime_ns, status.st_mtime_ns))
    assert integrity.check() == (folder / "a.py",)
    assert integrity.check() == (folder / "a.py",), "it stays so without being read again"
    next_tick()
    (folder / "a.py").write_text("one")
    assert integrity.check() == ()


def test_a_file_that_is_gone_is_altered(folder: Path) -> None:
    integrity = Integrity(measured([folder]))
    (folder / "sub/b.o").unlink()
    assert integrity.check() == (folder / "sub/b.o",)
    (folder / "sub/b.o").write_text("two")
    assert integrity.check() == ()


def test_an_unchanged_file_is_read_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    integrity = Integrity(measured([folder]))
    integrity.check()
    monkeypatch.setattr("licagent.host.integrity.sha256", lambda _path: "read again")
    assert integrity.check() == ()


def test_what_an_installation_recorded(folder: Path) -> None:
    information = folder.parent / "agent-1.dist-info"
    information.mkdir()
    digest = base64.urlsafe_b64encode(hashlib.sha256(b"one").digest()).rstrip(b"=").decode()
    (information / "RECORD").write_text(
        f"agent/a.py,sha256={digest},3\nother/a.py,sha256={digest},3\n"
        f"../../etc/passwd,sha256={digest},3\nagent/sub/__pycache__/a.pyc,,\nbroken\n"
    )
    found = recorded([folder])
    assert found == {folder / "a.py": hashlib.sha256(b"one").hexdigest()}
    assert Integrity(found).check() == ()


def test_the_agents_own_files_are_found() -> None:
    names = {path.name for path in files_of(own_folders())}
    assert {"facts.py", "claims.py"} <= names
