# SPDX-License-Identifier: Apache-2.0
"""The link to the control plane in `licagent status`, and what of it is a reason for concern.

A control plane that is away is none by itself: enforcement goes on. That leases are about to end
is, and so is what only people can mend: a clone, an eviction, a policy that was refused.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

from licagent.control.interface import ControlPhase, HostStatus, NoticeCode
from licagent.daemon.decisions import boottime_to_unix, rfc3339

if TYPE_CHECKING:
    from licagent.daemon.agent import Agent

Report = dict[str, Any]

_LEASE_PARTS: Final = 3
"""Leases are renewed at half their life; with a third of it left, that has failed for a while."""
_REACH: Final = "see `licagent doctor`: this host must reach its control plane again"


def control(agent: Agent) -> Report:
    """Everything of the link that people ask for."""
    link = agent.link
    state = link.state
    is_off = link.is_off and state.phase is not ControlPhase.UNENROLLED
    lease_end_ns = agent.membership.leases.end_boottime_ns
    return {
        "state": "off" if is_off else state.phase.value,
        "server": state.server or None,
        "host_id": state.host_id or None,
        "host_status": _status(agent).name.lower(),
        "labels": dict(agent.membership.labels),
        "connected_since": _time(state.connected_since_unix_ms),
        "last_contact": _time(state.last_contact_unix_ms),
        "retry_at": _time(state.retry_at_unix_ms),
        "attempts": state.attempts,
        "revision": agent.control.managed.revision,
        "lag": state.lag_revisions,
        "objects": state.objects,
        "last_sync": _time(state.last_sync_unix_ms),
        "last_error": state.last_error or None,
        "last_refusal": state.last_refusal or None,
        "lease_end": rfc3339(boottime_to_unix(lease_end_ns)) if lease_end_ns else None,
        "leased_licenses": len(agent.membership.leases.leases),
        "certificate_end": _time(state.certificate_end_unix_ms),
        "renewal_error": state.renewal_error or None,
        "addresses": [f"{address} port {port}" for address, port in link.reach.addresses],
        "reports_sent": state.reports_sent,
        "notices": [
            {
                "at": rfc3339(each.at_unix_s),
                "code": each.code.name.lower().replace("_", "-"),
                "detail": each.detail,
            }
            for each in link.notices
        ],
    }


def reasons(agent: Agent) -> Iterator[Report]:
    """Why the link needs somebody; nothing where it does not."""
    state = agent.link.state
    for problem in agent.control.problems:
        yield _reason(
            "control-lost",
            problem,
            "it comes again with the next connection; until then nobody has these licenses",
        )
    status = _status(agent)
    if status is HostStatus.CLONED:
        yield _reason(
            "control-cloned",
            f"another machine speaks for this host too {_detail(state.notice_detail)}",
            "at the control plane: licplane host split HOST, which says what to run here; if the "
            "other one is a thief's, licplane host evict HOST, then join again with --new",
        )
    elif status is HostStatus.BANNED:
        yield _reason(
            "control-banned",
            f"this host is banned {_detail(state.notice_detail)}",
            "ask who runs the control plane",
        )
    elif status is HostStatus.EVICTED:
        yield _reason(
            "control-evicted",
            f"this host is evicted {_detail(state.notice_detail)}",
            "join again with a new token: licagent enroll JOIN",
        )
    if state.notice is NoticeCode.VERSION:
        yield _reason(
            "control-version",
            f"the control plane does not serve this version of licagent: {state.notice_detail}",
            "what it gave stays in force while its leases last; see docs/how-to/upgrade.md",
        )
    if state.last_refusal:
        yield _reason(
            "control-refused",
            f"revision {state.newest_revision} of the control plane is refused: "
            f"{state.last_refusal}",
            f"revision {state.revision} stays in force; mend it at the control plane",
        )
    if status is HostStatus.LEAVING:
        yield _reason(
            "control-leaving",
            f"this host leaves its control plane {_detail(agent.link.leaving.problem)}",
            "it goes on by itself, and is out when its last usage is settled",
        )
    elif status is not HostStatus.DRAINING:
        yield from _leases(agent)


def _leases(agent: Agent) -> Iterator[Report]:
    leases = agent.membership.leases
    needing = [
        jti
        for jti, held in agent.licensing.held.items()
        if held.managed and held.license.failure_mode != "open"
    ]
    if not needing:
        return
    state = agent.link.state
    if not leases.leases:
        # While it is connected it was answered: what was not leased is each license's own state.
        if state.phase is not ControlPhase.CONNECTED and state.last_error:
            yield _reason(
                "lease-lost",
                f"{len(needing)} licenses of the control plane have had no lease since this host "
                f"booted: {state.last_error}",
                _REACH,
            )
        return
    now_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    left_ns = leases.end_boottime_ns - now_ns
    life_ns = leases.end_boottime_ns - leases.requested_boottime_ns
    if left_ns <= 0:
        yield _reason(
            "lease-lost",
            f"the leases of {len(leases.leases)} licenses ended at "
            f"{rfc3339(boottime_to_unix(leases.end_boottime_ns))}",
            _REACH,
        )
    elif left_ns * _LEASE_PARTS < life_ns:
        yield _reason(
            "lease-ending",
            f"the leases of {len(leases.leases)} licenses end in {left_ns // 10**9} s, and the "
            f"control plane did not renew them: {state.last_error or 'no answer'}",
            _REACH,
        )


def checks(agent: Agent) -> Iterator[tuple[str, bool, str, str]]:
    """For `licagent doctor`: name, whether it is good, and the words for both cases."""
    link, state = agent.link, agent.link.state
    if state.phase is ControlPhase.UNENROLLED or link.is_off:
        return
    yield (
        "control",
        state.phase is ControlPhase.CONNECTED,
        f"connected to the control plane at {state.server}",
        f"no link to the control plane at {state.server}: "
        + (state.last_error or state.phase.value)
        + "; what it gave stays in force while its leases last",
    )
    yield (
        "control-address",
        bool(link.reach.addresses),
        "the control plane's addresses pass whatever the policy says: "
        + ", ".join(f"{address} port {port}" for address, port in link.reach.addresses),
        f"{state.server} has no address: a policy may close the way to it; check name resolution",
    )
    yield (
        "control-certificate",
        not state.renewal_error,
        f"the host's certificate holds until {_time(state.certificate_end_unix_ms)}",
        f"the host's certificate, until {_time(state.certificate_end_unix_ms)}, is not renewed: "
        + state.renewal_error,
    )


_BY_NOTICE: Final = {
    NoticeCode.EVICTED: HostStatus.EVICTED,
    NoticeCode.BANNED: HostStatus.BANNED,
    NoticeCode.CLONED: HostStatus.CLONED,
}
"""Whoever is sent away is told no assignment any more."""


def _status(agent: Agent) -> HostStatus:
    told = _BY_NOTICE.get(agent.link.state.notice)
    if told is not None:
        return told
    found = agent.membership.assignment
    return HostStatus.UNSPECIFIED if found is None else found.status


def _detail(text: str) -> str:
    return f"({text})" if text else ""


def _time(unix_ms: int) -> str | None:
    return rfc3339(unix_ms / 1000) if unix_ms else None


def _reason(code: str, message: str, hint: str) -> Report:
    return {"code": code, "message": message.strip(), "hint": hint}
