# SPDX-License-Identifier: Apache-2.0
"""From power-on: the policy is in the kernel before there is a network, by the disk alone."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from tests.vm.issuer import DENIED, EXPIRED, LicensedHost, binding, dial, put_dial, resource, said
from tests.vm.machine import Machine
from tests.vm.states import START_S

_IMPORTER = "systemd:unit:importer.service"
_MASK = "systemd.mask=licagent.service"
_RACER = """#!/usr/bin/python3
# Tries two ports from the first moment of the boot; a line whenever an answer changes.
import errno, json, socket, sys, time
last = {}
with open("/run/racer", "w") as log:
    while True:
        for name, port in (("licensed", int(sys.argv[2])), ("open", int(sys.argv[3]))):
            with socket.socket() as made:
                made.settimeout(5)
                try:
                    made.connect((sys.argv[1], port))
                    answer = "connected"
                except OSError as error:
                    answer = errno.errorcode.get(error.errno, str(error))
            if last.get(name) != answer:
                last[name] = answer
                print(json.dumps([time.clock_gettime(time.CLOCK_BOOTTIME), name, answer]),
                      file=log, flush=True)
        time.sleep(0.1)
"""
_RACER_UNIT = """[Unit]
DefaultDependencies=no
After=local-fs.target
[Service]
ExecStart=/usr/local/bin/racer {address} {licensed} {open}
[Install]
WantedBy=sysinit.target
"""


class Listener:
    """Accepts on a port of this machine, which the guest reaches over its network."""

    def __init__(self) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port: int = self._socket.getsockname()[1]
        self.accepted = 0
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                self._socket.accept()[0].close()
                self.accepted += 1

    def close(self) -> None:
        """Accept no more."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


@pytest.fixture(scope="module")
def listeners() -> Iterator[tuple[Listener, Listener]]:
    """One behind a licensed resource, one that is nobody's."""
    both = Listener(), Listener()
    yield both
    for each in both:
        each.close()


@pytest.fixture(scope="module")
def machine(installed: Machine, listeners: tuple[Listener, Listener]) -> Machine:
    """Enforces: a resource on the network, and one of its own for a license of an hour."""
    licensed, unlicensed = listeners
    put_dial(installed)
    # As a unit of its own it is there again after a boot.
    installed.write(
        "/etc/systemd/system/listen.service",
        "[Service]\nExecStart=/usr/local/bin/listen\n[Install]\nWantedBy=multi-user.target\n",
    )
    installed.write("/usr/local/bin/racer", _RACER, mode=0o755)
    unit = _RACER_UNIT.format(
        address=installed.host_address, licensed=licensed.port, open=unlicensed.port
    )
    installed.write("/etc/systemd/system/racer.service", unit)
    installed.run("systemctl stop listen; systemctl daemon-reload")
    installed.run("systemctl enable --now listen; systemctl enable racer")
    host = LicensedHost(installed)
    host.set_up()
    host.license("brief", ["brief"], expires_in_s=3600)
    # Somebody may reach it, but not the racer.
    host.license("db", ["db"])
    host.policy(
        resource("db", licensed.port, _IMPORTER, cidr=f"{installed.host_address}/32")
        + resource("brief", 7001)
        + binding("brief", "systemd:unit:etl.service")
    )
    return installed


def unit(machine: Machine, name: str, command: str) -> str:
    """What a command says as that unit."""
    run = f"systemd-run --quiet --wait --pipe --collect --unit={name}.service"
    return said(machine.run(f"{run} {command}", check=False))


def etl(machine: Machine) -> str:
    """How connecting went for the one that has the license of an hour."""
    machine.wait_for("ss -Hltn sport = :7009 | grep -q .")
    return unit(machine, "etl", dial(7001))


def answers(machine: Machine) -> list[tuple[float, str, str]]:
    """What the racer met: seconds since power-on, which port, which answer."""
    machine.wait_for("""grep -q '"open", "connected"' /run/racer""")
    lines = machine.run("cat /run/racer").stdout.splitlines()
    return [(float(at), name, answer) for at, name, answer in map(json.loads, lines)]


def property_of(machine: Machine, unit: str, name: str) -> str:
    """One property of a unit."""
    return machine.run(f"systemctl show --value -p {name} {unit}").stdout.strip()


def test_racer_at_boot_is_refused_before_there_is_a_network(
    machine: Machine, listeners: tuple[Listener, Listener]
) -> None:
    accepted = listeners[0].accepted
    # Straight after the policy was applied: what is enforced must have been on the disk already.
    machine.power_cut()
    met = answers(machine)
    licensed: list[Any] = [(at, answer) for at, name, answer in met if name == "licensed"]
    refused = min(at for at, answer in licensed if answer == DENIED)
    online = min(at for at, name, answer in met if (name, answer) == ("open", "connected"))
    assert refused < online, met
    # No route, then no license; never anything else.
    assert {answer for _at, answer in licensed} <= {"ENETUNREACH", "EHOSTUNREACH", DENIED}, met
    assert licensed[-1][1] == DENIED
    assert listeners[0].accepted == accepted
    assert listeners[1].accepted
    loaded = int(property_of(machine, "licagent-load.service", "ActiveEnterTimestampMonotonic"))
    network = property_of(machine, "systemd-networkd.service", "ExecMainStartTimestampMonotonic")
    assert 0 < loaded < int(network)
    assert property_of(machine, "licagent-load.service", "Result") == "success"


def test_daemon_takes_over_what_was_loaded_at_boot(
    machine: Machine, listeners: tuple[Listener, Listener]
) -> None:
    machine.wait_for("systemctl is-active licagent.service", timeout=START_S)
    status = LicensedHost(machine).status()
    assert status["state"] == "enforcing", status
    assert said(machine.run(dial(7001))) == DENIED
    assert etl(machine) == "connected"
    db = dial(listeners[0].port, machine.host_address)
    assert unit(machine, "importer", db) == "connected"
    assert unit(machine, "exporter", db) == DENIED


def test_license_that_expired_while_the_host_was_off(machine: Machine) -> None:
    assert etl(machine) == "connected"
    later = datetime.now(UTC) + timedelta(hours=2)
    # Without the daemon: what is loaded at boot must know by itself.
    machine.power_cut(clock=later, cmdline_extra=_MASK)
    assert property_of(machine, "licagent.service", "LoadState") == "masked"
    assert etl(machine) == EXPIRED
    assert said(machine.run(dial(7001))) == DENIED
    assert {answer for _at, name, answer in answers(machine) if name == "licensed"} <= {
        *("ENETUNREACH", "EHOSTUNREACH", DENIED)
    }
