# SPDX-License-Identifier: Apache-2.0
"""The units of docs/how-to/schedule-backups.md: systemd takes them, and they do their work."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest
from tests.support.pages import ROOT, blocks

LICPLANE: Final = Path(sys.executable).parent / "licplane"
PAGE: Final = ROOT / "docs" / "how-to" / "schedule-backups.md"
FOLDER: Final = "/var/backups/licplane"
WORDS: Final = "words of a test"


def units(folder: Path) -> dict[str, str]:
    """Service and timer, with the program and the folder of this test."""
    service, timer = (block.text for block in blocks(PAGE) if block.kind == "ini")
    service = service.replace("/usr/bin/licplane", str(LICPLANE))
    return {
        "licplane-backup.service": service.replace(FOLDER, str(folder / "backups")),
        "licplane-backup.timer": timer,
    }


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with a control plane's state, its credential, and a place for backups."""
    (tmp_path / "backups").mkdir()
    (tmp_path / "credentials").mkdir()
    (tmp_path / "credentials" / "licplane.passphrase").write_text(WORDS)
    command = [str(LICPLANE), "--state", str(tmp_path / "state"), "keys", "create"]
    command += ["--issuer", "acme"]
    subprocess.run(command, env={**os.environ, "LICPLANE_PASSPHRASE": WORDS}, check=True)
    return tmp_path


def night(place: Path) -> int:
    """What the service does: each command if the one before did not fail. Its status."""
    environment = {name: value for name, value in os.environ.items() if "LICPLANE" not in name}
    environment |= {
        "LICPLANE_STATE": str(place / "state"),
        "CREDENTIALS_DIRECTORY": str(place / "credentials"),
    }
    found = re.findall(r"^ExecStart=(.+)$", units(place)["licplane-backup.service"], re.MULTILINE)
    assert len(found) == 4
    for line in found:
        words = shlex.split(line.replace("$$", "$").replace("%%", "%"))
        status = subprocess.run(words, env=environment, check=False, timeout=60).returncode
        if status:
            return status
    return 0


def names(place: Path) -> list[str]:
    return sorted(each.name for each in (place / "backups").iterdir())


def test_a_night_leaves_one_backup_of_its_day_and_none_that_is_too_old(place: Path) -> None:
    backups = place / "backups"
    for name, age_days in (("2020-01-01.backup", 40), ("2020-01-02.backup", 2)):
        (backups / name).touch()
        at_s = (backups / name).stat().st_mtime - age_days * 86_400
        os.utime(backups / name, (at_s, at_s))
    (backups / "by-hand.backup").touch()
    os.utime(backups / "by-hand.backup", (0, 0))

    assert night(place) == 0
    made = [name for name in names(place) if re.fullmatch(r"20[2-9]\d-\d\d-\d\d\.backup", name)]
    assert len(made) == 2, "yesterday's and this one"
    assert "2020-01-01.backup" not in made
    assert "by-hand.backup" in names(place)
    assert (backups / made[-1]).stat().st_mode & 0o777 == 0o600
    assert (backups / made[-1]).stat().st_size > 0


def test_one_that_cannot_be_put_back_takes_no_day_and_no_other_backups_place(place: Path) -> None:
    (place / "credentials" / "licplane.passphrase").write_text("other words")
    old = place / "backups" / "2020-01-01.backup"
    old.touch()
    os.utime(old, (0, 0))
    assert night(place) != 0
    assert names(place) == ["2020-01-01.backup", "new.backup"]


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
def test_systemd_finds_no_fault_with_the_units(tmp_path: Path) -> None:
    for name, text in units(tmp_path).items():
        (tmp_path / name).write_text(text)
    files = [str(tmp_path / name) for name in units(tmp_path)]
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", *files],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")
    when = re.search(r"^OnCalendar=(.+)$", units(tmp_path)["licplane-backup.timer"], re.MULTILINE)
    assert when
    subprocess.run(["systemd-analyze", "calendar", when[1]], check=True, capture_output=True)
