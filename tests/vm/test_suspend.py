# SPDX-License-Identifier: Apache-2.0
"""A host that sleeps: time goes on for licenses, and the kernel alone knows when it wakes."""

from __future__ import annotations

import time

import pytest
from tests.vm.issuer import LicensedHost, binding, dial, put_dial, resource, said
from tests.vm.machine import Machine

BRIEF_S = 120
"""Long enough to be used on a busy machine before the host goes to sleep."""


@pytest.fixture
def machine(installed: Machine) -> Machine:
    """Enforces; the daemon is stopped, so that nobody but the kernel decides."""
    put_dial(installed)
    host = LicensedHost(installed)
    host.set_up()
    host.license("long", ["long"])
    host.policy(resource("long", 7001) + resource("brief", 7002))
    host.license("brief", ["brief"], expires_in_s=BRIEF_S)
    host.policy(
        resource("long", 7001)
        + resource("brief", 7002)
        + binding("long", "unix:uid:0")
        + binding("brief", "unix:uid:0")
    )
    installed.run("systemctl stop licagent.service")
    return installed


def clocks(machine: Machine) -> tuple[float, float]:
    """CLOCK_BOOTTIME and CLOCK_MONOTONIC of the machine, in seconds."""
    code = "import time; print(time.clock_gettime(7), time.monotonic())"
    boottime, monotonic = machine.run(f"python3 -c '{code}'").stdout.split()
    return float(boottime), float(monotonic)


def test_license_that_ends_while_the_host_sleeps(machine: Machine) -> None:
    assert said(machine.run(dial(7001))) == "connected"
    assert said(machine.run(dial(7002))) == "connected"
    before = clocks(machine)
    machine.suspend()
    time.sleep(BRIEF_S)
    machine.wake()
    after = clocks(machine)
    slept = (after[0] - after[1]) - (before[0] - before[1])
    assert slept > BRIEF_S / 2, "the guest's own clock did not notice that it slept"
    assert said(machine.run(dial(7002))) == "EKEYEXPIRED"
    assert said(machine.run(dial(7001))) == "connected"
    machine.run("systemctl start licagent.service", timeout=300)
    assert said(machine.run(dial(7002))) == "EKEYEXPIRED"
    assert said(machine.run(dial(7001))) == "connected"
