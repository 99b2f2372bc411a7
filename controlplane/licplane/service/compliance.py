# SPDX-License-Identifier: Apache-2.0
"""The compliance report: what ran under which license, what under none, what differed when."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any, Final

from licplane.service.access import Permission, require
from licplane.service.billing.pricing import MEASURE, UNITS, decimal_text
from licplane.service.core import Core
from licplane.service.standings import Standings
from licplane.service.texts import refuse
from licplane.service.usage.query import kind_word, meters_in
from licplane.service.values import Actor, Kind
from licplane.store.host_model import Host
from licplane.store.money_schema import METERS
from licplane.store.reader import Reader
from licplane.store.usage_sums import FOREVER_MS, UsageSum, Window
from lictoken.validity import rfc3339

_LINES_MAX: Final = 10_000
_WHO: Final = ("license", "resource", "unit", "user", "executable", "host", "kind")


class Compliance:
    """Making the report."""

    def __init__(self, core: Core) -> None:
        self._core = core

    def report(self, actor: Actor, since_ms: int, until_ms: int, org: str = "") -> dict[str, Any]:
        """The report over a window, of all organizations or of one."""
        require(actor, Permission.READ_USAGE)
        now_ms = self._core.now_ms()
        window = Window(since_ms, until_ms or FOREVER_MS)
        if not 0 <= window.since_ms < window.until_ms:
            raise refuse("The window ends before it begins", "Give --since before --until")
        with self._core.store.reading() as reader:
            return _report(reader, window, org, now_ms)


def _report(reader: Reader, window: Window, org: str, now_ms: int) -> dict[str, Any]:
    where: Mapping[str, Sequence[str]] = {"organization": [org]} if org else {}
    lines = reader.usage_sums(window, _WHO, where=where)
    hosts = {
        host.host_id: host
        for host in reader.hosts()
        if not org or host.labels.get("org", "") == org
    }
    named = {host_id: host.hostname for host_id, host in hosts.items()}
    licensed = [one for one in lines if one.key[0] and one.key[6] in (1, 2, 3)]
    shadow = [one for one in lines if not one.key[0] and one.key[1] and one.key[6] in (1, 2, 3)]
    free = [one for one in lines if not one.key[0] and not one.key[1] and one.key[6] in (1, 2, 3)]
    unattributed = [one for one in lines if one.key[6] == 4]
    until_ms = min(window.until_ms, now_ms)
    drift = [
        {
            "host_id": one.host_id,
            "hostname": named.get(one.host_id, ""),
            "what": one.what,
            "since": rfc3339(one.first_unix_ms // 1000),
            "until": None if one.ended_unix_ms is None else rfc3339(one.ended_unix_ms // 1000),
        }
        for one in reader.drift_rows(window.since_ms, window.until_ms)
        if one.host_id in hosts or not org
    ]
    shadow_uses = [
        {
            "resource": one.resource,
            "selector": one.selector,
            "executable": one.executable,
            "user": one.user,
            "hosts": one.hosts,
            "uses": one.count,
            "since": rfc3339(one.first_unix_ms // 1000),
            "last": rfc3339(one.last_unix_ms // 1000),
        }
        for one in (reader.shadow(limit=_LINES_MAX) if not org else ())
        if one.last_unix_ms >= window.since_ms and one.first_unix_ms < window.until_ms
    ]
    gaps = [
        {
            "host_id": one.host_id,
            "hostname": named.get(one.host_id, ""),
            "epoch": one.epoch,
            "first_sequence": one.first_sequence,
            "last_sequence": one.last_sequence,
            "reason": one.reason,
        }
        for one in reader.gaps()
        if one.host_id in hosts or not org
    ]
    alarms = [
        {
            "host_id": one.host_id,
            "hostname": named.get(one.host_id, ""),
            "code": one.code,
            "count": one.count,
            "detail": one.detail,
            "since": rfc3339(one.first_ms // 1000),
            "last": rfc3339(one.last_ms // 1000),
        }
        for one in reader.usage_alarms()
        if one.host_id in hosts or not org
    ]
    findings = len(shadow) + len(shadow_uses) + len(drift) + len(gaps) + len(alarms)
    return {
        "title": "Compliance report",
        "organization": org,
        "since": rfc3339(window.since_ms // 1000),
        "until": rfc3339(until_ms // 1000),
        "generated_at": rfc3339(now_ms // 1000),
        "summary": {
            "hosts": len(hosts),
            "licenses": len({one.key[0] for one in licensed}),
            "licensed": _amounts(_total(licensed)),
            "without_license": _amounts(_total(shadow)),
            "of_no_resource": _amounts(_total(free)),
            "unattributed": _amounts(_total(unattributed)),
            "findings": findings,
        },
        "licensed": _licenses(reader, licensed, now_ms),
        "without_license": [_who(one, named) for one in _largest(shadow)],
        "shadow_uses": shadow_uses,
        "drift": drift,
        "gaps": gaps,
        "alarms": alarms,
        "notes": _notes(lines, hosts),
    }


def _licenses(reader: Reader, lines: Sequence[UsageSum], now_ms: int) -> list[dict[str, Any]]:
    standings = Standings()
    for kind in (Kind.LICENSE, Kind.REVOCATION):
        for one in reader.objects(kind):
            standings.put(kind, one.name, one.scope, one.payload)
    found: dict[str, list[UsageSum]] = {}
    for line in lines:
        found.setdefault(str(line.key[0]), []).append(line)
    documents = []
    for name, uses in sorted(found.items()):
        documents.append(
            {
                "license": name,
                "state": _state(standings, name, now_ms),
                "resources": sorted({str(one.key[1]) for one in uses}),
                "units": sorted({str(one.key[2]) for one in uses}),
                "users": sorted({str(one.key[3]) for one in uses}),
                "hosts": len({one.key[5] for one in uses}),
                "used": _amounts(_total(uses)),
                "first": rfc3339(min(one.first_ms for one in uses) // 1000),
                "last": rfc3339(max(one.last_ms for one in uses) // 1000),
            }
        )
    return documents


def _state(standings: Standings, name: str, now_ms: int) -> str:
    license = standings.get(name)
    if license is None:
        return "unknown"
    standing = standings.standing(name)
    if standing is not None and standing.value != "active":
        return standing.value
    return "expired" if license.expires_at_s * 1000 <= now_ms else "active"


def _who(one: UsageSum, hostnames: Mapping[str, str]) -> dict[str, Any]:
    _, resource, unit, user, executable, host, kind = one.key
    return {
        "resource": resource,
        "unit": unit,
        "user": user,
        "executable": executable,
        "host_id": host,
        "hostname": hostnames.get(str(host), ""),
        "kind": kind_word(int(kind)),
        "used": _amounts(one.quantities),
        "since": rfc3339(one.first_ms // 1000),
        "last": rfc3339(one.last_ms // 1000),
    }


def _largest(lines: Sequence[UsageSum]) -> list[UsageSum]:
    return sorted(lines, key=lambda one: (-sum(one.quantities.values()), one.key))[:_LINES_MAX]


def _total(lines: Sequence[UsageSum]) -> dict[str, int]:
    found: dict[str, int] = {}
    for one in lines:
        for meter, amount in one.quantities.items():
            found[meter] = found.get(meter, 0) + amount
    return found


def _amounts(quantities: Mapping[str, int]) -> list[dict[str, Any]]:
    """Each meter as a number and as people read it."""
    found = []
    for meter in METERS:
        if amount := quantities.get(meter, 0):
            unit = MEASURE.get(meter, "MB")
            text = decimal_text(Fraction(amount, UNITS[unit]), 3)
            found.append({"meter": meter, "quantity": amount, "text": f"{text} {unit}"})
    return found


def _notes(lines: Sequence[UsageSum], hosts: Mapping[str, Host]) -> list[str]:
    estimated = 0
    unsupported = 0
    for one in lines:
        estimated |= one.estimated
        unsupported |= one.unsupported
    notes = []
    if estimated:
        notes.append(f"Estimated on some hosts: {', '.join(meters_in(estimated))}")
    if unsupported:
        notes.append(f"Not measured on some hosts: {', '.join(meters_in(unsupported))}")
    unseen = sorted(set(hosts) - {str(one.key[5]) for one in lines})
    if unseen:
        names = ", ".join(hosts[one].hostname or one for one in unseen[:20])
        more = f" and {len(unseen) - 20} more" if len(unseen) > 20 else ""
        notes.append(f"No usage came from {len(unseen)} hosts: {names}{more}")
    return notes
