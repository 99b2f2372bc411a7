# SPDX-License-Identifier: Apache-2.0
"""A host of a fleet: enrolled, its policy pushed; booted with the control plane away, and back."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.system.harness.controlplane import ControlPlane, Document, binding, license
from tests.vm.issuer import DENIED, REVOKED, dial, put_dial, said
from tests.vm.machine import HOST_ADDRESS, Machine
from tests.vm.states import START_S

PORT = 7001
_LISTEN = "[Service]\nExecStart=/usr/local/bin/listen\n[Install]\nWantedBy=multi-user.target\n"


@pytest.fixture(scope="module")
def plane() -> Iterator[ControlPlane]:
    """A control plane on this machine, known to the guest by the address it has there."""
    with ControlPlane() as made:
        for option, where in (("control", made.control), ("public", made.public)):
            port = where.rpartition(":")[2]
            made.options += (f"--{option}-address", f"{HOST_ADDRESS}:{port}")
        made.options += ("--server-name", HOST_ADDRESS)
        made.make_keys()
        made.start()
        yield made


@pytest.fixture(scope="module")
def machine(installed: Machine, plane: ControlPlane) -> Machine:
    """Enrolled; one resource is licensed for one unit."""
    put_dial(installed)
    installed.write("/etc/systemd/system/listen.service", _LISTEN)
    installed.run("systemctl stop listen; systemctl daemon-reload; systemctl enable --now listen")
    installed.run("""sed -i 's/^mode = .*/mode = "enforce"/' /etc/licagent/agent.toml""")
    # These came by no command of ours: the test that cuts the power is about what does.
    installed.run("sync")
    installed.run("systemctl restart licagent.service", timeout=START_S)
    installed.run("licagent enroll - --timeout 170", stdin=plane.join(), timeout=180)
    where = {"cidr": "127.0.0.1/32", "ports": [str(PORT)], "protocol": "tcp"}
    table = {"name": "db", "kind": "network", "mode": "enforce", "destinations": [where]}
    plane.apply(
        Document("resource", table),
        binding(selectors=["systemd:unit:etl.service"]),
        license(),
    )
    return installed


def until(machine: Machine, answer: str, *, each: str = "true", timeout_s: float = 180) -> None:
    """Wait until the licensed unit meets this answer; `each` is run before each look."""
    run = f"systemd-run --quiet --wait --pipe --collect --unit=etl.service {dial(PORT)}"
    machine.wait_for(f"{each} && test $({run}) = {answer}", timeout=timeout_s)


def test_policy_is_pushed_and_enforced(machine: Machine) -> None:
    # Before the policy is there, everything connects: the refusal tells that it is.
    machine.wait_for(f"test $({dial(PORT)}) = {DENIED}", timeout=180)
    until(machine, "connected")
    assert said(machine.run(dial(PORT))) == DENIED


def test_boot_with_the_control_plane_away_enforces_what_was_pushed(
    machine: Machine, plane: ControlPlane
) -> None:
    plane.stop()
    machine.power_cut()
    machine.wait_for("ss -Hltn sport = :7009 | grep -q .")
    assert said(machine.run(dial(PORT))) == DENIED
    plane.start()
    machine.wait_for("systemctl is-active licagent.service", timeout=START_S)
    # After an outage it may wait for minutes until it tries again, and its way out still starts.
    until(machine, "connected", each="systemctl reload licagent.service", timeout_s=START_S)


def test_revocation_reaches_the_host(machine: Machine, plane: ControlPlane) -> None:
    until(machine, "connected")
    plane.do("license", "revoke", "acme-db", "--reason", "contract ended")
    until(machine, REVOKED)
