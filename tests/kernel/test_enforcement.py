# SPDX-License-Identifier: Apache-2.0
"""Resources of every kind, on every protocol and address form, and what a refused program sees."""

from __future__ import annotations

import contextlib
import itertools
import socket
from typing import Any, Final

import pytest
from tests.kernel.harness import programs
from tests.kernel.harness.dial import binding
from tests.kernel.harness.namespaces import Netns
from tests.kernel.harness.sides import Sides, network, service
from tests.kernel.harness.subjects import new_jti

from lictoken.claims import Condition, Entitlement

pytest_plugins = ["tests.kernel.harness.fixtures"]

ENOKEY: Final = "ENOKEY"


CONNECTS: Final = ("connect-udp", "connect-tcp", "connect-icmp")


@pytest.mark.parametrize("what", CONNECTS)
@pytest.mark.parametrize(
    ("cidr", "inside", "outside"),
    [
        ("10.1.2.0/24", ("10.1.2.0", "10.1.2.255"), ("10.1.1.255", "10.1.3.0")),
        ("10.1.2.3/32", ("10.1.2.3",), ("10.1.2.2", "10.1.2.4")),
        ("10.1.2.128/25", ("10.1.2.128", "10.1.2.255"), ("10.1.2.127",)),
        ("2001:db8::/33", ("2001:db8::1", "2001:db8:7fff::1"), ("2001:db8:8000::1",)),
        ("2001:db8::7/128", ("2001:db8::7",), ("2001:db8::6",)),
        ("127.0.0.1/32", ("127.0.0.1", "0.0.0.0"), ("127.0.0.2",)),
        ("::1/128", ("::1", "::"), ("::2",)),
        ("any", ("10.1.2.3", "2001:db8::1", "127.0.0.1"), ()),
    ],
)
def test_a_network_is_its_addresses_and_no_other(
    what: str, cidr: str, inside: tuple[str, ...], outside: tuple[str, ...], sides: Sides
) -> None:
    sides.enforce(network(f'{{ cidr = "{cidr}" }}'))

    for address in inside:
        sides.only_licensed(what, address, 80)
    for address in outside:
        sides.anybody(what, address, 80)


@pytest.mark.parametrize("what", ["connect-udp", "connect-tcp"])
@pytest.mark.parametrize("cidr", ["10.1.2.0/24", "::ffff:10.1.2.0/120"])
def test_a_mapped_address_is_the_ipv4_one(what: str, cidr: str, sides: Sides) -> None:
    sides.enforce(network(f'{{ cidr = "{cidr}" }}'))

    sides.only_licensed(what, "::ffff:10.1.2.3", 80)
    sides.only_licensed(what, "10.1.2.3", 80)
    sides.anybody(what, "::ffff:10.1.3.3", 80)


@pytest.mark.parametrize("what", ["connect-udp", "connect-tcp"])
def test_no_ipv6_network_holds_ipv4_addresses(what: str, sides: Sides) -> None:
    sides.enforce(network('{ cidr = "::/1" }'))

    sides.only_licensed(what, "::2", 80)
    sides.anybody(what, "::ffff:10.1.2.3", 80)
    sides.anybody(what, "10.1.2.3", 80)


@pytest.mark.parametrize("what", ["connect-udp", "connect-tcp"])
def test_ports_and_ranges(what: str, sides: Sides) -> None:
    sides.enforce(network('{ cidr = "10.1.2.0/24", ports = ["80", "1000-1999", "65535"] }'))

    for port in (80, 1000, 1023, 1024, 1535, 1536, 1999, 65535):
        sides.only_licensed(what, "10.1.2.3", port)
    for port in (79, 81, 999, 2000, 65534):
        sides.anybody(what, "10.1.2.3", port)


@pytest.mark.parametrize("protocol", ["udp", "tcp", "icmp"])
@pytest.mark.parametrize("address", ["10.1.2.3", "2001:db8::3"])
def test_a_protocol_is_no_other(protocol: str, address: str, sides: Sides) -> None:
    places = [
        f'{{ cidr = "{cidr}", protocol = "{protocol}" }}'
        for cidr in ("10.1.2.0/24", "2001:db8::/32")
    ]
    sides.enforce(network(*places))

    for what in CONNECTS:
        if what == f"connect-{protocol}":
            sides.only_licensed(what, address, 80)
        else:
            sides.anybody(what, address, 80)


def test_the_inner_network_decides_for_the_ports_that_it_names(sides: Sides) -> None:
    lan, db = new_jti(), new_jti()
    sides.agent.issue(lan, ["lan", "host"])
    sides.agent.issue(db, ["db"])
    sides.agent.policy(
        network('{ cidr = "10.0.0.0/8" }', name="lan")
        + network('{ cidr = "10.1.0.0/16", ports = ["5432"] }', name="db")
        + network('{ cidr = "10.1.2.3/32" }', name="host")
        + binding(lan, sides.selector)
        + binding(db, "unix:uid:4242")
    )

    sides.only_licensed("connect-udp", "10.9.9.9", 5432)
    sides.only_licensed("connect-udp", "10.1.9.9", 80)
    sides.only_licensed("connect-udp", "10.1.2.3", 5432)
    assert sides.licensed.ask("use connect-udp 10.1.9.9 5432") == ENOKEY, "it is db's"


def test_the_narrower_range_decides_in_the_same_network(sides: Sides) -> None:
    wide, narrow = new_jti(), new_jti()
    sides.agent.issue(wide, ["wide"])
    sides.agent.issue(narrow, ["narrow"])
    sides.agent.policy(
        network('{ cidr = "10.1.0.0/16", ports = ["1000-2000"] }', name="wide")
        + network('{ cidr = "10.1.0.0/16", ports = ["1500-1600"] }', name="narrow")
        + binding(wide, sides.selector)
        + binding(narrow, "unix:uid:4242")
    )

    for port in (1000, 1499, 1601, 2000):
        sides.only_licensed("connect-tcp", "10.1.2.3", port)
    for port in (1500, 1555, 1600):
        assert sides.licensed.ask(f"use connect-tcp 10.1.2.3 {port}") == ENOKEY


@pytest.mark.parametrize("what", ["bind-udp", "bind-tcp"])
@pytest.mark.parametrize("address", ["0.0.0.0", "::", "127.0.0.1", "::1", "10.5.5.5"])
def test_a_service_is_its_ports_on_every_address(what: str, address: str, sides: Sides) -> None:
    sides.enforce(service('"80", "7000-7009"'))

    for port in (80, 7000, 7009):
        sides.only_licensed(what, address, port)
    for port in (81, 6999, 7010):
        sides.anybody(what, address, port)


def test_a_service_of_one_protocol_is_none_of_the_other(sides: Sides) -> None:
    sides.enforce(service('"7000"', "udp"))

    sides.only_licensed("bind-udp", "0.0.0.0", 7000)
    sides.anybody("bind-tcp", "0.0.0.0", 7000)


def test_using_a_port_is_not_offering_it_nor_the_reverse(sides: Sides) -> None:
    sides.enforce(service('"7000"'))
    sides.anybody("connect-udp", "10.1.2.3", 7000)

    sides.enforce(network('{ cidr = "any", ports = ["7000"] }'))
    sides.anybody("bind-udp", "0.0.0.0", 7000)


def test_a_license_for_connecting_is_none_for_offering(sides: Sides) -> None:
    jti, other = new_jti(), new_jti()
    sides.agent.issue(jti, ["net", "svc"], actions=("connect",))
    sides.agent.issue(other, ["svc"], actions=("bind",))
    sides.agent.policy(
        network('{ cidr = "10.1.2.3/32" }', name="net")
        + service('"7000"', name="svc")
        + binding(jti, sides.selector)
        + binding(other, "unix:uid:4242")
    )

    sides.only_licensed("connect-udp", "10.1.2.3", 7000)
    assert sides.licensed.ask("use bind-udp 0.0.0.0 7000") == ENOKEY


def limited() -> tuple[Entitlement, ...]:
    return (Entitlement("r", ("connect", "bind"), conditions=(Condition("moon", ("full",)),)),)


REASONS: Final[dict[str, tuple[str, dict[str, Any]]]] = {
    "revoked": ("EKEYREVOKED", {}),
    "expired": ("EKEYEXPIRED", {"expires_in_s": 1}),
    "not yet valid": ("EKEYEXPIRED", {"starts_in_s": 600}),
    "for another host": ("EKEYREJECTED", {"hosts": ("another-host",)}),
    "under an unknown condition": ("EKEYREJECTED", {"entitlements": limited()}),
}


@pytest.mark.parametrize("reason", REASONS)
def test_the_errno_says_why(reason: str, sides: Sides) -> None:
    name, fields = REASONS[reason]
    jti = sides.enforce(network('{ cidr = "10.1.2.3/32" }, { cidr = "2001:db8::3/128" }'), **fields)
    if reason == "revoked":
        sides.agent.revoke(jti)

    sides.licensed.until(name, "use connect-udp 10.1.2.3 80")
    for what, address in itertools.product(CONNECTS, ("10.1.2.3", "2001:db8::3")):
        assert sides.licensed.ask(f"use {what} {address} 80") == name
        assert sides.unlicensed.ask(f"use {what} {address} 80") == ENOKEY


@pytest.mark.parametrize("reason", REASONS)
def test_the_errno_says_why_a_port_is_refused(reason: str, sides: Sides) -> None:
    name, fields = REASONS[reason]
    jti = sides.enforce(service('"7000"'), **fields)
    if reason == "revoked":
        sides.agent.revoke(jti)

    sides.licensed.until(name, "use bind-udp 0.0.0.0 7000")
    for what, address in itertools.product(("bind-udp", "bind-tcp"), ("0.0.0.0", "::")):
        assert sides.licensed.ask(f"use {what} {address} 7000") == name
        assert sides.unlicensed.ask(f"use {what} {address} 7000") == ENOKEY


def test_observed_resources_let_through_and_count(sides: Sides) -> None:
    sides.enforce(
        network('{ cidr = "10.1.2.3/32" }', mode="observe"),
        service('"7000"', name="s", mode="observe"),
        names=("r", "s"),
    )
    before = sides.agent.count(verdict="shadow", reason="no_binding")

    sides.anybody("connect-udp", "10.1.2.3", 80)
    sides.anybody("bind-tcp", "0.0.0.0", 7000)
    assert sides.agent.count(verdict="shadow", reason="no_binding") == before + 2


def test_what_no_resource_names_is_neither_refused_nor_counted(sides: Sides) -> None:
    sides.enforce(
        network('{ cidr = "10.1.2.3/32", ports = ["80"] }'),
        service('"7000"', name="s"),
        names=("r", "s"),
    )
    before = sides.agent.counters()

    for what, address in itertools.product(CONNECTS, ("10.1.2.4", "2001:db8::1", "127.0.0.1")):
        sides.anybody(what, address, 80)
    sides.anybody("connect-udp", "10.1.2.3", 81)
    sides.anybody("bind-tcp", "::", 7001)
    assert sides.agent.counters() == before


RAW: Final = """
import json, socket, sys
family = socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET
with socket.socket(family, socket.SOCK_RAW, 253) as sock:
    try:
        sock.sendto(sys.argv[2].encode(), (sys.argv[1], 0))
    except OSError as error:
        print(error.errno)
"""


@pytest.mark.parametrize("address", ["10.1.2.3", "2001:db8::3"])
def test_raw_sockets_are_decided_packet_by_packet(
    address: str, sides: Sides, everywhere_netns: Netns
) -> None:
    sides.enforce(
        network('{ cidr = "10.1.2.3/32", protocol = "other" }', '{ cidr = "2001:db8::3/128" }')
    )
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    receiver = everywhere_netns.run(lambda: socket.socket(family, socket.SOCK_RAW, 253))
    with receiver:
        for place, word in ((sides.no, "refused"), (sides.yes, "licensed")):
            argv = [*programs.PYTHON, "-c", RAW, address, word]
            programs.run_in_cgroup(place, argv, namespace=everywhere_netns)
        receiver.settimeout(10)
        first = receiver.recv(1000)  # they come in the order in which they were sent

    assert first.endswith(b"licensed"), first


SERVER: Final = """
import json, socket, sys
with socket.socket() as listener:
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    print(json.dumps({"port": listener.getsockname()[1]}), flush=True)
    sys.stdin.readline()
    accepted, _ = listener.accept()
    print(json.dumps({"fd": accepted.fileno(), "listener": listener.fileno()}), flush=True)
    while data := accepted.recv(100):
        accepted.sendall(data)
"""


def test_an_accepted_socket_has_its_listeners_tag(sides: Sides) -> None:
    sides.agent.policy("")
    with programs.start(sides.yes, [*programs.PYTHON, "-c", SERVER]) as server:
        hello = server.line()
        assert hello is not None
        jti = sides.enforce(service(f'"{hello["port"]}"', "tcp"))
        with socket.create_connection(("127.0.0.1", hello["port"]), timeout=10) as client:
            server.answer({})
            fds = server.line()
            assert fds is not None
            client.sendall(b"first")
            assert client.recv(100) == b"first"
            rows = sides.agent.call("explain", pid=server.pid)["sockets"]
            licenses = {row["fd"]: row["license"] for row in rows}
            sides.agent.revoke(jti)
            with contextlib.suppress(OSError):
                client.sendall(b"second")
                assert client.recv(100) == b""

    assert licenses == {fds["fd"]: jti, fds["listener"]: jti}
