# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import pytest

from licagent.observability.systemd import Notifier, watchdog_interval_s


@pytest.fixture(params=["path", "abstract"])
def manager(request, tmp_path) -> Iterator[tuple[str, socket.socket]]:
    """A service manager's end, and the address it gives to the service."""
    abstract = f"licagent-test-{os.getpid()}"
    path = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(path if request.param == "path" else f"\0{abstract}")
        receiver.settimeout(5)
        yield (path if request.param == "path" else f"@{abstract}"), receiver


def test_each_state_is_one_message(manager):
    address, receiver = manager
    notifier = Notifier.from_environment({"NOTIFY_SOCKET": address})
    assert notifier.active
    notifier.ready("enforcing 3 licenses")
    assert receiver.recv(4096) == b"READY=1\nSTATUS=enforcing 3 licenses"
    notifier.watchdog()
    assert receiver.recv(4096) == b"WATCHDOG=1"
    notifier.status("degraded")
    assert receiver.recv(4096) == b"STATUS=degraded"
    notifier.stopping()
    assert receiver.recv(4096) == b"STOPPING=1"
    notifier.reloading()
    first, second = receiver.recv(4096).split(b"\n")
    assert first == b"RELOADING=1"
    assert second.startswith(b"MONOTONIC_USEC=")


def test_a_newline_in_a_status_is_no_field_of_its_own(manager):
    address, receiver = manager
    Notifier(address).status("fine\nMAINPID=1")
    assert receiver.recv(4096) == b"STATUS=fine MAINPID=1"


@pytest.mark.parametrize("address", [None, "", "vsock:2:1234", "relative"])
def test_nobody_to_tell_is_no_error(address):
    notifier = Notifier(address)
    assert not notifier.active
    assert notifier.send({"READY": "1"}) is False


def test_a_manager_that_is_gone_is_no_error(tmp_path):
    assert Notifier(str(tmp_path / "gone")).send({"READY": "1"}) is False


def test_the_watchdog_is_fed_twice_in_its_time():
    assert watchdog_interval_s({"WATCHDOG_USEC": "30000000"}) == 15.0
    assert watchdog_interval_s({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, pid=1) == 15.0


@pytest.mark.parametrize(
    "environment",
    [{}, {"WATCHDOG_USEC": "x"}, {"WATCHDOG_USEC": "0"},
     {"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}],
)  # fmt: skip
def test_no_watchdog_is_wanted(environment):
    assert watchdog_interval_s(environment, pid=2) is None
