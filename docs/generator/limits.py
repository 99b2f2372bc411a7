# SPDX-License-Identifier: Apache-2.0
"""docs/reference/limits.md: how much fits, and the memory of the kernel."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from generator.pages import page, table
from generator.structs import MapDefinition, map_definitions
from licagent.host.lanes import LANE_MAX
from licagent.host.measurable import FILE_MAX_BYTES

_OLD_STAYS: Final = "the policy is not put in force, the old one stays"


def limits() -> str:
    """docs/reference/limits.md."""
    found = map_definitions()
    by_name = {each.name: each for each in found}
    return page(
        "Limits and memory",
        "Sizes of keys, values and maps are read from `bpf/` when this "
        "page is made. What a host really uses, and the formula against the kernel's own count, "
        "is printed by `./dev bench --only memory`.",
        "## What fits",
        table(
            ("what", "at most", "beyond it"),
            (
                ("rules in force", _half(by_name, "rules"), _OLD_STAYS),
                ("networks in force, IPv4", _half(by_name, "networks4"), _OLD_STAYS),
                ("networks in force, IPv6", _half(by_name, "networks6"), _OLD_STAYS),
                ("port prefixes in force", _half(by_name, "ports"), _OLD_STAYS),
                ("licenses on a host", _whole(by_name, "licenses"), "the license is refused"),
                ("paths in selectors", _whole(by_name, "paths"), _OLD_STAYS),
                (
                    "measured executables",
                    _whole(by_name, "contents"),
                    "who owns most of them loses the oldest, to be measured again when they run",
                ),
                (
                    "bytes of an executable that is measured",
                    f"{FILE_MAX_BYTES:,}",
                    "it matches no `unix:sha256`",
                ),
                (
                    "executables of one owner that wait to be measured",
                    f"{LANE_MAX}",
                    "further ones are found seconds later, by what runs and what is installed",
                ),
                (
                    "processes",
                    _whole(by_name, "processes"),
                    "new ones match no `unix:path` and no `unix:sha256`; `licagent doctor` says so",
                ),
                (
                    "cgroups that selectors name, and those below",
                    _whole(by_name, "cgroups"),
                    "new ones match no unit, slice, path or container; `licagent doctor` says so",
                ),
                (
                    "(license, resource, verdict, reason) counted apart",
                    _whole(by_name, "counters"),
                    "further ones are counted together; `licagent doctor` says so",
                ),
                (
                    "bytes of events waiting for the daemon",
                    _whole(by_name, "events"),
                    "events are dropped and counted; counters stay exact",
                ),
            ),
        ),
        "Rules, networks and ports have room for two generations, so that a policy is switched in "
        "one step. A license file has 16 KiB at most, a settings file 1 MiB. Licenses that share "
        "one rule: 4. Scopes of one cgroup, its own and its ancestors': 8.",
        "## Kernel memory",
        table(
            ("one more", "adds at most", "of which key and value"),
            (
                ("rule", _bound(by_name["rules"]), _payload(by_name["rules"])),
                ("IPv4 network", _bound(by_name["networks4"]), _payload(by_name["networks4"])),
                ("IPv6 network", _bound(by_name["networks6"]), _payload(by_name["networks6"])),
                ("port prefix", _bound(by_name["ports"]), _payload(by_name["ports"])),
                ("running process", _bound(by_name["processes"]), _payload(by_name["processes"])),
                (
                    "open socket with a tag",
                    _bound(by_name["tags"]),
                    f"{by_name['tags'].value_bytes}",
                ),
            ),
        ),
        "In bytes, by the formula below. Licenses cost nothing more each: their table is made "
        "whole.",
        _formula(),
        "## Maps",
        table(
            ("map", "type", "key", "value", "entries"),
            (
                (
                    f"`{each.name}`",
                    each.kind,
                    each.key_bytes or "-",
                    each.value_bytes or "-",
                    f"{each.max_entries:,}"
                    if each.max_entries
                    else f"one a {each.kind.split()[0]}",
                )
                for each in found
            ),
        ),
    )


def _half(maps: Mapping[str, MapDefinition], name: str) -> str:
    return f"{maps[name].max_entries // 2:,}"


def _whole(maps: Mapping[str, MapDefinition], name: str) -> str:
    return f"{maps[name].max_entries:,}"


def _payload(each: MapDefinition) -> str:
    return f"{each.key_bytes} + {each.value_bytes}"


def _bound(each: MapDefinition) -> str:
    key, value = _round8(each.key_bytes), _round8(each.value_bytes)
    match each.kind:
        case "hash":
            return f"{48 + key + value:,}"
        case "LPM trie":
            return f"{2 * (40 + key + value):,}"
        case "socket storage":
            return f"{192 + value:,}"
    raise LookupError(f"no formula for a {each.kind}")


def _round8(count: int) -> int:
    return (count + 7) // 8 * 8


def _formula() -> str:
    from tests.bench.kernel_memory import FORMULA  # one formula: the bench holds it to be true

    return FORMULA
