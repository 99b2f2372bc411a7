# SPDX-License-Identifier: Apache-2.0
"""A host's report as it is kept: what is judged, and the whole as the host sent it."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from licplane.service.requests import Report


@dataclass(frozen=True, slots=True)
class Use:
    """Open sockets of a workload under a license; "" stands for none."""

    license: str
    resource: str
    selector: str
    sockets: int


@dataclass(frozen=True, slots=True)
class KeptReport:
    """What a kept report tells."""

    json: str = ""  # licapi.control.v1.HostReport
    uses: tuple[Use, ...] = ()
    degraded: tuple[str, ...] = ()
    unattached: tuple[str, ...] = ()  # hooks, each with its detail
    differing: tuple[str, ...] = ()  # maps that do not hold what was put there
    break_glass_until_unix_ms: int = 0
    labels: dict[str, str] = field(default_factory=dict)
    refused_licenses: dict[str, str] = field(default_factory=dict)
    boot_id: str = ""
    links: dict[str, int] = field(default_factory=dict)  # hook -> the kernel's id of its link
    replaced: dict[str, int] = field(default_factory=dict)
    """Hook -> when, in unix ms, it was first found on another link than before, in this boot.
    An upgrade of the agent keeps its links: somebody took them off, and they were made anew."""


def keep(report: Report, before: KeptReport | None = None, now_ms: int = 0) -> bytes:
    """The bytes to store, after the report that was kept `before`."""
    links = {one.hook: one.link_id for one in report.hooks if one.link_id}
    replaced: dict[str, int] = {}
    if before is not None and before.boot_id == report.boot_id:
        replaced = {hook: at for hook, at in before.replaced.items() if hook in links}
        for hook, link_id in links.items():
            if before.links.get(hook, link_id) != link_id:
                replaced[hook] = now_ms
    value: dict[str, Any] = {
        "live": [[one.license, one.resource, one.selector, one.sockets] for one in report.live],
        "degraded": list(report.degraded),
        "unattached": [
            f"{one.hook} {one.detail}".strip() for one in report.hooks if not one.attached
        ],
        "differing": [one.map for one in report.maps if one.wanted != one.found],
        "break_glass_until_unix_ms": report.break_glass_until_unix_ms,
        "labels": dict(report.labels),
        "refused_licenses": dict(report.refused_licenses),
        "json": report.json,
        "boot_id": report.boot_id,
        "links": links,
        "replaced": replaced,
    }
    return json.dumps(value, separators=(",", ":")).encode()


def kept(data: bytes) -> KeptReport:
    """What `keep` wrote; an empty report where it is something else."""
    try:
        value = json.loads(data)
        return KeptReport(
            json=value["json"],
            uses=tuple(Use(*one) for one in value["live"]),
            degraded=tuple(value["degraded"]),
            unattached=tuple(value["unattached"]),
            differing=tuple(value["differing"]),
            break_glass_until_unix_ms=value["break_glass_until_unix_ms"],
            labels=value["labels"],
            refused_licenses=value["refused_licenses"],
            boot_id=value["boot_id"],
            links=value["links"],
            replaced=value["replaced"],
        )
    except (ValueError, KeyError, TypeError):
        return KeptReport()


def names_license(data: bytes, license: str) -> bool:
    """Whether a kept report may tell of uses of a license; a look at the bytes spares parsing."""
    return f"[{json.dumps(license)},".encode() in data
