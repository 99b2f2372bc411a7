# SPDX-License-Identifier: Apache-2.0
"""The Ansible collection against two hosts over SSH: a control plane with an agent, and another.

The collection is the built and installed archive, as a user has it. The tests are one story, in the
order in which a fleet lives it.
"""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from tests.vm import states
from tests.vm.issuer import DENIED
from tests.vm.machine import Hardware, Machine
from tests.vm.playbooks import ANSIBLE, ROOT, Controller, Played

pytestmark = pytest.mark.timeout(2400)  # two emulated hosts, and Ansible's many steps

NEXT = "0.1.99"
PASSPHRASE = "correct horse battery staple"
HOSTS = ("canary", "second")
CATALOG = """
resource:
  - name: web
    kind: network
    mode: observe
    destinations: [{ cidr: 127.0.0.1/32, ports: ["7001"], protocol: tcp }]
license:
  - id: web
    subject: Tests
    scope: { org: acme }
    entitlements: [{ resource: web }]
    expires: 2040-01-01T00:00:00Z
"""
BINDING = """
binding:
  - name: web-curl
    license: web
    selectors: ["unix:path:/usr/bin/curl"]
    scope: { org: acme }
"""
OWN = "# of this host\nmetering_interval_s = 7\n"
"""Settings that no inventory has."""
CURL = "curl -sS -m 10 http://127.0.0.1:7001/"
STRANGER = "nc -v -w 5 127.0.0.1 7001"
REFUSED = os.strerror(getattr(errno, DENIED))
"""What it says then."""


@dataclass(slots=True)
class Fleet:
    """Two machines, and who plays on them."""

    machines: dict[str, Machine]
    controller: Controller
    server: str
    """Where this machine reaches the control plane."""
    variables: dict[str, Any] = field(default_factory=dict)
    shown: list[str] = field(default_factory=list)
    """All that Ansible ever printed."""

    def play(self, name: str, *options: str, **more: Any) -> Played:
        """Run a playbook of the collection; what it printed is kept."""
        played = self.controller.play(name, self.variables, more, *options)
        self.shown.append(played.output)
        return played

    def status(self, name: str) -> dict[str, Any]:
        """What the agent there says of itself."""
        text = self.machines[name].run("licagent status --json --timeout 60", check=False).stdout
        answer: dict[str, Any] = json.loads(text)
        return answer

    def version(self, name: str) -> str:
        """Of the installed package; empty without one."""
        query = "dpkg-query -W -f='${db:Status-Status} ${Version}' licagent"
        words = self.machines[name].run(query, check=False).stdout.split()
        return words[1] if words[:1] == ["installed"] else ""


@pytest.fixture(scope="module")
def next_package() -> Path:
    folder = ROOT / "build" / "upgrade"
    subprocess.run(
        [sys.executable, "packaging/builder", "--deb", "--version", NEXT, "--out", str(folder)],
        cwd=ROOT,
        check=True,
    )
    return folder / f"licagent_{NEXT}_amd64.deb"


@pytest.fixture(scope="module")
def collections(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The collection as an archive of it installs."""
    subprocess.run([ROOT / "dev", "ansible-setup"], check=True)
    folder = tmp_path_factory.mktemp("collections")
    galaxy = [str(ANSIBLE / "bin" / "ansible-galaxy"), "collection"]
    source = str(ROOT / "packaging" / "ansible")
    subprocess.run([*galaxy, "build", source, "--output-path", str(folder)], check=True)
    (archive,) = folder.glob("licagent-fleet-*.tar.gz")
    subprocess.run([*galaxy, "install", "--offline", str(archive), "-p", str(folder)], check=True)
    return folder


@pytest.fixture(scope="module")
def fleet(
    hardware: Hardware, collections: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Fleet]:
    machines: dict[str, Machine] = {}
    try:
        machines["canary"] = states.installed(hardware)
        machines["second"] = states.fresh(hardware)
        with ThreadPoolExecutor() as pool:
            list(pool.map(_make_its_own, machines, machines.values()))
        plane = machines["canary"]
        forwarded = {"control": plane.forward(8443), "public": plane.forward(8444)}
        controller = Controller(
            tmp_path_factory.mktemp("controller"),
            collections,
            machines,
            {"licplane": ["canary"], "licagent": HOSTS},
        )
        made = Fleet(machines, controller, f"127.0.0.1:{forwarded['control']}")
        made.variables = {
            "licagent_version": states.package("licagent").name.split("_")[1],
            "licagent_package": str(states.package("licagent")),
            "licagent_health_timeout_s": states.START_S,
            "licagent_health_stable_s": 2,
            "licagent_rollout_timeout_s": states.START_S,
            "licagent_rollout_stable_s": 2,
            "licagent_labels": {"org": "acme", "environment": "test"},
            "licplane_settings": {
                "issuer": "acme",
                # Every machine reaches this one, and by it the first machine.
                "control_address": f"{plane.host_address}:{forwarded['control']}",
                "public_address": f"{plane.host_address}:{forwarded['public']}",
                "server_names": ["127.0.0.1"],
                "report_interval": "2s",
            },
        }
        yield made
    finally:
        for machine in machines.values():
            machine.stop()


def _make_its_own(name: str, machine: Machine) -> None:
    """The states are copies of one boot: a fleet's hosts have names and identities of their own."""
    machine.write("/etc/machine-id", f"{uuid.uuid4().hex}\n")
    machine.write("/etc/hosts", f"127.0.0.1 localhost\n127.0.1.1 {name}\n")
    machine.run(f"hostname {name} && echo {name} >/etc/hostname")


def _well(played: Played) -> Played:
    assert played.status == 0, played.output[-6000:]
    return played


def test_check_mode_tells_of_a_new_host_and_leaves_it_alone(fleet: Fleet) -> None:
    played = _well(fleet.play("rollout", "--check", "--diff", "--limit", "second"))

    assert played.changed("second") >= 1
    assert "licagent none would become" in played.output
    assert fleet.version("second") == ""
    assert fleet.machines["second"].run("test -e /var/cache/licagent", check=False).status == 1


def test_a_control_plane_by_its_role(fleet: Fleet) -> None:
    fleet.variables["licplane_documents"] = [CATALOG]
    first = _well(fleet.play("plane", "-vvv", licplane_passphrase=PASSPHRASE))
    # The machine has the passphrase now: nobody needs to give it again.
    again = _well(fleet.play("plane", "--diff"))

    assert first.changed("canary") >= 3
    assert again.changed("canary") == 0, again.output[-4000:]
    fleet.machines["canary"].run("systemctl is-active licplane.service")


def test_rollout_then_nothing_left_to_do(fleet: Fleet) -> None:
    # As a run leaves it that was interrupted before the daemon was told.
    canary = fleet.machines["canary"]
    canary.run("cat >>/etc/licagent/agent.toml", stdin=OWN)
    first = _well(fleet.play("rollout", "--diff"))
    again = _well(fleet.play("rollout", "--diff", licagent_rollout_batches=["100%"]))

    assert first.changed("second") >= 2
    assert {name: again.changed(name) for name in HOSTS} == dict.fromkeys(HOSTS, 0), again.output
    for name in HOSTS:
        assert fleet.status(name)["mode"] == "observe"
    assert OWN in canary.run("cat /etc/licagent/agent.toml").stdout
    live = canary.run("licagent config check --live --json --timeout 60").stdout
    assert json.loads(live)["pending"] == []
    assert first.output.index("ok: [canary]") < first.output.index("ok: [second]")


def test_enrolment_and_inventory(fleet: Fleet) -> None:
    first = _well(fleet.play("enroll", "-vvv"))
    again = _well(fleet.play("enroll"))

    for name in HOSTS:
        assert first.changed(name) >= 1
        assert again.changed(name) == 0
        assert fleet.status(name)["state"] == "observing"
        assert fleet.status(name)["control"]["labels"]["environment"] == "test"
    # Nothing of what may be secret was shown, not even at -vvv.
    shown = "".join(fleet.shown)
    assert PASSPHRASE not in shown
    assert "licjoin1." not in shown

    folder = fleet.controller.folder
    pem = "/var/lib/licplane/auditor.pem"
    _plane(fleet, "admin", "create", "inventory", "--role", "auditor", "--out", pem)
    credential = fleet.machines["canary"].run(f"cat {pem} && rm {pem}").stdout
    (folder / "auditor.pem").write_text(credential)
    (folder / "auditor.pem").chmod(0o600)
    settings = {
        "plugin": "licagent.fleet.hosts",
        "command": [str(Path(sys.executable).parent / "licplane")],
        "server": fleet.server,
        "identity": "auditor.pem",
        "labels": {"org": "acme"},
        "keyed_groups": [{"key": "licagent_labels.environment", "prefix": "environment"}],
    }
    (folder / "fleet.licagent.yml").write_text(json.dumps(settings))
    done = fleet.controller.run(["ansible-inventory", "-i", "fleet.licagent.yml", "--list"])
    assert done.returncode == 0, done.stderr
    listed = json.loads(done.stdout)
    assert sorted(listed["licagent"]["hosts"]) == sorted(HOSTS)
    assert sorted(listed["environment_test"]["hosts"]) == sorted(HOSTS)
    status = listed["_meta"]["hostvars"]["second"]["licagent_status"]
    assert status == {"__ansible_unsafe": "active"}


def test_enforce_is_refused_while_use_is_unexplained(fleet: Fleet) -> None:
    canary = fleet.machines["canary"]
    canary.wait_for("licagent policy show --json --timeout 30 | grep -q '\"web\"'")
    canary.run(f"systemd-run --unit=shadow-use {CURL} || true")
    canary.wait_for("licagent events --verdict shadow --timeout 30 | grep -q web")

    now = {"licagent_observed_at_least_s": 0, "licagent_enforce_soak_s": 5}
    refused = fleet.play("observe_to_enforce", "--limit", "canary", **now)
    assert refused.status != 0
    assert "uses are unexplained" in refused.output
    assert "/usr/bin/curl" in refused.output
    assert fleet.status("canary")["mode"] == "observe"

    # Explained: a license is bound to it, so that the same use would be allowed.
    enforced = CATALOG.replace("mode: observe", "mode: enforce") + BINDING
    fleet.variables["licplane_documents"] = [enforced]
    assert _well(fleet.play("plane")).changed("canary") == 1
    canary.wait_for("licagent policy show --json --timeout 30 | grep -q web-curl")

    too_early = fleet.play("observe_to_enforce", "--limit", "canary")
    assert too_early.status != 0
    assert "licagent_observed_at_least_s" in too_early.output

    _well(fleet.play("observe_to_enforce", "--limit", "canary", **now))
    assert fleet.status("canary")["mode"] == "enforce"
    assert OWN in canary.run("cat /etc/licagent/agent.toml").stdout
    # Nobody listens, but the license lets it try.
    assert "Connection refused" in canary.run(f"{CURL} -v", check=False).stderr
    assert REFUSED in canary.run(STRANGER, check=False).stderr


def test_rollout_stops_at_an_unhealthy_canary_which_goes_back(
    fleet: Fleet, next_package: Path
) -> None:
    before = fleet.variables["licagent_version"]
    newer = {"licagent_version": NEXT, "licagent_package": str(next_package)}
    canary = fleet.machines["canary"]
    canary.write("/etc/licagent/policy.d/mistake.toml", "[[resource]]\nname = 1\n")

    stopped = fleet.play("rollout", **newer, licagent_rollout_timeout_s=150)
    assert stopped.status != 0
    assert "canary is not well, so the rollout ends here" in stopped.output
    assert "policy-refused" in stopped.output
    assert fleet.version("canary").startswith(NEXT)
    assert "second" not in stopped.hosts
    assert fleet.version("second").startswith(before)
    # The kernel never stopped deciding, and by the mode that the host had.
    assert REFUSED in canary.run(STRANGER, check=False).stderr

    assert f"licagent_rollback_from={NEXT} --limit canary" in stopped.output

    # As a setting that only the newer version knows.
    canary.run("rm /etc/licagent/policy.d/mistake.toml")
    canary.run("cat >>/etc/licagent/agent.toml", stdin='colour = "red"\n')
    back = _well(fleet.play("rollback", licagent_rollback_from=NEXT))
    assert back.changed("canary") >= 1
    assert fleet.version("canary").startswith(before)
    assert fleet.status("canary")["mode"] == "enforce"
    settings = canary.run("cat /etc/licagent/agent.toml").stdout
    assert OWN in settings
    assert "colour" not in settings
    assert "has the settings of before the upgrade again" in back.output
    # The other host was never upgraded, and would have had nothing to go back to.
    assert f"second has {before}, not {NEXT}: nothing to do" in back.output
    again = _well(fleet.play("rollback", licagent_rollback_from=NEXT))
    assert {name: again.changed(name) for name in HOSTS} == dict.fromkeys(HOSTS, 0), again.output


def _plane(fleet: Fleet, *arguments: str) -> str:
    """licplane on its machine, as its service runs it."""
    command = (
        "systemd-run --quiet --pipe --wait --collect --uid=licplane"
        " --property=StateDirectory=licplane --property=StateDirectoryMode=0700"
        " --property=EnvironmentFile=-/etc/licplane/licplane.env"
        " --property=LoadCredentialEncrypted=licplane.passphrase:/etc/licplane/passphrase.cred"
        f" --setenv=LICPLANE_STATE=/var/lib/licplane /usr/bin/licplane {' '.join(arguments)}"
    )
    return fleet.machines["canary"].run(command).stdout
