# SPDX-License-Identifier: Apache-2.0
"""What differs between a host and what the control plane wants of it, in words."""

from __future__ import annotations

import json
from typing import Any, Final

from licplane.service.values import HostStatus
from licplane.store.model import Host, HostPresence, HostReport
from lictoken.validity import rfc3339

SILENT_AFTER_MS: Final = 10 * 60_000
_SHOWN: Final = 200


def drift_of(
    host: Host, seen: HostPresence, row: HostReport | None, revision: int, now_ms: int
) -> tuple[str, ...]:
    """Empty when nothing differs."""
    if host.status in (HostStatus.EVICTED, HostStatus.BANNED):
        return ()
    found: list[str] = []
    if host.status is HostStatus.CLONED:
        found.append("two machines speak for this host: `licplane host split` mends it")
    if seen.last_nack:
        found.append(f"refused the newest catalog: {seen.last_nack[:_SHOWN]}")
    if seen.acked_revision > revision:
        found.append(
            f"holds revision {seen.acked_revision}, newer than the catalog's {revision}:"
            " the database was restored from an old copy"
        )
    if row is None:
        return (*found, "has not reported yet")
    if now_ms - row.at_unix_ms > SILENT_AFTER_MS:
        found.append(f"last reported at {rfc3339(row.at_unix_ms // 1000)}")
    return (*found, *_state(host, _json(row).get("state"), now_ms))


def _state(host: Host, state: Any, now_ms: int) -> list[str]:
    if not isinstance(state, dict):
        return []
    found = [f"degraded: {_text(one)}" for one in _list(state, "degraded")]
    for hook in _list(state, "hooks"):
        if isinstance(hook, dict) and not hook.get("attached"):
            detail = _text(hook.get("detail", ""))
            found.append(f"hook {_text(hook.get('hook'))} is not attached {detail}".rstrip())
    found += [
        f"map {_text(one.get('map'))} does not hold what the agent put there"
        for one in _list(state, "maps")
        if isinstance(one, dict) and one.get("wanted") != one.get("found")
    ]
    until_ms = _integer(state.get("break_glass_until_unix_ms"))
    if until_ms > now_ms:
        found.append(f"open by break-glass until {rfc3339(until_ms // 1000)}")
    labels = state.get("labels")
    if isinstance(labels, dict) and labels and labels != dict(host.labels):
        differing = sorted(
            name for name in {*labels, *host.labels} if labels.get(name) != host.labels.get(name)
        )
        found.append(f"other labels in force: {', '.join(map(_text, differing))}")
    refused = state.get("refused_licenses")
    if isinstance(refused, dict):
        found += [f"license {_text(k)} grants nothing: {_text(v)}" for k, v in refused.items()]
    return found


def _json(row: HostReport) -> dict[str, Any]:
    try:
        value = json.loads(row.report)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _list(value: dict[str, Any], name: str) -> list[Any]:
    found = value.get(name)
    return found if isinstance(found, list) else []


def _text(value: object) -> str:
    text = str(value)[:_SHOWN]
    return "".join(one if one.isprintable() else "?" for one in text)


def _integer(value: object) -> int:
    """proto3's JSON writes 64-bit numbers as texts."""
    try:
        return int(value) if isinstance(value, int | str) else 0
    except ValueError:
        return 0
