# SPDX-License-Identifier: Apache-2.0
"""The modules and the inventory of the Ansible collection against a real agent and control plane.

tests/vm drives the playbooks over SSH; here Ansible runs one module at a time on this machine.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest
from tests.kernel.harness.agent import AgentUnderTest
from tests.system.harness.controlplane import ControlPlane, Host
from tests.system.harness.scene import STRANGER, Scene, eventually

from licplane.issuer.sealedkey import PASSPHRASE_MIN_CHARACTERS

ROOT: Final = Path(__file__).parents[2]
ANSIBLE: Final = ROOT / "build" / "ansible"
PROGRAMS: Final = Path(sys.executable).parent


@pytest.fixture(scope="module", autouse=True)
def ansible() -> None:
    subprocess.run([ROOT / "dev", "ansible-setup"], check=True)


def run(folder: Path, *command: str, timeout_s: float = 120) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "PATH": f"{ANSIBLE / 'bin'}:{os.environ['PATH']}",
        "ANSIBLE_COLLECTIONS_PATH": str(ANSIBLE / "collections"),
        "ANSIBLE_HOME": str(folder / "home"),
        "ANSIBLE_NOCOLOR": "1",
        "ANSIBLE_LOCALHOST_WARNING": "0",
    }
    return subprocess.run(
        command,
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout_s,
    )


def module(agent: AgentUnderTest, name: str, *options: str, **arguments: Any) -> dict[str, Any]:
    """What a module answers of an agent; `shown` is all that Ansible printed."""
    given = {
        **arguments,
        "executable": str(PROGRAMS / "licagent"),
        "config": str(agent.config / "agent.toml"),
    }
    return answer_of(agent.folder, name, given, *options)


def answer_of(folder: Path, name: str, given: dict[str, Any], *options: str) -> dict[str, Any]:
    """What a module answers."""
    done = run(
        folder,
        *(
            "ansible",
            "localhost",
            "-c",
            "local",
            "-e",
            f"ansible_python_interpreter={sys.executable}",
        ),
        *("-m", f"licagent.fleet.{name}", "-a", json.dumps(given), *options),
    )
    _, _, text = done.stdout.partition("=> ")
    answer: dict[str, Any] = json.JSONDecoder().raw_decode(text)[0]
    return {**answer, "shown": done.stdout + done.stderr}


def test_every_option_of_a_module_is_documented(tmp_path: Path) -> None:
    folder = ROOT / "packaging/ansible/plugins/modules"
    names = {each.stem: f"licagent.fleet.{each.stem}" for each in sorted(folder.glob("*.py"))}
    told = run(tmp_path, "ansible-doc", "--type", "module", "--json", *names.values())
    assert told.returncode == 0, told.stderr
    documented = json.loads(told.stdout)
    for each, name in names.items():
        options = documented[name]["doc"]["options"]
        given: dict[str, Any] = {option: [] for option, of in options.items() if of.get("required")}
        # A module that is given an option that it does not have names all that it has.
        refused = answer_of(tmp_path, each, {**given, "no_such_option": 1})
        assert "Unsupported parameters" in refused["msg"]
        supported = refused["msg"].partition("Supported parameters include: ")[2]
        taken = {each.strip(" .") for each in supported.split(" (")[0].split(",")}
        assert taken == set(options)


def test_a_host_joins_once_and_its_token_is_not_shown(
    plane: ControlPlane, make_host: Callable[..., Host]
) -> None:
    host = make_host()
    join = plane.join(region="eu-1")

    foreseen = module(host.agent, "enrollment", "--check")
    assert (foreseen["changed"], foreseen["would_join"]) == (True, True)
    assert plane.hosts() == {}
    assert "give `join`" in module(host.agent, "enrollment")["msg"]

    joined = module(host.agent, "enrollment", "-vvv", "--diff", join=join)
    assert joined["changed"] is True
    assert list(plane.hosts()) == [joined["host_id"]]
    assert join not in joined["shown"]

    again = module(host.agent, "enrollment")
    assert (again["changed"], again["host_id"]) == (False, joined["host_id"])

    plane.do("host", "evict", joined["host_id"])
    eventually(lambda: host.control["host_status"] == "evicted", "evicted")
    out = module(host.agent, "enrollment", join=plane.join())
    assert "was evicted" in out["msg"]
    assert "identity: again" in out["msg"]


def test_a_policy_is_taken_whole_or_not_at_all(make_scene: Callable[..., Scene]) -> None:
    scene = make_scene()
    scene.agent.start()
    scene.ready()
    folder = str(scene.agent.config / "policy.d")
    good = (
        '[[resource]]\nname = "lan"\nkind = "network"\ndestinations = [{ cidr = "192.0.2.0/24" }]\n'
    )
    files = [{"name": "lan.toml", "content": good}]

    foreseen = module(scene.agent, "policy", "--check", files=files, folder=folder)
    assert foreseen["changed"] is True
    assert not Path(folder, "lan.toml").exists()

    assert module(scene.agent, "policy", files=files, folder=folder)["changed"] is True
    assert "lan" in {row["name"] for row in scene.ask("policy", "show")["resources"]}
    assert module(scene.agent, "policy", files=files, folder=folder)["changed"] is False

    bad = [*files, {"name": "zz.toml", "content": "[[resource]]\nname = 1\n"}]
    for options in (("--check",), ()):
        refused = module(scene.agent, "policy", *options, files=bad, folder=folder)
        assert refused["msg"].startswith("the policy is refused, nothing was changed"), refused
        assert "zz.toml:2" in refused["msg"]
    assert not Path(folder, "zz.toml").exists()


def unwell(agent: AgentUnderTest, code: str) -> dict[str, Any] | None:
    """What the module says of a host with that one reason; None where it names another.

    It may be "timeout": status had no answer in the seconds that the module gives it.
    """
    found = module(agent, "health", timeout_s=1, stable_s=0)
    return found if [reason["code"] for reason in found.get("reasons", ())] == [code] else None


def test_health_waits_for_a_host_and_names_what_is_wrong(scene: Scene) -> None:
    well = module(scene.agent, "health", timeout_s=30, stable_s=1, mode="enforce")
    assert well["state"] == "enforcing"

    mistake = scene.agent.config / "policy.d" / "zz-mistake.toml"
    mistake.write_text("[[resource]]\nname = 1\n")
    scene.cli("policy", "apply")
    try:
        eventually(lambda: scene.cli("status").status == 150, "degraded")
        sick = eventually(lambda: unwell(scene.agent, "policy-refused"), "the reason")
        assert sick["msg"].startswith("licagent is not well: policy-refused")
        known = module(scene.agent, "health", timeout_s=30, stable_s=0, accepted=["policy-refused"])
        assert known["changed"] is False
        assert known["state"] == "degraded"
    finally:
        mistake.unlink()
        scene.cli("policy", "apply")


def test_a_host_that_lost_its_control_plane_is_not_well(
    plane: ControlPlane, make_host: Callable[..., Host]
) -> None:
    host = make_host()
    alone = module(host.agent, "health", timeout_s=30, stable_s=0)
    assert alone.get("msg") is None, alone
    host.enroll(plane.join())
    joined = module(host.agent, "health", timeout_s=30, stable_s=0)
    assert joined.get("msg") is None, joined

    plane.stop()
    eventually(lambda: host.control["state"] != "connected", "no link")
    eventually(lambda: unwell(host.agent, "not-connected"), "the reason")
    alone = module(host.agent, "health", timeout_s=30, stable_s=0, connected=False)
    assert alone["changed"] is False


def observing(make_scene: Callable[..., Scene]) -> Scene:
    """An agent that observes, and lets HOLDER alone use "db"."""
    scene = make_scene(mode="observe")
    scene.agent.start()
    scene.ready()
    return scene


def bind(scene: Scene, selectors: str) -> None:
    """Bind the license to more than HOLDER."""
    bound = f'[[binding]]\nlicense = "acme"\nselectors = [{selectors}]\n'
    scene.agent.policy(scene.policy_text("acme") + bound)


def test_shadow_usage_is_explained_by_a_binding_or_by_word(
    make_scene: Callable[..., Scene],
) -> None:
    scene = observing(make_scene)
    assert module(scene.agent, "shadow_info")["unexplained"] == []
    assert scene.connect(STRANGER) == "ok"
    eventually(lambda: scene.ask("shadow")["rows"], "shadow usage")

    found = module(scene.agent, "shadow_info")
    assert found["mode"] == "observe"
    assert found["observed_s"] == found["resources"][0]["watched_s"] >= 0
    (use,) = found["unexplained"]
    assert (use["resource"], use["uid"], use["now"]["verdict"]) == ("db", STRANGER, "deny")
    assert found["refused"] == []

    named = [{"resource": "db", "executable": use["executable"], "reason": "ticket 4711"}]
    accepted = module(scene.agent, "shadow_info", accepted=named)
    assert accepted["unexplained"] == []
    assert len(accepted["accepted"]) == 1

    # A more specific binding decides, and of a program's content no record tells.
    bind(scene, f'"unix:uid:{STRANGER}", "unix:sha256:{"a" * 64}"')
    (use,) = module(scene.agent, "shadow_info")["unexplained"]
    assert use["now"]["verdict"] == "unknown"

    bind(scene, f'"unix:uid:{STRANGER}"')
    licensed = module(scene.agent, "shadow_info")
    assert licensed["unexplained"] == []
    assert len(licensed["licensed"]) == 1
    assert module(scene.agent, "shadow_info", since=licensed["at"])["licensed"] == []


def test_who_was_refused_is_told_and_a_policy_without_resources_is_not_watched(
    make_scene: Callable[..., Scene],
) -> None:
    scene = make_scene()
    scene.agent.start()
    assert module(scene.agent, "shadow_info")["observed_s"] == 0
    scene.ready()
    before = module(scene.agent, "shadow_info")
    assert (before["mode"], before["refused"]) == ("enforce", [])
    assert scene.connect(STRANGER) == "ENOKEY"
    eventually(lambda: scene.ask("shadow")["rows"], "the denial")
    named = [{"resource": "db", "reason": "nobody"}]
    (use,) = module(scene.agent, "shadow_info", since=before["at"])["refused"]
    assert (use["uid"], use["refused"]) == (STRANGER, 1)
    assert module(scene.agent, "shadow_info", accepted=named)["refused"] == []


def test_the_inventory_is_the_control_planes(
    plane: ControlPlane, make_host: Callable[..., Host], tmp_path: Path
) -> None:
    host = make_host()
    name = host.enroll(plane.join(region="eu-1"))["host_id"]
    settings = {
        "plugin": "licagent.fleet.hosts",
        "command": [str(PROGRAMS / "licplane")],
        "state": str(plane.state),
        "keyed_groups": [{"key": "licagent_labels.region", "prefix": "region"}],
        "groups": {"drifted": "licagent_drift | length > 0"},
    }
    (tmp_path / "fleet.licagent.yml").write_text(json.dumps(settings))

    def listed() -> dict[str, Any]:
        done = run(tmp_path, "ansible-inventory", "-i", "fleet.licagent.yml", "--list")
        assert done.returncode == 0, done.stderr
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer

    found = listed()
    (one,) = found["licagent"]["hosts"]
    assert found["region_eu_1"]["hosts"] == [one]
    # What a host says of itself is never a template for Ansible.
    assert found["_meta"]["hostvars"][one]["licagent_host_id"] == {"__ansible_unsafe": name}

    plane.do("host", "evict", name)
    assert "hosts" not in listed().get("licagent", {})


def test_a_name_that_a_host_gives_itself_is_no_argument_and_no_template(tmp_path: Path) -> None:
    """What a database from before the names were checked may hold: licplane's words, by hand."""
    template = "{{ lookup('pipe', 'touch " + str(tmp_path / "ran") + "') }}"
    ids = [f"00000000-0000-4000-8000-{number:012x}" for number in range(11)]
    names = (
        "web-1", "-oProxyCommand=x", template, "Twice", "twice", ids[0], "plane", "localhost",
        "127.0.0.1", "web-2\n", "",
    )  # fmt: skip
    common = {"status": "active", "connected": True, "lag": 0}
    rows = [
        {**common, "host_id": key, "hostname": name, "labels": labels, "drift": [template]}
        for key, name, labels in zip(
            ids, names, [{"region": "eu-1"}, {"region": template}, *[{}] * 9], strict=True
        )
    ]
    (tmp_path / "list.json").write_text(json.dumps({"hosts": rows}))
    settings = {
        "plugin": "licagent.fleet.hosts",
        "command": ["sh", "-c", "cat list.json"],
        "compose": {"ansible_host": "licagent_hostname ~ '.test'", "told": "licagent_drift[0]"},
        "keyed_groups": [{"key": "licagent_labels.region", "prefix": "region"}],
    }
    (tmp_path / "fleet.licagent.yml").write_text(json.dumps(settings))
    (tmp_path / "a.yml").write_text(json.dumps({"licplane": {"hosts": {"plane": None}}}))
    both = ("-i", "a.yml", "-i", "fleet.licagent.yml")

    done = run(tmp_path, "ansible-inventory", *both, "--list")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert set(found["licagent"]["hosts"]) == {"web-1", *ids[1:]}
    assert found["licplane"]["hosts"] == ["plane"]
    assert {name for name in found if name.startswith("region")} == {"region_eu_1"}
    variables = found["_meta"]["hostvars"]
    for key in ids[1:]:
        assert variables[key]["licagent_hostname"] in ("", {"__ansible_unsafe": ""})
        assert variables[key]["ansible_host"] in (".test", {"__ansible_unsafe": ".test"})

    shown = run(
        tmp_path,
        *("ansible", "licagent", *both, "-c", "local", "-m", "ansible.builtin.debug"),
        *("-a", "msg={{ told }}{{ licagent_drift }}{{ licagent_labels }}"),
    )
    assert shown.returncode == 0, shown.stdout
    assert "lookup('pipe'" in shown.stdout
    assert not (tmp_path / "ran").exists()


SHADOW = """#!/usr/bin/python3
import json
print(json.dumps({"changed": False, "mode": "enforce", "observed_s": 0, "unexplained": []}))
"""


@pytest.fixture
def playbooks(tmp_path: Path) -> Path:
    """The playbooks as they are, with a role that only reaches its host."""
    fleet = tmp_path / "collections" / "ansible_collections" / "licagent" / "fleet"
    tasks = fleet / "roles" / "licagent" / "tasks"
    tasks.mkdir(parents=True)
    for name in ("main", "mode"):
        reach = [{"name": "Reach the host", "ansible.builtin.raw": "echo reached"}]
        (tasks / f"{name}.yml").write_text(json.dumps(reach))
    (fleet / "plugins" / "modules").mkdir(parents=True)
    (fleet / "plugins" / "modules" / "shadow_info.py").write_text(SHADOW)
    (fleet / "playbooks").symlink_to(ROOT / "packaging" / "ansible" / "playbooks")
    return tmp_path


@pytest.mark.parametrize("playbook", ["rollout", "observe_to_enforce"])
def test_a_host_that_is_not_reached_ends_a_rollout(playbooks: Path, playbook: str) -> None:
    here = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable}
    # Port 1 of this machine: nobody listens there.
    away = {"ansible_host": "127.0.0.1", "ansible_port": 1, "ansible_ssh_retries": 0}

    def play(lost: str) -> tuple[int, str, str]:
        hosts = {name: away if name == lost else here for name in ("a", "b", "c", "d")}
        inventory = {"licagent": {"hosts": hosts, "vars": {"ansible_become": False}}}
        (playbooks / "hosts.yml").write_text(json.dumps(inventory))
        done = run(
            playbooks,
            *("env", f"ANSIBLE_COLLECTIONS_PATH={playbooks / 'collections'}", "ansible-playbook"),
            *("-i", "hosts.yml", "-e", json.dumps({"licagent_rollout_batches": [2, 2]})),
            f"licagent.fleet.{playbook}",
        )
        return done.returncode, done.stdout, done.stdout.partition("PLAY RECAP")[0]

    status, _, told = play(lost="nobody")
    assert status == 0, told
    assert "[d]" in told

    status, _, told = play(lost="b")
    assert status != 0
    assert "changed: [a]" in told
    assert "ends here; not reached or not well: b" in told, told
    assert "changed: [c]" not in told
    assert "changed: [d]" not in told

    status, whole, told = play(lost="d")
    assert status != 0, whole
    assert "changed: [c]" in told


SWITCH = """
import os, re, sys
path, pid = sys.argv[1:3]
with open(path) as file:
    text = file.read()
with open(path, "w") as file:
    file.write(re.sub('(?m)^mode = .*', f'mode = "{sys.argv[3]}"', text))
os.kill(int(pid), 1)
"""


class Switching:
    """The real playbook and modules against a real agent; only the role is put in its place."""

    def __init__(self, folder: Path, scene: Scene) -> None:
        self.folder, self.scene = folder, scene
        fleet = folder / "collections" / "ansible_collections" / "licagent" / "fleet"
        shutil.copytree(ROOT / "packaging" / "ansible" / "plugins", fleet / "plugins")
        (fleet / "playbooks").symlink_to(ROOT / "packaging" / "ansible" / "playbooks")
        program = folder / "licagent"
        config = scene.agent.config / "agent.toml"
        program.write_text(
            f'#!/bin/sh\nexec env LICAGENT_CONFIG={config} {PROGRAMS / "licagent"} "$@"\n'
        )
        program.chmod(0o755)
        command = fleet / "plugins" / "module_utils" / "agent_command.py"
        command.write_text(command.read_text().replace("/usr/bin/licagent", str(program)))
        (folder / "switch.py").write_text(SWITCH)
        assert scene.agent.process is not None
        switch = [sys.executable, str(folder / "switch.py"), str(config)]
        switch += [str(scene.agent.process.pid), "{{ licagent_mode }}"]
        health = {"mode": "{{ licagent_mode }}", "timeout_s": 30, "stable_s": 0}
        tasks = {
            "mode": [
                {"name": "Switch", "ansible.builtin.command": {"argv": switch}},
                {"name": "In force", "licagent.fleet.health": health},
            ],
            "health": [{"name": "Well", "licagent.fleet.health": {"stable_s": 0}}],
        }
        (fleet / "roles" / "licagent" / "tasks").mkdir(parents=True)
        for name, each in tasks.items():
            (fleet / "roles" / "licagent" / "tasks" / f"{name}.yml").write_text(json.dumps(each))
        here = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable}
        variables = {"ansible_become": False, "licagent_observed_at_least_s": 0}
        inventory = {"licagent": {"hosts": {"here": here}, "vars": variables}}
        (folder / "hosts.yml").write_text(json.dumps(inventory))

    def play(self, **variables: Any) -> subprocess.CompletedProcess[str]:
        return run(
            self.folder,
            *("env", f"ANSIBLE_COLLECTIONS_PATH={self.folder / 'collections'}"),
            *("ansible-playbook", "-i", "hosts.yml", "-e", json.dumps(variables)),
            "licagent.fleet.observe_to_enforce",
            timeout_s=300,
        )

    @property
    def mode(self) -> str:
        return str(self.scene.ask("status")["mode"])


def test_a_host_that_refuses_whom_nobody_named_observes_again(
    make_scene: Callable[..., Scene], tmp_path: Path
) -> None:
    scene = observing(make_scene)
    switching = Switching(tmp_path, scene)

    early = switching.play(licagent_observed_at_least_s=86400)
    assert early.returncode != 0
    assert re.search(r"db: \d+ s", early.stdout), early.stdout
    assert switching.mode == "observe"

    # He has used nothing before the switch.
    tried: list[str] = []

    def stranger() -> None:
        eventually(lambda: switching.mode == "enforce", "the switch")
        tried.append(scene.connect(STRANGER))

    thread = threading.Thread(target=stranger)
    thread.start()
    refused = switching.play(licagent_enforce_soak_s=60)
    thread.join()
    assert tried == ["ENOKEY"]
    assert refused.returncode != 0
    assert "observes again" in refused.stdout, refused.stdout
    assert f"db by {STRANGER}" in refused.stdout.partition("Say why")[2], refused.stdout
    assert switching.mode == "observe"

    # What was refused once would be again.
    again = switching.play(licagent_enforce_soak_s=1)
    assert "uses are unexplained" in again.stdout, again.stdout
    assert switching.mode == "observe"

    named = [{"resource": "db", "reason": "ticket 4711"}]
    well = switching.play(licagent_enforce_soak_s=3, licagent_shadow_accepted=named)
    assert well.returncode == 0, well.stdout
    assert switching.mode == "enforce"

    # It enforced before: nothing is judged, and nothing is put back.
    assert scene.connect(STRANGER) == "ENOKEY"
    same = switching.play()
    assert same.returncode == 0, same.stdout
    assert switching.mode == "enforce"


def test_a_passphrase_that_licplane_would_refuse_is_not_kept(tmp_path: Path) -> None:
    """In check mode: the machine that runs this gets no credential."""
    include = {"name": "licagent.fleet.licplane", "tasks_from": "passphrase"}
    tasks = [{"name": "Passphrase", "ansible.builtin.include_role": include}]
    play = {"name": "P", "hosts": "localhost", "gather_facts": False, "tasks": tasks}
    (tmp_path / "play.yml").write_text(json.dumps([play]))

    def told(passphrase: str) -> str:
        given = {
            "ansible_python_interpreter": sys.executable,
            "licplane_passphrase": passphrase,
            "__licplane_folder": str(tmp_path),
            "__licplane_credential": str(tmp_path / "passphrase.cred"),
        }
        return run(
            tmp_path,
            *("ansible-playbook", "-c", "local", "--check", "play.yml", "-e", json.dumps(given)),
        ).stdout

    short = told("x" * (PASSPHRASE_MIN_CHARACTERS - 1))
    assert f"has fewer than {PASSPHRASE_MIN_CHARACTERS} characters" in short, short
    assert "Keep the passphrase" not in short
    long_enough = told("x" * PASSPHRASE_MIN_CHARACTERS)
    assert "Keep the passphrase" in long_enough, long_enough


def test_a_catalog_is_looked_up_beside_the_playbook_not_in_the_role(tmp_path: Path) -> None:
    document = "resource: []\n"
    (tmp_path / "catalog.yml").write_text(document)
    include = {"name": "licagent.fleet.licplane", "tasks_from": "apply_document"}
    play = {
        "name": "P",
        "hosts": "localhost",
        "gather_facts": False,
        "vars": {
            "ansible_python_interpreter": sys.executable,
            "__licplane_document": "{{ lookup('ansible.builtin.file', 'catalog.yml') }}",
        },
        "tasks": [{"name": "Document", "ansible.builtin.include_role": include}],
    }
    (tmp_path / "play.yml").write_text(json.dumps([play]))
    given = json.dumps({"__licplane_command": ["sh", "-c", f"cat >{tmp_path}/given"]})

    done = run(tmp_path, "ansible-playbook", "-c", "local", "play.yml", "-e", given)
    assert done.returncode == 0, done.stdout
    assert (tmp_path / "given").read_text() == document
