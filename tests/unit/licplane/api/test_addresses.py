# SPDX-License-Identifier: Apache-2.0
"""Addresses to listen on: how they are written, taken and told."""

from __future__ import annotations

import socket

import pytest

from licplane.api.addresses import (
    advertised,
    hold,
    join_address,
    metrics_address,
    server_names,
    split_address,
)
from licplane.api.settings import Addresses, ServerSettings
from licplane.errors import ExitCode, PlaneError


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("127.0.0.1:8443", "127.0.0.1", 8443),
        ("[::1]:0", "::1", 0),
        ("plane.example:1", "plane.example", 1),
    ],
)
def test_an_address_is_split_and_joined(text: str, host: str, port: int) -> None:
    assert split_address(text, "--listen") == (host, port)
    assert join_address(host, port) == text


@pytest.mark.parametrize(
    "text", ["", "host", ":1", "host:", "host:x", "host:65536", "::1:80", "h:-1"]
)
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(PlaneError, match="--listen") as refused:
        split_address(text, "--listen")
    assert refused.value.code is ExitCode.USAGE


def test_an_address_where_somebody_listens_is_not_shared() -> None:
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)  # as another licplane would
        other.bind(("127.0.0.1", 0))
        other.listen()
        with pytest.raises(PlaneError, match="cannot be had") as refused:
            hold(f"127.0.0.1:{other.getsockname()[1]}", "--listen")
    assert refused.value.code is ExitCode.BUSY


def test_a_held_address_is_one_that_workers_can_share() -> None:
    held = hold("127.0.0.1:0", "--listen")
    with held.socket, socket.socket() as worker:
        worker.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        worker.bind(held.socket.getsockname())
        worker.listen()
        with socket.create_connection(split_address(held.address, "x"), timeout=10):
            made, _ = worker.accept()  # the held socket takes no connection away
            made.close()


def test_what_hosts_are_told_and_the_certificate_says() -> None:
    addresses = Addresses("0.0.0.0:8443", "127.0.0.1:8444")
    settings = ServerSettings(control_address="plane.example:443", server_names=("10.0.0.7",))
    names = server_names(settings, addresses)
    assert {"plane.example", "127.0.0.1", "localhost", "10.0.0.7", socket.gethostname()} == set(
        names
    )
    told = advertised(settings, addresses)
    assert (told.control_address, told.public_address) == ("plane.example:443", "127.0.0.1:8444")


def test_each_worker_has_metrics_of_its_own() -> None:
    assert metrics_address(ServerSettings(), 0) == ""
    settings = ServerSettings(metrics_listen="127.0.0.1:9000")
    assert [metrics_address(settings, n) for n in (0, 3)] == ["127.0.0.1:9000", "127.0.0.1:9003"]


def test_nobody_is_told_to_connect_to_all_addresses() -> None:
    told = advertised(ServerSettings(), Addresses("0.0.0.0:8443", "[::]:8444"))
    name = socket.gethostname()
    assert (told.control_address, told.public_address) == (f"{name}:8443", f"{name}:8444")
