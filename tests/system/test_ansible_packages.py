# SPDX-License-Identifier: Apache-2.0
"""The role that has one package in one version: package files, and Red Hat's family.

Nothing is installed on this machine: dpkg is asked of files alone, and rpm has a database of the
test's own. dnf, which is not there, is a stand-in that has rpm write what it would.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any, Final

import pytest
from tests.system.test_ansible_modules import ROOT
from tests.system.test_ansible_roles import Player, changed, deb, managers


@pytest.fixture(scope="module", autouse=True)
def ansible() -> None:
    subprocess.run([ROOT / "dev", "ansible-setup"], check=True)


@pytest.fixture
def player(tmp_path: Path) -> Player:
    return Player(tmp_path)


def test_a_renamed_file_takes_no_kept_ones_place(player: Player) -> None:
    good = deb(player.folder, "0.1.0-1", named="0.1.0")
    kept = player.kept / "licagent-0.1.0.deb"

    def bring(*options: str) -> tuple[int, str]:
        given: dict[str, Any] = {"package_name": "licagent", "package_file": str(good)}
        return player.play("package", "main", *options, **given, **managers("installed", "0.1.0-1"))

    foreseen = bring("--check", "--diff")
    assert (foreseen[0], changed(foreseen[1])) == (0, 1), foreseen[1]
    assert list(player.kept.iterdir()) == []
    first = bring()
    assert (first[0], changed(first[1])) == (0, 1), first[1]
    assert kept.read_bytes() == good.read_bytes()
    again = bring()
    assert (again[0], changed(again[1])) == (0, 0), again[1]

    before = kept.read_bytes()
    deb(player.folder, "0.2.0-1", named="0.1.0")
    status, told = bring()
    assert status != 0
    assert "is licagent 0.2.0-1, and licagent 0.1.0 is wanted; nothing was installed" in told
    assert kept.read_bytes() == before
    assert list(player.kept.iterdir()) == [kept]

    # Another build of the version may take the place.
    deb(player.folder, "0.1.0-2", named="0.1.0")
    foreseen = bring("--check", "--diff")
    assert (foreseen[0], changed(foreseen[1])) == (0, 1), foreseen[1]
    assert kept.read_bytes() == before
    assert bring()[0] == 0
    assert kept.read_bytes() == good.read_bytes()
    assert list(player.kept.iterdir()) == [kept]

    # One that is kept already and wrong, from when nothing was looked into, is kept no longer.
    deb(player.folder, "0.2.0-1", named="0.1.0")
    shutil.copy(good, kept)
    assert bring()[0] != 0
    assert list(player.kept.iterdir()) == []


# ------------------------------------------------------------------------------ Red Hat's family

SPEC: Final = """
Name: licagent
Version: {version}
Release: 1
Summary: nothing
License: Apache-2.0
BuildArch: noarch
%description
Nothing.
%files
"""
RPM: Final = """#!/bin/sh
exec {program} --dbpath {folder}/rpmdb "$@"
"""
DNF: Final = """#!/usr/bin/python3
# WANT_JSON
import json, pathlib, subprocess, sys

given = json.load(open(sys.argv[1]))
name = given["name"]
if not name.startswith("/"):
    (name,) = pathlib.Path("{folder}/repository").glob(name + "-*.rpm")
if given.get("_ansible_check_mode"):
    print(json.dumps({{"changed": True}}))
    sys.exit()
how = ["--justdb", "--nodeps", "--nosignature"]
if given["allow_downgrade"]:
    how.append("--oldpackage")
done = subprocess.run(["rpm", "--upgrade", *how, str(name)], capture_output=True, text=True)
print(json.dumps({{"changed": True, "failed": done.returncode != 0, "msg": done.stderr}}))
"""


class RedHat(Player):
    """Plays the role as where there is dnf, with rpm itself on a database in the test's folder."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        program = shutil.which("rpm")
        if program is None or shutil.which("rpmbuild") is None:
            pytest.skip("needs rpm and rpmbuild")
        self.programs = folder / "bin"
        self.programs.mkdir()
        (self.programs / "rpm").write_text(RPM.format(program=program, folder=folder))
        (self.programs / "rpm").chmod(0o755)
        # The action of dnf takes a module beside the playbook for that of Ansible.
        (folder / "library").mkdir()
        (folder / "library" / "dnf.py").write_text(DNF.format(folder=folder))
        (folder / "repository").mkdir()

    def rpm(self, version: str) -> Path:
        """A package file as rpmbuild makes it."""
        (self.folder / "licagent.spec").write_text(SPEC.format(version=version))
        top = self.folder / "rpmbuild"
        command = ["rpmbuild", "-bb", "--quiet", "--define", f"_topdir {top}", "licagent.spec"]
        subprocess.run(command, cwd=self.folder, check=True)
        return top / "RPMS" / "noarch" / f"licagent-{version}-1.noarch.rpm"

    def have(self, *options: str, **given: Any) -> tuple[int, str]:
        """Play the whole role; "told:" and what is installed is in what it printed."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("PATH", f"{self.programs}:{os.environ['PATH']}")
            return self.play(
                "package",
                "main",
                *options,
                tell="__package_installed ~ '/' ~ __package_is_whole",
                facts={"ansible_pkg_mgr": "dnf", "cacheable": True},
                package_name="licagent",
                **given,
            )


def test_versions_come_and_go_back_by_rpm(tmp_path: Path) -> None:
    host = RedHat(tmp_path)
    old, new = host.rpm("0.1.0"), host.rpm("0.2.0")

    foreseen = host.have("--check", package_file=str(old))
    assert foreseen[0] == 0, foreseen[1]
    assert "licagent none would become 0.1.0" in foreseen[1], foreseen[1]
    first = host.have(package_file=str(old))
    assert first[0] == 0, first[1]
    assert "told:0.1.0/True" in first[1], first[1]
    # There was none before.
    assert {each.name for each in host.kept.iterdir()} == {"licagent-0.1.0.rpm"}
    again = host.have(package_file=str(old))
    assert (again[0], changed(again[1])) == (0, 0), again[1]

    newer = host.have(package_file=str(new))
    assert "told:0.2.0/True" in newer[1], newer[1]
    assert (host.kept / "previous").read_text() == "0.1.0\n"
    back = host.have(package_file="", package_version="0.1.0")
    assert "told:0.1.0/True" in back[1], back[1]

    shutil.copy(new, host.kept / "licagent-0.3.0.rpm")
    wrong = host.have(package_file="", package_version="0.3.0")
    assert "is licagent 0.2.0, and licagent 0.3.0 is wanted; nothing was installed" in wrong[1]


def test_the_newest_comes_from_a_repository_of_rpms(tmp_path: Path) -> None:
    host = RedHat(tmp_path)
    lacking = host.have("--check", package_version="0.2.0")
    assert lacking[0] != 0
    shutil.copy(host.rpm("0.2.0"), tmp_path / "repository")
    for version in ("", "0.2.0"):
        foreseen = host.have("--check", package_version=version)
        assert (foreseen[0], changed(foreseen[1])) == (0, 1), foreseen[1]
    status, told = host.have()
    assert (status, changed(told)) == (0, 1), told
    assert "told:0.2.0/True" in told, told
    assert list(host.kept.iterdir()) == []
    assert changed(host.have()[1]) == 0
