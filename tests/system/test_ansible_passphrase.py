# SPDX-License-Identifier: Apache-2.0
"""The role licplane and the passphrase: kept, kept anew, changed, and after each a service's start.

With the machine's own systemd-creds, by a secret in the test's folder, and real keys. Only
systemd-run is a stand-in, for a machine without systemd: it does what the role asks it for.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).parents[2]
ANSIBLE: Final = ROOT / "build" / "ansible"
LICPLANE: Final = Path(sys.executable).parent / "licplane"
OLD: Final = "correct horse battery"
NEW: Final = "staple of another kind"

STAND_IN: Final = """#!/bin/sh
# Runs the program with the credential decrypted, as the service manager gives it.
while [ "${1#-}" != "$1" ]; do
    case $1 in
        --property=LoadCredentialEncrypted=licplane.passphrase:*) file=${1##*:} ;;
    esac
    shift
done
export CREDENTIALS_DIRECTORY=$(mktemp -d -p "$STAGE")
if ! systemd-creds decrypt --name=licplane.passphrase "$file" - \\
    >"$CREDENTIALS_DIRECTORY/licplane.passphrase"; then
    exit 243 # EXIT_CREDENTIALS
fi
[ ! -e "$STAGE/fault-before-$3$2" ] || exit 1
"$@"
status=$?
[ ! -e "$STAGE/fault-after-$3$2" ] || exit 1
exit $status
"""

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
    pytest.mark.skipif(shutil.which("systemd-creds") is None, reason="needs systemd-creds"),
]


@pytest.fixture(scope="module", autouse=True)
def ansible() -> None:
    subprocess.run([ROOT / "dev", "ansible-setup"], check=True)


@dataclass(frozen=True, slots=True)
class Machine:
    """A control plane's machine in a folder: /etc/licplane, state, and systemd's secret."""

    folder: Path

    @property
    def credential(self) -> Path:
        return self.folder / "etc" / "passphrase.cred"

    @property
    def environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if "LICPLANE" not in name}
        return kept | {
            "PATH": f"{self.folder / 'bin'}:{ANSIBLE / 'bin'}:{os.environ['PATH']}",
            "STAGE": str(self.folder),
            "SYSTEMD_CREDENTIAL_SECRET": str(self.folder / "secret"),
            "LICPLANE_STATE": str(self.folder / "state"),
            "ANSIBLE_COLLECTIONS_PATH": str(ANSIBLE / "collections"),
            "ANSIBLE_HOME": str(self.folder / "home"),
            "ANSIBLE_NOCOLOR": "1",
            "ANSIBLE_LOCALHOST_WARNING": "0",
        }

    def run(self, *command: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command,
            cwd=self.folder,
            env=self.environment,
            input=stdin,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )

    def play(self, passphrase: str, *options: str, changed: bool = False) -> tuple[int, int, str]:
        """Status of the role's tasks, how many changed something, what Ansible printed."""
        given = {
            "ansible_python_interpreter": sys.executable,
            "licplane_passphrase": passphrase,
            "licplane_passphrase_changed": changed,
            "licplane_service_enabled": False,
            "__licplane_folder": str(self.credential.parent),
            "__licplane_credential": str(self.credential),
            "__licplane_program": [str(LICPLANE)],
        }
        (self.folder / "given.json").write_text(json.dumps(given))
        done = self.run(
            *("ansible-playbook", "-c", "local", "-vvv", "play.yml", "-e", "@given.json"),
            *options,
        )
        shown = done.stdout + done.stderr
        assert OLD not in shown
        assert NEW not in shown
        assert not self.credential.with_suffix(".cred.new").exists()
        recap = re.search(r"changed=(\d+)", shown)
        assert recap, shown
        return done.returncode, int(recap[1]), shown

    def starts(self) -> bool:
        """Whether the service's credential is decrypted, and opens the keys."""
        asked = ("apply", "--dry-run", "--file", "-")
        credential = f"--property=LoadCredentialEncrypted=licplane.passphrase:{self.credential}"
        command = ("systemd-run", credential, str(LICPLANE), *asked)
        return self.run(*command, stdin="resource: []").returncode == 0

    def make_keys(self, passphrase: str) -> None:
        done = self.run(
            *(str(LICPLANE), "keys", "create", "--issuer", "acme", "--passphrase-file", "-"),
            stdin=passphrase,
        )
        assert done.returncode == 0, done.stderr


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    include = {"name": "licagent.fleet.licplane", "tasks_from": "passphrase"}
    tasks = [{"name": "Passphrase", "ansible.builtin.include_role": include}]
    play = {"name": "P", "hosts": "localhost", "gather_facts": False, "tasks": tasks}
    (tmp_path / "play.yml").write_text(json.dumps([play]))
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "systemd-run").write_text(STAND_IN)
    (tmp_path / "bin" / "systemd-run").chmod(0o755)
    return Machine(tmp_path)


@pytest.fixture
def served(machine: Machine) -> Machine:
    """With keys, and the passphrase of the role."""
    status, changed, shown = machine.play(OLD)
    assert (status, changed > 0) == (0, True), shown
    machine.make_keys(OLD)
    assert machine.starts()
    return machine


def test_it_is_kept_once_and_another_one_is_refused(served: Machine) -> None:
    kept = served.credential.read_bytes()
    for given in (OLD, ""):
        status, changed, shown = served.play(given)
        assert (status, changed) == (0, 0), shown

    status, _, shown = served.play(NEW)
    assert status != 0
    assert "set licplane_passphrase_changed" in shown
    assert served.credential.read_bytes() == kept


def test_it_is_changed_for_keys_and_service(served: Machine) -> None:
    status, changed, shown = served.play(NEW, "--check", changed=True)
    assert (status, changed > 0, served.starts()) == (0, True, True), shown

    status, changed, shown = served.play(NEW, changed=True)
    assert (status, changed > 0) == (0, True), shown
    assert served.starts()
    refused = served.run(
        *(str(LICPLANE), "keys", "create", "--issuer", "acme", "--passphrase-file", "-"),
        stdin=OLD,
    )
    assert refused.returncode != 0, "the old one opens nothing any more"
    status, changed, shown = served.play(NEW, changed=True)
    assert (status, changed) == (0, 0), shown


@pytest.mark.parametrize("fault", ["fault-before-passphrasekeys", "fault-after-passphrasekeys"])
def test_a_change_that_was_interrupted_is_finished_by_the_next_run(
    served: Machine, fault: str
) -> None:
    """Before the keys were changed, or between them and the service's credential."""
    (served.folder / fault).touch()
    lost = served.folder / "fault-before---dry-runapply"
    lost.touch()  # nor does the role reach what comes next
    status, _, _ = served.play(NEW, changed=True)
    assert status != 0
    (served.folder / fault).unlink()
    lost.unlink()
    assert served.starts() is (fault == "fault-before-passphrasekeys")

    status, changed, shown = served.play(NEW, changed=True)
    assert (status, changed > 0) == (0, True), shown
    assert served.starts()


def test_on_another_machine_it_is_kept_anew_if_it_opens_the_keys(served: Machine) -> None:
    (served.folder / "secret").unlink()
    assert not served.starts()
    status, _, shown = served.play("")
    assert status != 0
    assert "set licplane_passphrase" in shown

    before = served.credential.read_bytes()
    status, _, shown = served.play(NEW)
    assert status != 0
    assert "does not open the keys, and was not kept" in shown
    assert served.credential.read_bytes() == before

    status, changed, shown = served.play(OLD)
    assert (status, changed > 0) == (0, True), shown
    assert served.starts()
