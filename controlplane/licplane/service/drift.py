# SPDX-License-Identifier: Apache-2.0
"""What differs between a host and what the control plane wants of it, in words."""

from __future__ import annotations

from typing import Final

from licplane.service.reports import KeptReport, kept
from licplane.service.values import HostStatus
from licplane.store.host_model import Host, HostPresence, HostReport
from lictoken.claims import TIME_MAX_S
from lictoken.validity import rfc3339

SILENT_AFTER_MS: Final = 10 * 60_000
REPLACED_SHOWN_MS: Final = 24 * 3600_000
"""A link that was replaced is told that long: by then somebody has seen it."""
_SHOWN: Final = 200
_INTENDED: Final = ("revoked", "expired", "not_yet_valid")
"""States of a license, as hosts name them, that are what the control plane wants."""


def drift_of(
    host: Host, seen: HostPresence, row: HostReport | None, revision: int, now_ms: int
) -> tuple[str, ...]:
    """Empty when nothing differs."""
    if host.status in (HostStatus.EVICTED, HostStatus.BANNED):
        return ()
    found: list[str] = []
    if host.status is HostStatus.LEAVING:
        found.append("is leaving: its last usage has not all come in yet")
    if host.status is HostStatus.CLONED:
        found.append(
            "two machines speak for this host: `licplane host split` mends it where both are yours"
        )
    if seen.last_nack:
        found.append(f"refused the newest catalog: {seen.last_nack[:_SHOWN]}")
    if seen.acked_revision > revision:
        found.append(
            f"holds revision {seen.acked_revision}, newer than the catalog's {revision}:"
            " an older copy of the database was put back; `licplane db advance` mends it"
        )
    if row is None:
        return (*found, "has not reported yet")
    if now_ms - row.at_unix_ms > SILENT_AFTER_MS:
        found.append(f"last reported at {rfc3339(row.at_unix_ms // 1000)}")
    return (*found, *_reported(host, kept(row.report), now_ms))


def _reported(host: Host, report: KeptReport, now_ms: int) -> list[str]:
    found = [f"degraded: {_text(one)}" for one in report.degraded]
    found += [f"not attached: hook {_text(one)}" for one in report.unattached]
    found += [
        f"map {_text(one)} does not hold what the agent put there" for one in report.differing
    ]
    found += [
        f"hook {_text(hook)} was taken off and put back at {rfc3339(at_ms // 1000)}"
        for hook, at_ms in sorted(report.replaced.items())
        if now_ms - at_ms < REPLACED_SHOWN_MS
    ]
    if report.break_glass_until_unix_ms > now_ms:
        until_s = min(report.break_glass_until_unix_ms // 1000, TIME_MAX_S)
        found.append(f"open by break-glass until {rfc3339(until_s)}")
    if report.labels and report.labels != dict(host.labels):
        differing = sorted(
            name
            for name in {*report.labels, *host.labels}
            if report.labels.get(name) != host.labels.get(name)
        )
        found.append(f"other labels in force: {', '.join(map(_text, differing))}")
    found += [
        f"license {_text(name)} grants nothing: {_text(why)}"
        for name, why in report.refused_licenses.items()
        if str(why).partition(":")[0] not in _INTENDED
    ]
    return found


def _text(value: object) -> str:
    text = str(value)[:_SHOWN]
    return "".join(one if one.isprintable() else "?" for one in text)
