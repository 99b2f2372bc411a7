# SPDX-License-Identifier: Apache-2.0
"""A host and its last report, as people and programs read them."""

from __future__ import annotations

import json

from licplane.cli.output import moment, moment_or_none
from licplane.service.answers import HostView


def lag(one: HostView) -> str:
    """Revisions that the host has not confirmed."""
    return str(max(0, one.revision - one.acked_revision))


def host_document(one: HostView) -> dict[str, object]:
    """A host for JSON."""
    return {
        "host_id": one.host_id,
        "hostname": one.hostname,
        "status": one.status.word,
        "labels": dict(sorted(one.labels.items())),
        "enrolled_at": moment_or_none(one.enrolled_at_unix_ms),
        "last_seen_at": moment_or_none(one.last_seen_unix_ms),
        "connected": one.connected,
        "acked_revision": one.acked_revision,
        "revision": one.revision,
        "lag": max(0, one.revision - one.acked_revision),
        "last_nack": one.last_nack or None,
        "certificate_not_after": moment_or_none(one.certificate_not_after_unix_ms),
        "etag": one.etag,
        "drift": list(one.drift),
    }


def drift_text(one: HostView) -> str:
    """What differs first, and how much else does."""
    if not one.drift:
        return "-"
    more = f" (+{len(one.drift) - 1})" if len(one.drift) > 1 else ""
    return one.drift[0] + more


def report_rows(text: str) -> list[tuple[str, object]]:
    """What people ask of the last report; the whole of it is in --json."""
    if not text:
        return [("report", "none yet")]
    report = json.loads(text)
    state = report.get("state") or {}
    rows: list[tuple[str, object]] = []
    for name, key in (("mode", "mode"), ("agent", "agent_version"), ("kernel", "kernel_release")):
        if state.get(key):
            rows.append((name, state[key]))
    hooks = state.get("hooks") or []
    if hooks:
        attached = sum(1 for one in hooks if one.get("attached"))
        rows.append(("hooks", f"{attached} of {len(hooks)} attached"))
    rows += [("degraded", one) for one in state.get("degraded") or ()]
    open_until_ms = int(state.get("break_glass_until_unix_ms") or 0)
    if open_until_ms:
        rows.append(("break-glass", f"open until {moment(open_until_ms)}"))
    facts = [f"{one.get('fact')}={one.get('value') or '?'}" for one in state.get("posture") or ()]
    if facts:
        rows.append(("posture", ", ".join(facts)))
    for name, why in sorted((state.get("refused_licenses") or {}).items()):
        rows.append(("grants nothing", f"{name}: {why}"))
    for one in report.get("live") or ():
        rows.append(
            (
                "live",
                (
                    f"{one.get('sockets', 0)} sockets to {one.get('resource', '-')} under"
                    f" {one.get('license', '-')} by {one.get('selector', '-')}"
                ),
            )
        )
    return rows
