# SPDX-License-Identifier: Apache-2.0
"""The fleet as administrators see it, and what they decide about a host."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from licplane.errors import Conflict, ExitCode, PlaneError
from licplane.service import paging
from licplane.service.access import Permission, require
from licplane.service.answers import ChangeResult, Difference, HostView, Impact, Page
from licplane.service.catalog import diff
from licplane.service.core import Core
from licplane.service.drift import drift_of
from licplane.service.impact import host_impact
from licplane.service.reports import Use, kept
from licplane.service.requests import Change, PageRequest
from licplane.service.results import change_from, change_to
from licplane.service.texts import check_labels, host_id_of, shown
from licplane.service.values import Actor, HostStatus, Kind, View
from licplane.service.work import Work, canonical, perform
from licplane.store.host_model import Host, HostPresence
from licplane.store.reader import Reader

_OUT = (HostStatus.EVICTED, HostStatus.BANNED)


class Hosts:
    """Reading and deciding about hosts."""

    def __init__(self, core: Core) -> None:
        self._core = core

    def list(self, actor: Actor, labels: Mapping[str, str], page: PageRequest) -> Page[HostView]:
        """See Plane.list_hosts."""
        require(actor, Permission.READ_HOSTS)
        wanted = check_labels(labels)
        key = paging.key_of(page, 1)
        size = paging.size_of(page)
        with self._core.store.reading() as reader:
            hosts = reader.hosts(labels=wanted, after=key[0] if key else "", limit=size + 1)
            shown_now = hosts[:size]
            views = self._views(reader, shown_now)
            revision = reader.head().revision
        more = paging.token_of(shown_now[-1].host_id) if len(hosts) > size else ""
        return Page(views, more, revision)

    def get(self, actor: Actor, name: str) -> HostView:
        """See Plane.get_host."""
        require(actor, Permission.READ_HOSTS)
        with self._core.store.reading() as reader:
            return self._views(reader, [find_host(reader, name)])[0]

    def update(
        self,
        actor: Actor,
        change: Change,
        name: str,
        *,
        labels: Mapping[str, str],
        status: HostStatus | None,
    ) -> ChangeResult:
        """See Plane.update_host."""
        require(actor, Permission.CHANGE_HOSTS)
        wanted = check_labels(labels, allow_empty=True)
        request: dict[str, object] = {
            "method": "update_host",
            "host": name,
            "labels": wanted,
            "status": status.value if status is not None else 0,
            "dry_run": change.dry_run,
        }

        def body(work: Work) -> ChangeResult:
            return _update(work, find_host(work.transaction, name), wanted, status)

        return perform(
            self._core, actor, change, request, body, encode=change_to, decode=change_from
        )

    def _views(self, reader: Reader, hosts: Sequence[Host]) -> tuple[HostView, ...]:
        now_ms = self._core.now_ms()
        revision = reader.head().revision
        presence = reader.presence([host.host_id for host in hosts])
        views = []
        for host in hosts:
            seen = presence.get(host.host_id) or HostPresence(host.host_id, 0)
            row = reader.report(host.host_id)
            ends = [
                one.not_after_unix_ms
                for one in reader.certificates_of(host.host_id)
                if one.revoked_at_unix_ms is None
            ]
            views.append(
                HostView(
                    host_id=host.host_id,
                    hostname=host.hostname,
                    status=host.status,
                    labels=dict(host.labels),
                    enrolled_at_unix_ms=host.enrolled_at_unix_ms,
                    last_seen_unix_ms=seen.last_seen_unix_ms,
                    connected=seen.connected_until_unix_ms > now_ms,
                    acked_revision=seen.acked_revision,
                    revision=revision,
                    last_nack=seen.last_nack,
                    report_json=kept(row.report).json if row else "",
                    certificate_not_after_unix_ms=max(ends, default=0),
                    etag=etag_of(host),
                    drift=drift_of(host, seen, row, revision, now_ms),
                )
            )
        return tuple(views)


def find_host(reader: Reader, name: str) -> Host:
    """By host_id, or by a hostname that only one host has. Raises PlaneError."""
    host_id = host_id_of(name)
    found = reader.host(host_id) if host_id is not None else None
    if found is not None:
        return found
    if not name or len(name) > 253 or not name.isprintable():
        raise PlaneError(
            ExitCode.USAGE, f"{shown(name)} is no host", "Give a host id or a host name"
        )
    called = reader.hosts_called(name)
    if len(called) == 1:
        return called[0]
    message = f"{len(called)} hosts are called {name}" if called else f"There is no host {name}"
    raise PlaneError(ExitCode.NOT_FOUND, message, "`licplane host list` shows all, with their ids")


def etag_of(host: Host) -> str:
    """Changes with every change of labels or status."""
    return f"a{host.assignment_sequence}"


def _update(
    work: Work, host: Host, wanted: dict[str, str], status: HostStatus | None
) -> ChangeResult:
    if work.change.etag and work.change.etag != etag_of(host):
        raise Conflict(
            f"The host {host.host_id} is not as it was read",
            "Read it again, and apply the change to what it is now",
        )
    labels = {**host.labels, **wanted}
    labels = {name: value for name, value in sorted(labels.items()) if value}
    check_labels(labels)
    new = dataclasses.replace(host, labels=labels, status=status or host.status)
    if new == dataclasses.replace(host, labels=dict(host.labels)) and labels == dict(host.labels):
        difference = Difference("none", "host", host.host_id)
        return ChangeResult(False, work.change.dry_run, 0, (difference,), etag=etag_of(host))
    new = dataclasses.replace(new, assignment_sequence=host.assignment_sequence + 1)
    new = work.transaction.put_host(new)
    revoked = 0
    if new.status in _OUT and host.status not in _OUT:
        revoked = work.transaction.revoke_certificates(host.host_id, work.now_ms)
    before, after = _document(host), _document(new)
    detail: dict[str, object] = {"hostname": host.hostname, "before": before, "after": after}
    if revoked:
        detail["certificates_revoked"] = revoked
    work.audit(_action(host, new), host.host_id, detail)
    lines = diff(canonical(before), canonical(after))
    return ChangeResult(
        changed=True,
        dry_run=work.change.dry_run,
        differences=(Difference("update", "host", host.host_id, lines),),
        impact=_impact(work, host, new),
        etag=etag_of(new),
    )


def _action(old: Host, new: Host) -> str:
    if new.status is old.status:
        return "host.label"
    return f"host.{new.status.word}"


def _impact(work: Work, old: Host, new: Host) -> tuple[Impact, ...]:
    """What the host loses at once, or with its leases."""
    if new.status is not HostStatus.ACTIVE and new.status is not old.status:
        return host_impact(work.transaction, old, lambda _: True, work.now_ms)
    if new.view == old.view:
        return ()
    seen: dict[str, bool] = {}

    def lost(use: Use) -> bool:
        if use.license not in seen:
            found = work.transaction.object(Kind.LICENSE, use.license)
            seen[use.license] = found is not None and not found.scope.visible_in(
                View.of(new.labels)
            )
        return seen[use.license]

    return host_impact(work.transaction, old, lost, work.now_ms)


def _document(host: Host) -> dict[str, Any]:
    return {"labels": dict(host.labels), "status": host.status.word}
