# SPDX-License-Identifier: Apache-2.0
"""Containers of systemd-nspawn: licensed from outside, with no say of their own."""

from __future__ import annotations

import pytest
from tests.vm.issuer import DENIED, LicensedHost, dial, put_dial, resource, said
from tests.vm.machine import Machine

LET = "connected"
BOX, ETL = 7001, 7002
_CLAIM = "mkdir /sys/fs/cgroup/etl.service && echo 0 >/sys/fs/cgroup/etl.service/cgroup.procs"


@pytest.fixture(scope="module")
def machine(installed: Machine) -> Machine:
    """Enforces; one port is licensed for the unit a container runs in, one for another unit."""
    put_dial(installed)
    host = LicensedHost(installed)
    host.set_up()
    for name in ("box", "etl"):
        host.license(name, [name])
    host.policy(
        resource("box", BOX, "systemd:unit:box.service")
        + resource("etl", ETL, "systemd:unit:etl.service")
    )
    return installed


def contain(machine: Machine, unit: str, command: str, *options: str) -> str:
    """What a command printed in a container of the host's own programs, run as that unit."""
    words = ("--quiet", "--keep-unit", "--register=no", "-D", "/", "--volatile=yes", "--pipe")
    nspawn = " ".join(("systemd-nspawn", *words, *options, command))
    run = f"systemd-run --quiet --wait --pipe --collect -p Delegate=yes --unit={unit}"
    ran = machine.run(f"{run} {nspawn}", check=False, timeout=180)
    assert ran.stdout.strip(), f"{ran}\n{machine.console}"
    return said(ran)


def test_container_is_its_unit(machine: Machine) -> None:
    assert contain(machine, "box.service", dial(BOX)) == LET
    assert contain(machine, "crate.service", dial(BOX)) == DENIED


def test_container_with_a_network_of_its_own(machine: Machine) -> None:
    # Nobody listens in there: what the license lets through is refused by the peer alone.
    assert contain(machine, "box.service", dial(BOX), "--private-network") == "ECONNREFUSED"
    assert contain(machine, "crate.service", dial(BOX), "--private-network") == DENIED


def test_container_with_users_of_its_own(machine: Machine) -> None:
    options = ("--private-users=524288:65536", "--private-users-ownership=off")
    assert contain(machine, "box.service", dial(BOX), *options) == LET
    assert contain(machine, "crate.service", dial(BOX), *options) == DENIED


def test_container_cannot_name_itself_as_another_unit(machine: Machine) -> None:
    script = f"/bin/sh -c '{_CLAIM} && cat /proc/self/cgroup && exec {dial(ETL)}'"
    cgroup, answer = contain(machine, "box.service", script).splitlines()
    assert cgroup.endswith("/etl.service")
    assert answer == DENIED
