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


def keep(report: Report) -> bytes:
    """The bytes to store."""
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
        )
    except (ValueError, KeyError, TypeError):
        return KeptReport()


def names_license(data: bytes, license: str) -> bool:
    """Whether a kept report may tell of uses of a license; a look at the bytes spares parsing."""
    return f"[{json.dumps(license)},".encode() in data
