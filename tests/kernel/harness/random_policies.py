# SPDX-License-Identifier: Apache-2.0
"""Random policies, and destinations that have a fair chance to be named by them."""

from __future__ import annotations

import hashlib
import ipaddress
from pathlib import Path
from typing import Final

from hypothesis import strategies as st
from tests.kernel.harness.dial import binding
from tests.kernel.harness.oracle import Flow, Who

from licagent.domain.failsafe import FailsafeEntry
from licagent.domain.license import LicenseState
from licagent.domain.ports import PortRange
from licagent.domain.tables import Protocol

RESOURCES: Final = tuple(f"r{number}" for number in range(5))
CONTAINER: Final = "0123456789abcdef" * 4
CGROUPS: Final = (
    "/",
    "/batch.slice",
    "/batch.slice/etl.service",
    "/batch.slice/etl.service/batch.slice/etl.service",
    "/other/deep/er",
    f"/docker/{CONTAINER}",
)
SCOPES: Final = (
    ("systemd:slice:batch.slice", "/batch.slice"),
    ("systemd:unit:etl.service", "/batch.slice/etl.service"),
    ("cgroup:path:/batch.slice/etl.service", "/batch.slice/etl.service"),
    ("cgroup:path:/other", "/other"),
    ("cgroup:path:/other/deep/er", "/other/deep/er"),
    (f"container:id:{CONTAINER}", f"/docker/{CONTAINER}"),
)
"""Selectors of cgroups, and what they name."""

FAILSAFE: Final = """
failsafe = [
  { cidr = "any", ports = ["123"], protocol = "udp" },
  { cidr = "10.1.2.0/24", ports = ["8000-8010"], protocol = "tcp" },
  { direction = "in", ports = ["22"], protocol = "tcp" },
]
"""
FAILSAFE_ENTRIES: Final = (
    FailsafeEntry("out", None, Protocol.UDP, PortRange(123, 123)),
    FailsafeEntry("out", "10.1.2.0/24", Protocol.TCP, PortRange(8000, 8010)),
    FailsafeEntry("in", None, Protocol.TCP, PortRange(22, 22)),
)

STATES: Final = {
    "good-1": LicenseState.VALID,
    "good-2": LicenseState.VALID,
    "some": LicenseState.VALID,  # of the first resources only
    "limited": LicenseState.VALID,  # under a condition that this version cannot judge
    "revoked": LicenseState.REVOKED,
    "expired": LicenseState.EXPIRED,
    "early": LicenseState.NOT_YET_VALID,
    "elsewhere": LicenseState.CONDITION,
}


def digest_of(program: Path) -> str:
    return f"unix:sha256:{hashlib.sha256(program.read_bytes()).hexdigest()}"


BASES4: Final = ("10.1.2.3", "10.1.200.7", "192.0.2.1", "127.0.0.1", "255.255.255.254")
BASES6: Final = ("2001:db8:1:2::3", "2001:db8:1:ffff::1", "::1", "fd00::1", "::ffff:10.1.2.9")
PORTS: Final = (1, 22, 53, 80, 123, 443, 1023, 1024, 5432, 8000, 8005, 8010, 65535)


@st.composite
def networks(draw: st.DrawFn) -> str:
    if draw(st.integers(0, 7)) == 0:
        return "any"
    base = draw(st.sampled_from((*BASES4, *BASES6)))
    address = ipaddress.ip_address(base)
    least = 96 if base.startswith("::ffff") else 1
    lengths = st.sampled_from((8, 16, 24, 31, 32, 48, 64, 104, 120, 127, 128))
    length = draw(lengths.filter(lambda bits: least <= bits <= address.max_prefixlen))
    return str(ipaddress.ip_network((base, length), strict=False))


@st.composite
def port_lists(draw: st.DrawFn) -> list[str]:
    found = []
    for _ in range(draw(st.integers(1, 3))):
        first, last = sorted((draw(st.sampled_from(PORTS)), draw(st.sampled_from(PORTS))))
        found.append(str(first) if draw(st.booleans()) or first == last else f"{first}-{last}")
    return list(dict.fromkeys(found))


def quoted(words: list[str]) -> str:
    return "[" + ", ".join(f'"{word}"' for word in words) + "]"


@st.composite
def resources(draw: st.DrawFn, name: str) -> str:
    mode = draw(st.sampled_from(("enforce", "enforce", "enforce", "observe")))
    text = f'[[resource]]\nname = "{name}"\nmode = "{mode}"\n'
    if draw(st.integers(0, 3)) == 0:
        protocol = draw(st.sampled_from(("tcp", "udp", "any")))
        ports = quoted(draw(port_lists()))
        return text + f'kind = "service"\nports = {ports}\nprotocol = "{protocol}"\n'
    places = []
    for _ in range(draw(st.integers(1, 3))):
        protocol = draw(st.sampled_from(("tcp", "udp", "icmp", "any", "any")))
        ports = f", ports = {quoted(draw(port_lists()))}" if protocol != "icmp" else ""
        ports = ports if draw(st.booleans()) else ""
        places.append(f'{{ cidr = "{draw(networks())}", protocol = "{protocol}"{ports} }}')
    return text + f'kind = "network"\ndestinations = [{", ".join(places)}]\n'


def selectors_of(who: Who) -> dict[str, list[str]]:
    """Every selector of these tests that holds for a process, by kind."""
    return {
        "uid": [f"unix:uid:{who.uid}"],
        "gid": [f"unix:gid:{who.gid}"],
        "path": [f"unix:path:{who.program}"],
        "digest": [digest_of(who.program)],
        "scope": [text for text, path in SCOPES if f"{who.cgroup}/".startswith(f"{path}/")],
    }


@st.composite
def bindings(draw: st.DrawFn, names: tuple[str, ...], subjects: tuple[Who, ...]) -> str:
    # Mostly what holds for one of the processes; sometimes one thing is another one's.
    kinds = selectors_of(draw(st.sampled_from(subjects)))
    if draw(st.integers(0, 4)) == 0:
        other = draw(st.sampled_from(sorted(kinds)))
        kinds[other] = selectors_of(draw(st.sampled_from(subjects)))[other]
    usable = sorted(kind for kind, found in kinds.items() if found)
    chosen = draw(st.lists(st.sampled_from(usable), max_size=4, unique=True))
    jti = draw(st.sampled_from(sorted(STATES)))
    text = binding(jti, *([draw(st.sampled_from(kinds[kind])) for kind in chosen] or ["host"]))
    if jti != "some" and draw(st.integers(0, 3)) == 0:
        text += f"resources = {quoted([draw(st.sampled_from(names))])}\n"
    return text


@st.composite
def policies(draw: st.DrawFn, subjects: tuple[Who, ...]) -> tuple[list[str], list[str]]:
    names = RESOURCES[: draw(st.integers(1, len(RESOURCES)))]
    parts = [draw(resources(name)) for name in names]
    count = draw(st.integers(2, 20))
    return parts, [draw(bindings(names, subjects)) for _ in range(count)]


KINDS: Final = ("connect-udp",) * 5 + ("connect-tcp", "connect-icmp", "bind-udp", "bind-tcp")
ADDRESSES: Final = (
    *("10.1.2.3", "10.1.2.2", "10.1.3.1", "10.2.0.1", "11.0.0.1", "0.0.0.0", "10.1.200.6"),
    *("192.0.2.1", "127.0.0.1", "127.9.9.9", "255.255.255.254", "::", "::1", "fd00::9"),
    *("2001:db8:1:2::3", "2001:db8:1:2::4", "2001:db8:1::", "2001:db8::", "::ffff:10.1.2.3"),
    *("::ffff:10.1.2.9", "::ffff:10.1.200.7", "::ffff:0.0.0.0", "::fffe:10.1.2.3"),
)


@st.composite
def flows(draw: st.DrawFn) -> Flow:
    what = draw(st.sampled_from(KINDS))
    port = draw(st.sampled_from(PORTS) if draw(st.integers(0, 4)) else st.integers(1, 65535))
    address = draw(st.sampled_from(ADDRESSES))
    if what.startswith("bind"):
        return Flow(what, "::" if ":" in address else "0.0.0.0", port)
    match draw(st.integers(0, 9)):
        case 0:
            address = str(ipaddress.IPv4Address(draw(st.integers(1, 2**32 - 1))))
        case 1:
            address = str(ipaddress.IPv6Address(draw(st.integers(1, 2**128 - 1))))
    return Flow(what, address, port)
