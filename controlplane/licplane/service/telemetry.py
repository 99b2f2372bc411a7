# SPDX-License-Identifier: Apache-2.0
"""What hosts report, and who in the fleet uses what without a binding."""

from __future__ import annotations

import json
import re
from typing import Final

from licplane.errors import Exhausted
from licplane.service import paging
from licplane.service.access import Permission, require
from licplane.service.answers import Page, ShadowUsageView
from licplane.service.core import Core
from licplane.service.replica import Replica
from licplane.service.reports import keep, kept
from licplane.service.requests import PageRequest, Report, ShadowReport
from licplane.service.standings import Standings
from licplane.service.texts import tidy
from licplane.service.values import Actor, Kind
from licplane.store.host_model import FleetShadow, HostReport, ShadowRow
from licplane.store.reader import Reader
from lictoken.claims import I64_MAX

REPORT_BYTES_MAX: Final = 1024 * 1024
SHADOW_ROWS_MAX: Final = 1_000
_TEXT_MAX: Final = 512
_PLACEHOLDER: Final = "LICENSE"


class Telemetry:
    """Taking in reports, and reading the fleet's shadow usage."""

    def __init__(self, core: Core, replica: Replica) -> None:
        self._core = core
        self._replica = replica

    def record(self, host_id: str, report: Report) -> None:
        """See Plane.record_report."""
        now_ms = self._core.now_ms()
        with self._core.store.reading() as reader:
            last = reader.report(host_id)
        data = keep(report, kept(last.report) if last is not None else None, now_ms)
        if len(data) > REPORT_BYTES_MAX or len(report.shadow) > SHADOW_ROWS_MAX:
            raise Exhausted(
                f"The report has {len(data)} bytes and {len(report.shadow)} lines of shadow usage",
                f"At most {REPORT_BYTES_MAX} and {SHADOW_ROWS_MAX}: report the most frequent",
            )
        boot_id = tidy(report.boot_id, 64)
        rows = [_row(host_id, boot_id, one, now_ms) for one in report.shadow]
        with self._core.store.recording() as recorder:
            recorder.put_reports([HostReport(host_id, now_ms, data)])
            if rows:
                recorder.put_shadow(rows)

    def usage(self, actor: Actor, page: PageRequest) -> Page[ShadowUsageView]:
        """See Plane.shadow_usage."""
        require(actor, Permission.READ_HOSTS)
        key = paging.key_of(page, 4)
        size = paging.size_of(page)
        after = (key[0], key[1], key[2], key[3]) if key else None
        with self._core.store.reading() as reader:
            rows = reader.shadow(after=after, limit=size + 1)
            standings = None if self._core.has_keys else _unverified(reader)
        if standings is None:
            self._replica.refresh()
        views = tuple(self._view(one, standings) for one in rows[:size])
        last = rows[size - 1] if len(rows) > size else None
        more = (
            paging.token_of(last.resource, last.selector, last.executable, last.user)
            if last
            else ""
        )
        return Page(views, more)

    def _view(self, row: FleetShadow, standings: Standings | None) -> ShadowUsageView:
        return ShadowUsageView(
            resource=row.resource,
            selector=row.selector,
            executable=row.executable,
            user=row.user,
            hosts=row.hosts,
            count=row.count,
            first_unix_ms=row.first_unix_ms,
            last_unix_ms=row.last_unix_ms,
            suggestion=self._suggestion(row.resource, row.selector, standings),
        )

    def _suggestion(self, resource: str, selector: str, known: Standings | None) -> str:
        """The binding that would allow it, as TOML."""
        now_s = self._core.now_ms() // 1000
        lock, standings = self._replica.with_standings()
        with lock:
            able = [
                one for one in (known or standings).entitling(resource) if one.expires_at_s > now_s
            ]
        # The one that lasts longest, by name where two last alike.
        able.sort(key=lambda one: (-one.expires_at_s, one.jti))
        license = able[0].jti if able else _PLACEHOLDER
        lines = [
            "[[binding]]",
            f"name = {_toml(_binding_name(resource, selector))}",
            f"license = {_toml(license)}",
            f"selectors = [{_toml(selector)}]",
            f"resources = [{_toml(resource)}]",
        ]
        if not able:
            lines[2] += f"  # none entitles {json.dumps(resource)[1:-1]}: issue one first"
        return "\n".join(lines) + "\n"


def _unverified(reader: Reader) -> Standings:
    """For somebody who only looks, and has no keys to check signatures of the catalog with."""
    standings = Standings()
    for kind in (Kind.LICENSE, Kind.REVOCATION):
        for one in reader.objects(kind):
            standings.put(kind, one.name, one.scope, one.payload)
    return standings


def _row(host_id: str, boot_id: str, one: ShadowReport, now_ms: int) -> ShadowRow:
    return ShadowRow(
        host_id=host_id,
        boot_id=boot_id,
        resource=tidy(one.resource, 128),
        selector=tidy(one.selector, _TEXT_MAX),
        executable=tidy(one.executable, _TEXT_MAX),
        user=tidy(one.user, 128),
        count=_bounded(one.count),
        first_unix_ms=_bounded(one.first_unix_ms),
        # A host whose clock is ahead must not be remembered for ever.
        last_unix_ms=min(_bounded(one.last_unix_ms), now_ms),
        reason=tidy(one.reason, 128),
    )


def _binding_name(resource: str, selector: str) -> str:
    """A name that says who and what, of the characters that names may have."""
    who = re.sub(r"[^A-Za-z0-9._:/-]+", "-", selector).strip("-._:/") or "somebody"
    what = re.sub(r"[^A-Za-z0-9._:/-]+", "-", resource).strip("-._:/") or "something"
    return f"{what[:60]}-{who[-60:].lstrip('-._:/')}"


def _toml(text: str) -> str:
    """A basic string of TOML: JSON's escapes are among its own, but for DEL."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _bounded(value: int) -> int:
    return max(0, min(value, I64_MAX))
