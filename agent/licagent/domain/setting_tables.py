# SPDX-License-Identifier: Apache-2.0
"""Checks of the settings that are lists of tables: the failsafe list and footprints."""

from __future__ import annotations

import ipaddress
import re
import tomllib
from dataclasses import fields
from typing import Any, Final

from licagent.domain.config import RESOLVERS, FailsafeSetting
from licagent.domain.footprint import FootprintSpec, fault_of
from licagent.domain.setting_checks import BadValue, likely

_PORTS: Final = re.compile(r"(\d{1,5})(?:-(\d{1,5}))?")
_PROTOCOLS: Final = ("tcp", "udp", "icmp", "sctp", "other", "any")
_FOOTPRINTS_MAX: Final = 1000
_KIND_WORDS: Final = {str: "a text", int: "a number", bool: "true or false"}


def tables_text(text: str) -> object:
    """A list as the environment has it: in TOML."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError as error:
        raise BadValue(f"not a TOML list: {error}", '[{ cidr = "10.0.0.1/32" }]') from error


def check_failsafe(value: Any) -> object:
    """The failsafe list: FailsafeSetting for each line."""
    if not isinstance(value, list):
        hint = 'failsafe = [{ direction = "in", ports = ["22"], protocol = "tcp" }]'
        raise BadValue("failsafe must be a list", hint)
    return tuple(_failsafe_entry(entry) for entry in value)


def _failsafe_entry(entry: Any) -> FailsafeSetting:
    keys = ("direction", "cidr", "ports", "protocol")
    if not isinstance(entry, dict):
        raise BadValue(f"{entry!r} is no table", '{ cidr = "10.0.0.1/32", ports = ["443"] }')
    for key in entry:
        if key not in keys:
            raise BadValue(f"unknown key {key!r}", likely(key, keys))
    direction, cidr = entry.get("direction", "out"), entry.get("cidr", "any")
    ports, protocol = entry.get("ports", []), entry.get("protocol", "any")
    if direction not in ("out", "in"):
        raise BadValue(f"direction {direction!r} is neither out nor in")
    if protocol not in _PROTOCOLS:
        known = ", ".join(_PROTOCOLS)
        raise BadValue(
            f"protocol {protocol!r} is none of {known}", likely(str(protocol), _PROTOCOLS)
        )
    if direction == "in" and cidr != "any":
        raise BadValue("inbound entries have ports and a protocol only", "leave cidr out")
    if cidr not in ("any", RESOLVERS):
        _check_network(cidr)
    if not isinstance(ports, list):
        raise BadValue(f"ports {ports!r} is not a list", 'ports = ["22", "6000-6010"]')
    for port in ports:
        match = _PORTS.fullmatch(port) if isinstance(port, str) else None
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if not 1 <= first <= last <= 65535:
            raise BadValue(f"{port!r} is no port or range of ports", '"22" or "6000-6010"')
    if ports and protocol not in ("tcp", "udp", "sctp", "any"):
        raise BadValue(f"{protocol} has no ports", "leave ports out")
    if direction == "in" and not ports and protocol in ("any", "tcp", "udp"):
        raise BadValue("an inbound entry without ports would open the whole host", 'ports = ["22"]')
    return FailsafeSetting(direction, cidr, tuple(ports), protocol)


def _check_network(cidr: object) -> None:
    if not isinstance(cidr, str):
        raise BadValue(f"cidr {cidr!r} is not a text")
    try:
        ipaddress.ip_network(cidr)
    except ValueError as error:
        try:
            meant = str(ipaddress.ip_network(cidr, strict=False))
        except ValueError:
            raise BadValue(f"cidr {cidr!r} is no network: {error}") from error
        raise BadValue(f"cidr {cidr!r} has host bits set", f"write {meant}") from error


def check_footprints(value: Any) -> object:
    """Storage that is measured: FootprintSpec for each table, their names unique."""
    hint = '[[footprint]] with name = "home", path = "/home"'
    if not isinstance(value, list):
        raise BadValue("footprint must be a list of tables", hint)
    if len(value) > _FOOTPRINTS_MAX:
        raise BadValue(f"more than {_FOOTPRINTS_MAX} footprints")
    found = tuple(_footprint(entry) for entry in value)
    names = [each.name for each in found]
    for name in names:
        if names.count(name) > 1:
            raise BadValue(f"two footprints have the name {name!r}", "names are unique")
    return found


def _footprint(entry: Any) -> FootprintSpec:
    kinds = {each.name: type(each.default) for each in fields(FootprintSpec)}
    kinds |= {"name": str, "path": str}
    if not isinstance(entry, dict):
        raise BadValue(f"{entry!r} is no table", '{ name = "home", path = "/home" }')
    for key, value in entry.items():
        if key not in kinds:
            raise BadValue(f"unknown key {key!r}", likely(key, kinds))
        if key in ("user", "project") and type(value) is int:
            entry = {**entry, key: str(value)}
        elif type(value) is not kinds[key]:
            raise BadValue(f"{key}: {value!r} is not {_KIND_WORDS[kinds[key]]}")
    for key in ("name", "path"):
        if key not in entry:
            raise BadValue(f"a footprint needs a {key}", 'name = "home", path = "/home"')
    spec = FootprintSpec(**entry)
    if fault := fault_of(spec):
        raise BadValue(f"footprint {spec.name!r}: {fault}")
    return spec
