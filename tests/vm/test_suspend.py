# SPDX-License-Identifier: Apache-2.0
"""A host that sleeps: time goes on for licenses, and the kernel alone knows when it wakes."""

from __future__ import annotations

import time

import pytest
from tests.vm.issuer import EXPIRED, LicensedHost, binding, dial, put_dial, resource, said
from tests.vm.machine import Machine
from tests.vm.states import START_S

BRIEF_S = 240
"""Of the brief license: for all that comes before the host sleeps, under emulation."""


@pytest.fixture
def host(installed: Machine) -> LicensedHost:
    """Enforces; root has two licenses of a day."""
    put_dial(installed)
    found = LicensedHost(installed)
    found.set_up()
    for name in ("long", "brief"):
        found.license(name, [name])
    found.policy(
        resource("long", 7001)
        + resource("brief", 7002)
        + binding("long", "unix:uid:0")
        + binding("brief", "unix:uid:0")
    )
    return found


def clocks(machine: Machine) -> tuple[float, float, float]:
    """The machine's CLOCK_BOOTTIME, CLOCK_MONOTONIC and CLOCK_REALTIME, in seconds."""
    code = "import time; print(time.clock_gettime(7), time.monotonic(), time.time())"
    boottime, monotonic, wall = machine.run(f"python3 -c '{code}'").stdout.split()
    return float(boottime), float(monotonic), float(wall)


def test_license_that_ends_while_the_host_sleeps(host: LicensedHost) -> None:
    machine = host.machine
    assert said(machine.run(dial(7001))) == "connected"
    now = clocks(machine)[2]
    end = now + BRIEF_S
    host.license("brief", ["brief"], expires_in_s=BRIEF_S, now_s=now, generation=2)
    assert said(machine.run(dial(7002))) == "connected"
    # From here on nobody but the kernel decides.
    machine.run("systemctl stop licagent.service")
    began = time.monotonic()
    before = clocks(machine)
    assert before[2] < end, "too slow: the license has ended before the host sleeps"
    machine.suspend()
    asleep = before[2] + time.monotonic() - began  # at the latest
    assert asleep < end, "too slow: the license ended before the host slept"
    time.sleep(BRIEF_S)
    machine.wake()
    after = clocks(machine)
    slept = (after[0] - after[1]) - (before[0] - before[1])
    assert slept > BRIEF_S / 2, "the guest's own clock did not notice that it slept"
    # Its clock may have lost a little over the sleep; the license ends by that clock.
    time.sleep(max(0.0, end + 2 - after[2]))
    told = f"slept {slept:.1f} s, woke {after[2] - end:.1f} s after the end"
    assert said(machine.run(dial(7002))) == EXPIRED, told
    assert said(machine.run(dial(7001))) == "connected"
    machine.run("systemctl start licagent.service", timeout=START_S)
    assert said(machine.run(dial(7002))) == EXPIRED
    assert said(machine.run(dial(7001))) == "connected"
