# SPDX-License-Identifier: Apache-2.0
"""Who a workload is on a real systemd host: units, templates, slices and users' own units."""

from __future__ import annotations

import pytest
from tests.vm.issuer import DENIED, LicensedHost, dial, put_dial, resource, said
from tests.vm.machine import Machine
from tests.vm.states import START_S

LET = "connected"
UNIT, TEMPLATE, SLICE, USER, MANAGER, USER_SLICE = range(7001, 7007)
_TEMPLATE = f"""[Service]
Type=oneshot
ExecStart={dial(TEMPLATE)}
StandardOutput=file:/run/worker-%i
"""


@pytest.fixture(scope="module")
def machine(installed: Machine) -> Machine:
    """Enforces; each port is licensed for one kind of selector."""
    installed.run("useradd --create-home --uid 1500 alice && loginctl enable-linger alice")
    installed.wait_for("test -S /run/user/1500/bus", timeout=START_S)
    put_dial(installed)
    host = LicensedHost(installed)
    host.set_up()
    names = ("unit", "template", "slice", "user", "manager", "user-slice")
    selectors = (
        *("systemd:unit:etl.service", "systemd:unit:worker@1.service", "systemd:slice:batch.slice"),
        *("unix:user:alice", "systemd:unit:user@1500.service", "systemd:slice:user-1500.slice"),
    )
    # A license for each: a binding opens all that its license grants.
    tokens = {f"/root/{name}.lic": host.token(name, [name]) for name in names}
    for path, token in tokens.items():
        installed.write(path, token)
    installed.run(f"licagent license add --timeout 100 {' '.join(tokens)}", timeout=180)
    rows = zip(names, range(UNIT, USER_SLICE + 1), selectors, strict=True)
    host.policy("".join(resource(name, port, selector) for name, port, selector in rows))
    return installed


def unit(machine: Machine, port: int, name: str, *options: str) -> str:
    """How connecting went in a transient unit of the system."""
    words = " ".join(("systemd-run --quiet --wait --pipe --collect", f"--unit={name}", *options))
    return said(machine.run(f"{words} {dial(port)}", check=False))


def user_unit(machine: Machine, port: int, name: str = "any.service") -> str:
    """How connecting went in a unit of alice's own manager."""
    as_alice = "runuser -u alice -- env XDG_RUNTIME_DIR=/run/user/1500"
    run = f"systemd-run --user --quiet --wait --pipe --collect --unit={name}"
    return said(machine.run(f"{as_alice} {run} {dial(port)}", check=False))


def test_unit(machine: Machine) -> None:
    assert unit(machine, UNIT, "etl.service") == LET
    assert unit(machine, UNIT, "etl2.service") == DENIED
    assert unit(machine, UNIT, "etl.service", "--slice=batch.slice") == LET
    assert said(machine.run(dial(UNIT))) == DENIED


def test_unit_that_starts_while_the_daemon_is_stopped(machine: Machine) -> None:
    machine.run("systemctl stop licagent.service")
    try:
        assert unit(machine, UNIT, "etl.service") == LET
        assert unit(machine, UNIT, "etl2.service") == DENIED
    finally:
        machine.run("systemctl start licagent.service", timeout=START_S)


def test_instances_of_a_template(machine: Machine) -> None:
    machine.write("/etc/systemd/system/worker@.service", _TEMPLATE)
    machine.run("systemctl daemon-reload; systemctl start worker@1.service worker@2.service")
    assert said(machine.run("cat /run/worker-1")) == LET
    assert said(machine.run("cat /run/worker-2")) == DENIED


def test_slices(machine: Machine) -> None:
    assert unit(machine, SLICE, "a.service", "--slice=batch.slice") == LET
    assert unit(machine, SLICE, "b.service", "--slice=batch-night.slice") == LET
    assert unit(machine, SLICE, "c.service", "--slice=other.slice") == DENIED
    assert unit(machine, SLICE, "d.service") == DENIED


def test_scope_in_a_slice(machine: Machine) -> None:
    command = f"systemd-run --quiet --scope --slice=batch.slice {dial(SLICE)}"
    assert said(machine.run(command)) == LET


def test_units_of_a_user_count_as_the_users(machine: Machine) -> None:
    assert user_unit(machine, USER) == LET
    assert user_unit(machine, MANAGER) == LET
    assert user_unit(machine, USER_SLICE) == LET
    for port in (USER, MANAGER, USER_SLICE):
        assert unit(machine, port, "root.service") == DENIED


def test_a_user_cannot_take_the_name_of_a_system_unit(machine: Machine) -> None:
    assert user_unit(machine, UNIT, "etl.service") == DENIED
