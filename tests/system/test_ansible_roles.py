# SPDX-License-Identifier: Apache-2.0
"""The roles of the Ansible collection, part by part, on folders of this machine.

Nothing is installed and no service touched: tests/vm has whole plays on hosts of their own.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import pytest
from tests.system.test_ansible_modules import PROGRAMS, ROOT, run

OWN: Final = """# SPDX-License-Identifier: Apache-2.0
# Of this host, {{ by hand }}.

# observe, as long as ticket 12 is open
mode = "observe"  # not yet
labels = { region = "eu-1", mode = "fast" }
failsafe = [
  { cidr = "192.0.2.0/24", protocol = "tcp", ports = ["22"] },
]
[[footprint]]
name = "home"
path = "/home"
"""


@pytest.fixture(scope="module", autouse=True)
def ansible() -> None:
    subprocess.run([ROOT / "dev", "ansible-setup"], check=True)


class Player:
    """Plays parts of the roles on this machine, with their folders below one of the test."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.settings = folder / "etc" / "agent.toml"
        self.settings.parent.mkdir()
        self.kept = folder / "cache"
        self.kept.mkdir()

    def play(
        self,
        role: str,
        part: str,
        *options: str,
        tell: str = "1",
        facts: dict[str, Any] | None = None,
        **given: Any,
    ) -> tuple[int, str]:
        """The exit status of Ansible and what it printed; `tell` is shown when the part is done.

        `facts` can be changed by what is played, all else is fixed.
        """
        include = {"name": f"licagent.fleet.{role}", "tasks_from": part, "public": True}
        tasks: list[dict[str, Any]] = [
            {"name": "Before", "ansible.builtin.set_fact": {"a_fact": 1, **(facts or {})}},
            {"name": "Part", "ansible.builtin.include_role": include},
            {"name": "Tell", "ansible.builtin.debug": {"msg": f"told:{{{{ {tell} }}}}"}},
        ]
        play = {
            "name": "P",
            "hosts": "localhost",
            "tasks": tasks,
            "gather_subset": ["!all", "!min", "pkg_mgr"],
        }
        (self.folder / "play.yml").write_text(json.dumps([play]))
        variables = {
            "ansible_python_interpreter": sys.executable,
            "__licagent_program": str(PROGRAMS / "licagent"),
            "__licagent_folder": str(self.settings.parent),
            "__licagent_kept": str(self.kept),
            "__package_folder": str(self.kept),
            "licagent_service_enabled": False,
            **given,
        }
        done = run(
            self.folder,
            *("env", f"LICAGENT_CONFIG={self.settings}", "ansible-playbook", "-c", "local"),
            *("play.yml", "-e", json.dumps(variables), *options),
        )
        return done.returncode, done.stdout + done.stderr

    def configure(self, *options: str, **given: Any) -> tuple[int, str]:
        """Play the part that writes settings."""
        return self.play("licagent", "configure", *options, **given)


@pytest.fixture
def player(tmp_path: Path) -> Player:
    return Player(tmp_path)


def changed(output: str) -> int:
    return int(output.rpartition("changed=")[2].split()[0])


# ------------------------------------------------------------------------------ settings


def test_settings_that_the_inventory_does_not_say_stay(player: Player) -> None:
    player.settings.write_text(OWN)
    player.settings.chmod(0o640)
    foreseen = player.configure("--check", "--diff", licagent_mode="enforce")
    assert foreseen[0] == 0, foreseen[1]
    assert changed(foreseen[1]) == 1
    assert '+mode = "enforce"  # not yet' in foreseen[1]
    assert player.settings.read_text() == OWN

    untouched = player.configure()
    assert untouched[0] == 0, untouched[1]
    assert changed(untouched[1]) == 0
    first = player.configure(licagent_mode="enforce")
    assert first[0] == 0, first[1]
    assert changed(first[1]) == 1
    assert player.settings.read_text() == OWN.replace('mode = "observe"  #', 'mode = "enforce"  #')
    assert player.settings.stat().st_mode & 0o777 == 0o640
    (backup,) = player.settings.parent.glob("agent.toml.*")
    assert backup.read_text() == OWN
    again = player.configure(licagent_mode="enforce")
    assert changed(again[1]) == 0, again[1]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("", 'mode = "enforce"\n'),
        ("# a\n\n[labels]\nmode = \"x\"\n", "# a\nmode = \"enforce\"\n\n[labels]\nmode = \"x\"\n"),
        ("'mode'='observe'\r\n", "'mode'=\"enforce\"\r\n"),
    ],
)  # fmt: skip
def test_the_mode_is_that_of_no_table(player: Player, before: str, after: str) -> None:
    player.settings.write_bytes(before.encode())
    status, told = player.configure(licagent_mode="enforce")
    assert status == 0, told
    assert player.settings.read_bytes() == after.encode()


def test_a_file_that_would_be_refused_is_not_written(player: Player) -> None:
    player.settings.write_text('colour = "red"\n')
    status, told = player.configure(licagent_mode="enforce")
    assert status != 0
    assert "unknown key" in told
    assert player.settings.read_text() == 'colour = "red"\n'


def test_settings_of_the_inventory_are_the_whole_file(player: Player) -> None:
    player.settings.write_text(OWN.replace("observe", "enforce"))
    wanted = {"labels": {"region": "eu-2"}}
    first = player.configure(licagent_settings=wanted)
    assert first[0] == 0, first[1]
    written = player.settings.read_text()
    # In the mode that the host had.
    assert 'mode = "enforce"\nlabels = { region = "eu-2" }\n' in written
    assert "footprint" not in written
    assert len(list(player.settings.parent.glob("agent.toml.*"))) == 1
    assert changed(player.configure(licagent_settings=wanted)[1]) == 0


def test_refused_settings_are_mended_in_the_mode_that_they_say(player: Player) -> None:
    """As after going back to a version that does not know one of them, and does not start."""
    player.settings.write_text('mode = "enforce"\ncolour = "red"\n')
    status, told = player.configure(licagent_settings={"metering": "off"})
    assert status == 0, told
    assert 'mode = "enforce"\nmetering = "off"\n' in player.settings.read_text()

    player.settings.write_text("mode = ")
    status, told = player.configure(licagent_settings={"metering": "off"})
    assert status != 0
    assert "neither the daemon nor the file says a mode" in told
    assert player.settings.read_text() == "mode = "


def test_what_an_interrupted_run_has_left_is_read(player: Player) -> None:
    player.settings.write_text('mode = "observe"\n')
    licenses = player.settings.parent / "licenses"
    licenses.mkdir()
    (licenses / "a.lic").write_text("a")

    def unread() -> int:
        # In check mode: no daemon of this machine is told.
        status, told = player.configure("--check", licagent_service_enabled=True)
        assert status == 0, told
        return changed(told)

    note = player.kept / "read.json"
    files = (player.settings, licenses / "a.lic")
    digests = {str(each): hashlib.sha1(each.read_bytes()).hexdigest() for each in files}
    assert unread() == 1
    note.write_text(json.dumps(digests))
    assert unread() == 0
    (licenses / "a.lic").write_text("b")
    assert unread() == 1
    (licenses / "a.lic").unlink()
    assert unread() == 1


# ------------------------------------------------------------------------------ packages


def managers(*words: str) -> dict[str, Any]:
    """A package manager that answers so when it is asked what is installed."""
    ask = ["dpkg-deb", "--show", "--showformat=${Package} ${Version}"]
    return {
        "__package_managers": {
            "apt": {
                "suffix": "deb",
                "query": ["sh", "-c", f"echo '{' '.join(words)}'"],
                "query_file": ask,
            }
        },
    }


def deb(folder: Path, version: str, named: str) -> Path:
    """A package file of one version, by a name that may say another."""
    control = folder / "deb" / "DEBIAN" / "control"
    control.parent.mkdir(parents=True, exist_ok=True)
    control.write_text(
        f"Package: licagent\nVersion: {version}\nArchitecture: all\n"
        "Maintainer: T <t@example.org>\nDescription: nothing\n"
    )
    file = folder / f"licagent_{named}_amd64.deb"
    subprocess.run(["dpkg-deb", "--build", str(control.parents[1]), str(file)], check=True)
    return file


NAMES: Final = {
    "licagent_0.1.0_amd64.deb": "0.1.0",
    "licagent_0.1.0-2_amd64.deb": "0.1.0",
    "licagent-0.1.0-1.x86_64.rpm": "0.1.0",
    "licagent-0.10.2-1.el9.x86_64.rpm": "0.10.2",
    "licagent-1.2.3.4-1.fc40.noarch.rpm": "1.2.3.4",
    "licagent.deb": "",
    "licagent-new.rpm": "",
}


def test_the_version_is_read_from_names_as_packages_have_them(player: Player) -> None:
    told = player.play(
        "package",
        "look",
        tell="names | map('licagent.fleet.package_version') | join(',')",
        package_name="licagent",
        names=[f"dist_1/{name}" for name in NAMES],
        **managers("installed", "0.1.0"),
    )[1]
    assert f"told:{','.join(NAMES.values())}" in told, told


@pytest.mark.parametrize(
    ("words", "version", "is_whole"),
    [
        (("installed", "0.1.0-2"), "0.1.0", True),
        (("half-configured", "0.2.0-1"), "0.2.0", False),
        (("unpacked", "0.2.0"), "0.2.0", False),
        (("config-files", "0.1.0"), "", False),
        (("not-installed",), "", False),
        (("package", "licagent", "is", "not", "installed"), "", False),
        ((), "", False),
    ],
)
def test_what_is_installed(
    player: Player, words: tuple[str, ...], version: str, is_whole: bool
) -> None:
    tell = "__package_installed ~ '/' ~ __package_is_whole"
    told = player.play("package", "look", tell=tell, package_name="licagent", **managers(*words))[1]
    assert f"told:{version}/{is_whole}" in told, told


def test_a_file_of_another_version_is_not_brought(player: Player) -> None:
    file = deb(player.folder, "0.1.0-1", named="0.1.0-1")
    given: dict[str, Any] = {"package_name": "licagent", "package_file": str(file)}
    status, told = player.play(
        "package",
        "main",
        package_version="0.2.0",
        **given,
        **managers("installed", "0.1.0"),
    )
    assert status != 0
    assert "is version 0.1.0, and 0.2.0 is wanted" in told
    assert list(player.kept.iterdir()) == []
    # The same revision or another: the version is there.
    for version in ("0.1.0", ""):
        status, told = player.play(
            "package",
            "main",
            tell="__package_is_other",
            package_version=version,
            **given,
            **managers("installed", "0.1.0-2"),
        )
        assert status == 0, told
        assert "told:False" in told, told


def test_a_package_has_nothing_of_one_that_came_before_it(player: Player) -> None:
    """As in a play with both roles: the file of the first one named a version."""
    status, told = player.play(
        "package",
        "main",
        tell="__package_wanted ~ '/' ~ __package_before",
        facts={"__package_named": "0.9.0", "__package_before": "0.8.0"},
        package_name="licagent",
        package_file="",
        package_version="",
        **managers("installed", "0.1.0"),
    )
    assert status == 0, told
    assert "told:/0.1.0" in told, told


def test_a_renamed_file_is_neither_installed_nor_kept(player: Player) -> None:
    kept = player.kept / "licagent-0.2.0.deb"
    deb(player.folder, "0.1.0-1", named="0.2.0").rename(kept)
    given: dict[str, Any] = {
        "package_name": "licagent",
        "package_file": "",
        "__package_examined": str(kept),
    }

    right = player.play("package", "verify", __package_wanted="0.1.0", **given, **managers())
    assert right[0] == 0, right[1]
    assert kept.exists()
    wrong = player.play("package", "verify", __package_wanted="0.2.0", **given, **managers())
    assert wrong[0] != 0
    assert "is licagent 0.1.0-1, and licagent 0.2.0 is wanted; nothing was installed" in wrong[1]
    assert not kept.exists()


def test_what_is_needed_to_go_back_is_kept(player: Player) -> None:
    player.settings.write_text('mode = "enforce"\n')
    for version in ("0.1.0", "0.2.0", "0.3.0"):
        (player.kept / f"licagent-{version}.deb").touch()
    (player.kept / "settings-0.1.0").touch()
    status, told = player.play(
        "package",
        "note",
        package_name="licagent",
        package_settings=str(player.settings),
        __package_installed="0.2.0",
    )
    assert status == 0, told
    assert (player.kept / "previous").read_text() == "0.2.0\n"
    assert (player.kept / "settings-0.2.0").read_text() == 'mode = "enforce"\n'

    def judge(before: str, *now: str) -> tuple[int, str]:
        return player.play(
            "package",
            "judge",
            package_name="licagent",
            package_files_kept=True,
            __package_wanted="0.3.0",
            facts={"__package_before": before},
            **managers(*now),
        )

    # Left half way by an interrupted run: the version of before the run is the new one already.
    assert judge("0.3.0", "installed", "0.3.0")[0] == 0
    left = {"licagent-0.2.0.deb", "licagent-0.3.0.deb", "previous", "settings-0.2.0"}
    assert {each.name for each in player.kept.iterdir()} == left
    for now in (("installed", "0.2.0"), ("half-configured", "0.3.0"), ()):
        status, told = judge("0.2.0", *now)
        assert status != 0
        assert "licagent 0.3.0 is wanted, and the host has" in told


# ------------------------------------------------------------------------------ going back


@pytest.mark.parametrize("noted", ["0.1.0", "0.2.0", ""])
def test_a_rollout_that_ends_says_how_to_go_back(player: Player, noted: str) -> None:
    """Also when it is played again on a host that has the sick version already."""
    if noted:
        (player.kept / "previous").write_text(f"{noted}\n")
    variables = {
        "ansible_become": False,
        "ansible_connection": "local",
        "ansible_python_interpreter": sys.executable,
        "licagent_hosts": "localhost",
        "licagent_package": str(player.folder / "licagent_0.3.0_amd64.deb"),  # there is none
        "__package_folder": str(player.kept),
        **managers("installed", "0.2.0-1"),
    }
    command = ("ansible-playbook", "licagent.fleet.rollout", "-i", "localhost,")
    done = run(player.folder, *command, "-e", json.dumps(variables))
    assert done.returncode != 0
    assert "localhost is not well, so the rollout ends here" in done.stdout
    assert ("licagent_rollback_from=0.2.0 --limit localhost" in done.stdout) == (noted == "0.1.0")


def test_going_back_leaves_hosts_of_another_version_alone(player: Player) -> None:
    (player.kept / "previous").write_text("0.1.0\n")
    (player.kept / "licagent-0.1.0.deb").touch()

    def back(*options: str, installed: str, **given: Any) -> tuple[int, str]:
        return player.play(
            "licagent",
            "rollback",
            *("--check", *options),
            tell="__licagent_goes_back",
            **given,
            **managers("installed", installed),
        )

    unnamed = back(installed="0.2.0")
    assert unnamed[0] != 0
    assert "licagent_rollback_from" in unnamed[1]
    other = back(installed="0.2.0", licagent_rollback_from="0.3.0")
    assert "localhost has 0.2.0, not 0.3.0: nothing to do" in other[1], other[1]
    assert changed(other[1]) == 0
    gone_wrong = back(installed="0.2.0", licagent_rollback_from="0.2.0")
    assert "licagent 0.2.0 would become 0.1.0" in gone_wrong[1], gone_wrong[1]
    done = back(installed="0.1.0", licagent_rollback_from="0.2.0")
    assert done[0] == 0, done[1]
    assert changed(done[1]) == 0
    (player.kept / "previous").unlink()
    lost = back(installed="0.2.0", licagent_rollback_from="0.2.0")
    assert "no earlier version is noted" in lost[1]


def test_settings_of_before_come_back_in_the_mode_in_force(player: Player) -> None:
    player.settings.write_text('mode = "enforce"\ncolour = "red"\n')
    given: dict[str, Any] = {
        "__licagent_target": "0.1.0",
        "__licagent_settings_judged": {"stdout": "unknown key"},
        "__licagent_in_force_before": {"stdout": json.dumps({"mode": "enforce"})},
    }
    lost = player.play("licagent", "earlier_settings", **given)
    assert "0.1.0 refuses the settings" in lost[1], lost[1]
    assert "colour" in player.settings.read_text()

    (player.kept / "settings-0.1.0").write_text('# mine\nmode = "observe"\nmetering = "off"\n')
    back = player.play("licagent", "earlier_settings", **given)
    assert back[0] == 0, back[1]
    assert player.settings.read_text() == '# mine\nmode = "enforce"\nmetering = "off"\n'
    (backup,) = player.settings.parent.glob("agent.toml.*")
    assert "colour" in backup.read_text()
    assert f"which are in {backup}" in back[1]
