# SPDX-License-Identifier: Apache-2.0
"""Reading `[[resource]]` tables: kinds, networks, ports and protocols."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from typing import Any, Final

from licagent.domain.policy_model import (
    ALL_PROTOCOLS,
    ENFORCED_KINDS,
    PORT_PROTOCOLS,
    Destination,
    Resource,
    ResourceKind,
)
from licagent.domain.policy_reader import PolicyFile
from licagent.domain.ports import ALL_PORTS, PortError, PortRange, parse_ports
from licagent.domain.problem import shown
from licagent.domain.tables import Protocol
from licagent.domain.toml_lines import Path

_COMMON_KEYS: Final = ("name", "kind", "mode", "description")
_KEYS: Final = {
    ResourceKind.NETWORK: (*_COMMON_KEYS, "destinations"),
    ResourceKind.SERVICE: (*_COMMON_KEYS, "ports", "protocol"),
    ResourceKind.COMPUTE: _COMMON_KEYS,
    ResourceKind.STORAGE: (*_COMMON_KEYS, "paths"),
    ResourceKind.FEATURE: _COMMON_KEYS,
}
_ALL_KEYS: Final = (*_COMMON_KEYS, "destinations", "ports", "protocol", "paths")
_DESTINATION_KEYS: Final = ("cidr", "ports", "protocol")

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/-]{0,127}", re.ASCII)
_PREFIX_LENGTH = re.compile(r"0|[1-9][0-9]{0,2}", re.ASCII)
_PROTOCOLS: Final = {
    "tcp": (Protocol.TCP,),
    "udp": (Protocol.UDP,),
    "icmp": (Protocol.ICMP,),
    "sctp": (Protocol.SCTP,),
    "other": (Protocol.OTHER,),
    "any": ALL_PROTOCOLS,
}
_MAPPED: Final = 0xFFFF << 32  # ::ffff:0:0


def read_resource(
    file: PolicyFile, path: Path, table: Mapping[str, Any], line: int
) -> Resource | None:
    """The resource that `table` describes; None, and problems in `file`, where it cannot be."""
    name = file.string((*path, "name"), table)
    if name:
        check_name(file, (*path, "name"), name)
    word = file.choice((*path, "kind"), table, tuple(ResourceKind), None)
    mode = file.choice((*path, "mode"), table, ("enforce", "observe"), "observe")
    description = file.string((*path, "description"), table, "")
    if word is None:
        file.check_keys(path, table, _ALL_KEYS)
        return None
    kind = ResourceKind(word)
    _check_kind_keys(file, path, table, kind)
    if mode == "enforce" and kind not in ENFORCED_KINDS:
        file.problem(
            (*path, "mode"),
            f"this version cannot enforce resources of kind {shown(kind.value)}",
            "leave mode out: promising it would be worse than not doing it",
        )
    return Resource(
        name=name,
        kind=kind,
        enforce=mode == "enforce",
        destinations=_destinations(file, path, table) if kind is ResourceKind.NETWORK else (),
        ports=_service_ports(file, path, table) if kind is ResourceKind.SERVICE else (),
        protocols=_service_protocols(file, path, table) if kind is ResourceKind.SERVICE else (),
        paths=_paths(file, path, table) if kind is ResourceKind.STORAGE else (),
        description=description,
        file=file.name,
        line=line,
    )


def check_name(file: PolicyFile, path: Path, name: str) -> None:
    """Record a problem unless `name` can be the name of a resource or a binding."""
    if _NAME.fullmatch(name):
        return
    tidy = re.sub(r"[^A-Za-z0-9._:/-]+", "-", name).strip("-._:/")[:128]
    hint = f"did you mean {shown(tidy)}?" if _NAME.fullmatch(tidy) else ""
    file.problem(
        path,
        f"{shown(name)} cannot be a name: letters, digits and . _ : / - (at most 128)",
        hint,
    )


def _check_kind_keys(
    file: PolicyFile, path: Path, table: Mapping[str, Any], kind: ResourceKind
) -> None:
    own = _KEYS[kind]
    for key in table:
        if key in own or key not in _ALL_KEYS:
            continue
        hint = f"resources of kind {kind.value} have: {', '.join(own)}"
        if kind is ResourceKind.NETWORK and key in ("ports", "protocol"):
            hint = f"move {key} into each of the destinations"
        file.problem((*path, key), f"{shown(key)} does not belong to kind {kind.value}", hint)
    file.check_keys(path, {key: 0 for key in table if key not in _ALL_KEYS}, own)


def _destinations(
    file: PolicyFile, path: Path, table: Mapping[str, Any]
) -> tuple[Destination, ...]:
    if "destinations" not in table:
        file.problem(
            path,
            "a network resource without destinations covers nothing",
            'add destinations = [{ cidr = "10.0.5.0/24", ports = ["5432"], protocol = "tcp" }]',
        )
        return ()
    found: list[Destination] = []
    for index, entry in enumerate(file.array((*path, "destinations"), table)):
        place = (*path, "destinations", index)
        if isinstance(entry, dict):
            found += _destination(file, place, entry, index)
        else:
            hint = f'{{ cidr = "{entry}" }}' if isinstance(entry, str) else '{ cidr = "..." }'
            file.problem(place, "a destination must be a table", f"write {hint}")
    return tuple(found)


def _destination(
    file: PolicyFile, path: Path, table: Mapping[str, Any], position: int
) -> list[Destination]:
    file.check_keys(path, table, _DESTINATION_KEYS)
    text = file.string((*path, "cidr"), table)
    networks = _networks(file, (*path, "cidr"), text) if text else []
    protocol = file.choice((*path, "protocol"), table, tuple(_PROTOCOLS), "any")
    protocols = _PROTOCOLS[protocol or "any"]
    ports: tuple[PortRange, ...] = (ALL_PORTS,)
    if "ports" in table:
        ports = _ports(file, (*path, "ports"), table)
        if protocol in ("icmp", "other"):
            file.problem((*path, "ports"), f"{protocol} has no ports", "leave ports out")
        # With ports named, "any" can only mean the protocols that have some.
        protocols = tuple(entry for entry in protocols if entry in PORT_PROTOCOLS)
    return [
        Destination(family, address, prefix_length, ports, protocols, position)
        for family, address, prefix_length in networks
    ]


def _ports(file: PolicyFile, path: Path, table: Mapping[str, Any]) -> tuple[PortRange, ...]:
    found = []
    for index, entry in enumerate(file.array(path, table)):
        if isinstance(entry, int) and not isinstance(entry, bool):
            entry = str(entry)  # noqa: PLW2901 - `ports = [443]` is as clear as `["443"]`
        if not isinstance(entry, str):
            file.wrong_type((*path, index), entry, "a port or a range in quotes")
            continue
        try:
            found.append(parse_ports(entry))
        except PortError as error:
            file.problem((*path, index), f"{shown(entry)}: {error.message}", error.suggestion)
    return tuple(found)


def _networks(file: PolicyFile, path: Path, text: str) -> list[tuple[int, int, int]]:
    """(family, address, prefix length) of what `text` names; both families for "any"."""
    if text == "any":
        return [(4, 0, 0), (6, 0, 0)]
    address_text, slash, length_text = text.partition("/")
    try:
        address = ipaddress.ip_address(address_text)
    except ValueError:
        file.problem(path, f"{shown(text)} is not a network", _network_hint(text, address_text))
        return []
    if getattr(address, "scope_id", None) is not None:
        hint = f'did you mean "{text.replace("%" + str(address_text.partition("%")[2]), "")}"?'
        file.problem(path, f"{shown(text)}: a network has no zone", hint)
        return []
    width = address.max_prefixlen
    if slash and not _PREFIX_LENGTH.fullmatch(length_text):
        file.problem(
            path,
            f"{shown(text)}: after the slash stands the number of network bits",
            _netmask_hint(address_text, length_text, width),
        )
        return []
    length = int(length_text) if slash else width
    if length > width:
        file.problem(path, f"{shown(text)}: an IPv{address.version} network has 0 to {width} bits")
        return []
    return _checked_network(file, path, text, (address.version, int(address), length))


def _checked_network(
    file: PolicyFile, path: Path, text: str, network: tuple[int, int, int]
) -> list[tuple[int, int, int]]:
    family, value, length = network
    width = 32 if family == 4 else 128
    start = value >> (width - length) << (width - length)
    if start != value:
        address = _address(family, value)
        file.problem(
            path,
            f"{shown(text)} has host bits set",
            f'did you mean "{_address(family, start)}/{length}", or "{address}/{width}" alone?',
        )
        return []
    if family == 6 and length >= 96 and value >> 32 == _MAPPED >> 32:
        family, value, length = 4, value & 0xFFFFFFFF, length - 96
        width = 32
    if value == 0 and length == width:
        file.problem(
            path,
            f"{shown(text)} is no destination: connecting to it reaches this host",
            'did you mean "127.0.0.0/8"?' if family == 4 else 'did you mean "::1/128"?',
        )
        return []
    return [(family, value, length)]


def _address(family: int, value: int) -> str:
    address = ipaddress.IPv4Address(value) if family == 4 else ipaddress.IPv6Address(value)
    return str(address)


def _network_hint(text: str, address_text: str) -> str:
    if re.fullmatch(r"[0-9.]+", address_text, re.ASCII):
        parts = [part for part in address_text.split(".") if part]
        if len(parts) > 4:
            return "an IPv4 address has four numbers"
        if any(int(part.lstrip("0")[:5] or "0") > 255 for part in parts):
            return "each number of an IPv4 address is 0 to 255"
        if any(len(part) > 1 and part[0] == "0" for part in parts):
            plain = ".".join(part.lstrip("0") or "0" for part in parts)
            return f'without leading zeros: "{text.replace(address_text, plain)}"'
        if 0 < len(parts) < 4:
            full = ".".join(parts + ["0"] * (4 - len(parts)))
            return f'did you mean "{full}/{8 * len(parts)}"?'
    if text.lower() in ("*", "all", "any", "0/0", "everything", "internet", "default"):
        return 'write "any" to mean every address'
    if re.fullmatch(r"\[.*\](/\d+)?", text):
        return "without the brackets"
    if re.search(r":\d+$", text) and text.count(":") == 1:
        return "the port belongs into ports"
    if re.fullmatch(r"[A-Za-z][A-Za-z0-9.-]*", address_text, re.ASCII):
        return "names are not resolved, for whoever answers DNS would then decide: name addresses"
    return 'write it as "10.0.5.0/24" or "2001:db8::/32", or "any"'


def _netmask_hint(address_text: str, length_text: str, width: int) -> str:
    try:
        network = ipaddress.ip_network(f"{address_text}/{length_text}", strict=False)
    except ValueError:
        return f"0 to {width}"
    return f'did you mean "{network}"?'


def _service_ports(file: PolicyFile, path: Path, table: Mapping[str, Any]) -> tuple[PortRange, ...]:
    if "ports" not in table:
        file.problem(path, "a service resource without ports covers nothing", 'add ports = ["443"]')
        return ()
    return _ports(file, (*path, "ports"), table)


def _service_protocols(
    file: PolicyFile, path: Path, table: Mapping[str, Any]
) -> tuple[Protocol, ...]:
    word = file.choice((*path, "protocol"), table, ("tcp", "udp", "sctp", "any"), "any")
    return tuple(entry for entry in _PROTOCOLS[word or "any"] if entry in PORT_PROTOCOLS)


def _paths(file: PolicyFile, path: Path, table: Mapping[str, Any]) -> tuple[str, ...]:
    if "paths" not in table:
        return ()
    found = []
    for place, text in file.strings((*path, "paths"), table):
        if not text.startswith("/") or "\0" in text:
            file.problem(place, f"{shown(text)} is not an absolute path", "start it with /")
        found.append(text)
    return tuple(found)
