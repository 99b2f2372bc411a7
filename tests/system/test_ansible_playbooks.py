# SPDX-License-Identifier: Apache-2.0
"""Playbooks and modules of the Ansible collection: going back, joining, policy that is no more.

The playbooks are as they are; what they would do on hosts is done by stand-ins.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest
from tests.system.harness.scene import HOLDER, Scene
from tests.system.test_ansible_modules import PROGRAMS, ROOT, answer_of, module, run


@pytest.fixture(scope="module", autouse=True)
def ansible() -> None:
    subprocess.run([ROOT / "dev", "ansible-setup"], check=True)


ROLLBACK: Final = """
- name: The stand-in of a role that goes back
  ansible.builtin.raw: echo back
"""


def test_a_rollback_names_its_version_and_ends_at_a_host_that_is_not_reached(
    tmp_path: Path,
) -> None:
    fleet = tmp_path / "collections" / "ansible_collections" / "licagent" / "fleet"
    (fleet / "roles" / "licagent" / "tasks").mkdir(parents=True)
    (fleet / "roles" / "licagent" / "tasks" / "rollback.yml").write_text(ROLLBACK)
    (fleet / "playbooks").symlink_to(ROOT / "packaging" / "ansible" / "playbooks")
    here = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable}
    # Port 1 of this machine: nobody listens there.
    away = {"ansible_host": "127.0.0.1", "ansible_port": 1, "ansible_ssh_retries": 0}
    hosts = {"a": here, "b": away, "c": here}
    inventory = {"licagent": {"hosts": hosts, "vars": {"ansible_become": False}}}
    (tmp_path / "hosts.yml").write_text(json.dumps(inventory))

    def play(**given: object) -> tuple[int, str]:
        given = {"licagent_rollback_batches": [2, 1], **given}
        done = run(
            tmp_path,
            *("env", f"ANSIBLE_COLLECTIONS_PATH={tmp_path / 'collections'}", "ansible-playbook"),
            *("-i", "hosts.yml", "-e", json.dumps(given), "licagent.fleet.rollback"),
        )
        return done.returncode, done.stdout.partition("PLAY RECAP")[0]

    status, told = play()
    assert status != 0
    assert "Name the version that went wrong" in told
    assert "changed:" not in told
    status, told = play(licagent_rollback_from="0.2.0")
    assert status != 0
    assert "changed: [a]" in told
    assert "The rollback ends here; not reached or not well: b" in told, told
    assert "changed: [c]" not in told


JOINING: Final = """#!/usr/bin/python3
import json
print(json.dumps({"changed": True, "would_join": True, "is_installed": %s, "is_running": %s}))
"""
PLANE: Final = """
case "$*" in
*token*) touch asked; echo 'licplane: no such label, licjoin1.secret' >&2; exit 7 ;;
*) echo '{"hosts": []}' ;;
esac
"""


def test_no_token_is_made_for_a_host_that_cannot_join_and_why_there_is_none_is_told(
    tmp_path: Path,
) -> None:
    fleet = tmp_path / "collections" / "ansible_collections" / "licagent" / "fleet"
    modules = fleet / "plugins" / "modules"
    modules.mkdir(parents=True)
    (fleet / "playbooks").symlink_to(ROOT / "packaging" / "ansible" / "playbooks")
    given = {
        "ansible_become": False,
        "ansible_connection": "local",
        "ansible_python_interpreter": sys.executable,
        "licagent_plane_command": ["env", "-C", str(tmp_path), "sh", "-c", PLANE, "sh"],
    }

    def play(*, is_installed: bool, is_running: bool) -> str:
        for name in ("enrollment", "health"):
            (modules / f"{name}.py").write_text(JOINING % (is_installed, is_running))
        done = run(
            tmp_path,
            *("env", f"ANSIBLE_COLLECTIONS_PATH={tmp_path / 'collections'}", "ansible-playbook"),
            *("-i", "one,", "-e", json.dumps({**given, "licagent_hosts": "all"})),
            "licagent.fleet.enroll",
        )
        assert done.returncode != 0, done.stdout
        return done.stdout + done.stderr

    assert "licagent is not installed" in play(is_installed=False, is_running=False)
    assert "its daemon does not answer" in play(is_installed=True, is_running=False)
    assert not (tmp_path / "asked").exists()
    told = play(is_installed=True, is_running=True)
    assert (tmp_path / "asked").exists()
    assert "made no token: licplane: no such label, licjoin1..." in told, told
    assert "secret" not in told


def resource(name: str, net: str) -> dict[str, str]:
    cidr = f'destinations = [{{ cidr = "{net}" }}]'
    text = f'[[resource]]\nname = "{name}"\nkind = "network"\n{cidr}\n'
    return {"name": f"{name}.toml", "content": text}


def test_policy_that_is_named_no_more_goes(make_scene: Callable[..., Scene]) -> None:
    scene = make_scene()
    scene.agent.start()
    scene.ready()
    folder = scene.agent.config / "policy.d"

    def play(*options: str, **given: Any) -> dict[str, Any]:
        return module(scene.agent, "policy", *options, folder=str(folder), **given)

    def names() -> set[str]:
        return {row["name"] for row in scene.ask("policy", "show")["resources"]}

    both = [resource("lan", "192.0.2.0/25"), resource("dmz", "192.0.2.128/25")]
    play(files=both)
    assert play(files=both[:1])["changed"] is False
    assert {"lan", "dmz"} <= names()

    foreseen = play("--check", files=both[:1], exclusive=True)
    assert foreseen["changed"] is True
    assert {"lan", "dmz"} <= names()
    assert play(files=both[:1], exclusive=True)["changed"] is True
    assert names() == {"lan"}
    assert [path.name for path in folder.glob("*.toml")] == ["lan.toml"]
    assert play(files=both[:1], exclusive=True)["changed"] is False
    assert play(files=[], exclusive=True)["changed"] is True
    assert names() == set()


def test_policy_that_goes_is_judged_as_gone(make_scene: Callable[..., Scene]) -> None:
    scene = make_scene()
    scene.agent.start()
    scene.ready()
    folder = scene.agent.config / "policy.d"
    before = {path.name: path.read_text() for path in folder.glob("*.toml")}
    assert before

    def play(*options: str, **given: Any) -> dict[str, Any]:
        return module(scene.agent, "policy", *options, folder=str(folder), exclusive=True, **given)

    def sources() -> dict[str, str]:
        rows = scene.ask("policy", "show")["resources"]
        return {row["name"]: row["source"].partition(":")[0] for row in rows}

    # It wants a resource that is in a file which goes.
    binding = f'[[binding]]\nlicense = "acme"\nselectors = ["unix:uid:{HOLDER}"]\n'
    hanging = [{"name": "b.toml", "content": binding + 'resources = ["db"]\n'}]
    for options in (("--check",), ()):
        refused = play(*options, files=hanging)
        assert refused["msg"].startswith("the policy is refused, nothing was changed"), refused
        assert "b.toml:4: there is no resource" in refused["msg"]
        assert {path.name: path.read_text() for path in folder.glob("*.toml")} == before
        assert set(sources()) == {"db"}

    play(files=[resource("lan", "192.0.2.0/25")])
    assert sources() == {"lan": "lan.toml"}
    renamed = [{**resource("lan", "192.0.2.0/25"), "name": "net.toml"}]
    for options in (("--check",), ()):
        assert play(*options, files=renamed).get("changed") is True
    assert sources() == {"lan": "net.toml"}
    assert [path.name for path in folder.glob("*.toml")] == ["net.toml"]
    assert scene.ask("status")["policy"]["files"] == ["net.toml"]

    # As a run that was interrupted leaves it.
    (folder / "lan.toml").touch()
    assert play(files=renamed)["changed"] is True
    assert [path.name for path in folder.glob("*.toml")] == ["net.toml"]
    assert play(files=renamed)["changed"] is False


ONCE: Final = """#!/bin/sh
case "$*" in
*"policy apply"*)
    echo >>{log}
    if [ "$(wc -l <{log})" -eq {failing} ]; then
        echo '{{"error": {{"code": "TIMEOUT", "message": "no answer"}}}}'
        exit 4
    fi ;;
esac
exec {program} "$@"
"""


@pytest.mark.parametrize("failing", [1, 2])
def test_what_goes_is_not_in_force_after_a_run_that_failed_or_the_next(
    make_scene: Callable[..., Scene], tmp_path: Path, failing: int
) -> None:
    """One of the module's calls of the daemon is not answered, as while it is started anew."""
    scene = make_scene()
    scene.agent.start()
    scene.ready()
    folder = scene.agent.config / "policy.d"
    program = tmp_path / "licagent"
    real = PROGRAMS / "licagent"
    program.write_text(ONCE.format(log=tmp_path / "log", failing=failing, program=real))
    program.chmod(0o755)
    given = {
        "folder": str(folder),
        "config": str(scene.agent.config / "agent.toml"),
        "executable": str(program),
        "files": [resource("lan", "192.0.2.0/25")],
        "exclusive": True,
    }

    def play(*options: str) -> dict[str, Any]:
        return answer_of(tmp_path, "policy", given, *options)

    def names() -> set[str]:
        return {row["name"] for row in scene.ask("policy", "show")["resources"]}

    failed = play()
    assert names() == ({"db"} if failing == 1 else {"lan"})
    assert "run this again" in failed["msg"], failed
    assert play("--check")["changed"] is True
    assert play()["changed"] is True
    assert names() == {"lan"}
    assert scene.ask("status")["policy"]["files"] == ["lan.toml"]
    assert play()["changed"] is False

    # A file that went without the daemon's knowledge.
    (folder / "dmz.toml").write_text(resource("dmz", "192.0.2.128/25")["content"])
    scene.cli("policy", "apply")
    (folder / "dmz.toml").unlink()
    assert names() == {"lan", "dmz"}
    assert play("--check")["changed"] is True
    assert names() == {"lan", "dmz"}
    assert play()["changed"] is True
    assert names() == {"lan"}
    assert play()["changed"] is False


def test_a_host_whose_daemon_is_down_is_told_from_one_that_has_not_joined(
    make_scene: Callable[..., Scene],
) -> None:
    scene = make_scene()
    scene.agent.start()
    scene.ready()
    new = module(scene.agent, "enrollment", "--check")
    assert (new["would_join"], new["is_installed"], new["is_running"]) == (True, True, True)
    scene.agent.stop()
    down = module(scene.agent, "enrollment", "--check")
    assert (down["is_installed"], down["is_running"]) == (True, False)
