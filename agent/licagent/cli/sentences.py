# SPDX-License-Identifier: Apache-2.0
"""An event as one clear sentence: when, verdict, who, what, why, how often."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from licagent.cli.words import safe

VERDICT_STYLE: Final = {"allow": "good", "deny": "bad", "shadow": "warn", "cut": "bad"}

_WHY: Final = {
    "none": "",
    "licensed": "licensed",
    "no_resource": "the destination is no resource",
    "failsafe": "it is on the failsafe list",
    "break_glass": "the host is open by break-glass",
    "no_binding": "no binding gives it a license",
    "expired": "its license has expired",
    "not_yet_valid": "its license is not valid yet",
    "lease_lost": "the lease of its license was lost",
    "revoked": "its license was revoked",
    "condition": "a condition of its license does not hold",
    "no_seat": "every seat of its license is taken",
    "quota": "the quota of its license is used up",
    "malformed": "the packet's headers cannot be read",
}
"""Reasons (licagent.domain.reason.Reason, in lower case) as the end of a sentence."""

_DID: Final = {
    "allow": "may use",
    "deny": "was refused",
    "shadow": "would be refused",
    "cut": "was cut off from",
}


def why(reason: object) -> str:
    """The reason in words; one this version does not know, as it is."""
    name = safe(reason).lower()
    return _WHY.get(name, name.replace("_", " "))


def who(process: Mapping[str, Any]) -> str:
    """`curl[42] (user alice, unit etl.service)`."""
    name = process.get("name") or process.get("executable") or "a process that has ended"
    text = safe(name)
    if process.get("pid"):
        text += f"[{safe(process['pid'])}]"
    user = process.get("user") or (
        f"uid {process['uid']}" if process.get("uid") is not None else None
    )
    about = [f"user {safe(user)}"] if process.get("user") else [safe(user)] if user else []
    if process.get("unit"):
        about.append(f"unit {safe(process['unit'])}")
    elif process.get("container"):
        about.append(f"container {safe(process['container'])[:12]}")
    return f"{text} ({', '.join(about)})" if about else text


def what(event: Mapping[str, Any]) -> str:
    """`orders-db at tcp 10.0.5.7:5432`."""
    network = event.get("network") or {}
    place = " ".join(
        safe(part) for part in (network.get("protocol"), network.get("destination")) if part
    )
    resource = event.get("resource")
    if resource and place:
        return f"{safe(resource)} at {place}"
    return safe(resource) if resource else place or "a resource"


def sentence(event: Mapping[str, Any]) -> str:
    """One line for an event. Events that are no decision bring their own message."""
    at, verdict = safe(event.get("at")), safe(event.get("verdict")).lower()
    if event.get("kind") == "missed":
        missed = safe(event.get("count"))
        return f"{missed} events are missing here: this reader was too slow; they are in the log"
    if verdict not in _DID:
        return f"{at} {'NOTE':<6} {safe(event.get('message'))}"
    text = f"{who(event.get('process') or {})} {_DID[verdict]} {what(event)}"
    reason, license_ = why(event.get("reason")), event.get("license")
    if license_ and safe(event.get("reason")).lower() == "licensed":
        text += f": license {safe(license_)}"
    else:
        text += f": {reason}" if reason else ""
        text += f" (license {safe(license_)})" if license_ else ""
    if event.get("binding"):
        text += f", binding {safe(event['binding'])}"
    count = event.get("count", 1)
    if isinstance(count, int) and count > 1:
        text += f", {count} times"
    return f"{at} {verdict.upper():<6} {text}"
