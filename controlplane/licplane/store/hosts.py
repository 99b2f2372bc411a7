# SPDX-License-Identifier: Apache-2.0
"""The hosts' rows: what was decided about them, and what they sent."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from sqlalchemy import Row, delete, select, update

from licplane.store.catalog_model import Head
from licplane.store.host_model import (
    NO_LABELS,
    Host,
    HostCounters,
    HostPresence,
    HostReport,
    HostStatus,
)
from licplane.store.schema import (
    host_counters,
    host_labels,
    host_presence,
    host_reports,
    hosts,
)
from licplane.store.session import (
    Session,
    Values,
    blob,
    canonical,
    checked,
    chunks,
    labels_from,
    paged,
)


class HostReads(Session):
    """Reading hosts."""

    def host(self, host_id: str) -> Host | None:
        """A host by id."""
        row = self._one(select(hosts).where(hosts.c.host_id == host_id))
        return None if row is None else _host(row)

    def hosts(
        self, *, labels: Mapping[str, str] = NO_LABELS, after: str = "", limit: int = 0
    ) -> tuple[Host, ...]:
        """Hosts by id; those that carry all `labels`."""
        statement = select(hosts)
        for name, value in labels.items():
            having = select(host_labels.c.host_id).where(
                host_labels.c.name == name, host_labels.c.value == value
            )
            statement = statement.where(hosts.c.host_id.in_(having))
        return tuple(map(_host, self._all(paged(statement, hosts.c.host_id, after, limit))))

    def hosts_called(self, hostname: str) -> tuple[Host, ...]:
        """Hosts of a hostname (several may have one)."""
        statement = select(hosts).where(hosts.c.hostname == hostname).order_by(hosts.c.host_id)
        return tuple(map(_host, self._all(statement)))

    def hosts_on_machine(self, machine_id: str) -> tuple[Host, ...]:
        """Hosts of a machine id, whatever their status. The empty id: none."""
        if not machine_id:
            return ()
        statement = select(hosts).where(hosts.c.machine_id == machine_id)
        return tuple(map(_host, self._all(statement.order_by(hosts.c.host_id))))

    def host_of_key(self, key_fingerprint: bytes) -> Host | None:
        """The host with this key."""
        row = self._one(select(hosts).where(hosts.c.key_fingerprint == key_fingerprint))
        return None if row is None else _host(row)

    def hosts_changed_since(self, fleet_revision: int) -> tuple[Host, ...]:
        """Hosts whose labels or status changed after `fleet_revision`, in that order."""
        statement = select(hosts).where(hosts.c.fleet_revision > fleet_revision)
        order = (hosts.c.fleet_revision, hosts.c.host_id)
        return tuple(map(_host, self._all(statement.order_by(*order))))

    def counters(self, host_id: str) -> HostCounters | None:
        """The host's rotating counter."""
        row = self._one(select(host_counters).where(host_counters.c.host_id == host_id))
        if row is None:
            return None
        return HostCounters(row.host_id, blob(row.current), blob(row.pending))

    def presence(self, host_ids: Sequence[str]) -> dict[str, HostPresence]:
        """What is known of these hosts' streams, by host id."""
        found: dict[str, HostPresence] = {}
        for part in chunks(host_ids):
            for row in self._all(select(host_presence).where(host_presence.c.host_id.in_(part))):
                found[row.host_id] = _presence(row)
        return found

    def report(self, host_id: str) -> HostReport | None:
        """The last report of a host."""
        row = self._one(select(host_reports).where(host_reports.c.host_id == host_id))
        return None if row is None else _report(row)

    def reports(self, *, after: str = "", limit: int = 0) -> tuple[HostReport, ...]:
        """Last reports by host id."""
        statement = paged(select(host_reports), host_reports.c.host_id, after, limit)
        return tuple(map(_report, self._all(statement)))


class HostRecords(HostReads):
    """Writing what hosts send. Rows of hosts that are gone are left out."""

    def swap_counters(self, expected: HostCounters | None, new: HostCounters) -> bool:
        """Set the host's counter if it is `expected` (None: it has none); else False."""
        row = {"host_id": new.host_id, "current": new.current, "pending": new.pending}
        if expected is None:
            known = self._known([new.host_id])
            return bool(known) and self._put(host_counters, [row], skip=True) == 1
        statement = update(host_counters).where(
            host_counters.c.host_id == new.host_id,
            host_counters.c.current == expected.current,
            host_counters.c.pending == expected.pending,
        )
        return self._run(statement.values(current=new.current, pending=new.pending)) == 1

    def put_presence(self, rows: Sequence[HostPresence]) -> None:
        """Note what streams told; for each host the newer `last_seen_unix_ms` wins."""
        known = self._known(row.host_id for row in rows)
        # One statement may not touch a row twice, and locks are taken in one order everywhere.
        last = {row.host_id: row for row in sorted(rows, key=lambda row: row.last_seen_unix_ms)}
        wanted = [_presence_row(last[host_id]) for host_id in sorted(last) if host_id in known]
        self._put(host_presence, wanted, newer=host_presence.c.last_seen_unix_ms)

    def put_reports(self, rows: Sequence[HostReport]) -> None:
        """Keep the last report of each host."""
        known = self._known(row.host_id for row in rows)
        last = {row.host_id: row for row in sorted(rows, key=lambda row: row.at_unix_ms)}
        wanted: list[Values] = [
            {"host_id": host_id, "at_unix_ms": row.at_unix_ms, "report": row.report}
            for host_id, row in sorted(last.items())
            if host_id in known
        ]
        self._put(host_reports, wanted, newer=host_reports.c.at_unix_ms)

    def _known(self, host_ids: Iterable[str]) -> set[str]:
        """Those of the hosts that are there, and stay until this transaction ends."""
        found: set[str] = set()
        for part in chunks(sorted(set(host_ids))):
            # SQLite has one writer at a time anyway, and leaves the clause out.
            statement = select(hosts.c.host_id).where(hosts.c.host_id.in_(part))
            found.update(
                self._connection.scalars(statement.with_for_update(key_share=True, read=True))
            )
        return found


class HostWrites(HostRecords):
    """Changing hosts."""

    _head: Head
    _next_fleet_revision: int | None = None

    def put_host(self, host: Host) -> Host:
        """Create or replace a host; takes a fleet revision. Answers the host as it is now.

        Raises PlaneError REFUSED when another host has the key.
        """
        if self._next_fleet_revision is None:
            self._next_fleet_revision = self._head.fleet_revision + 1
        kept = replace(host, fleet_revision=self._next_fleet_revision)
        old = self.host(host.host_id)
        if old is not None and old.key_fingerprint == kept.key_fingerprint:
            # A statement that sets the unique column locks the row so that PostgreSQL makes those
            # wait who write what the host sent, and they it: a deadlock, with several hosts.
            row = _host_row(kept)
            del row["host_id"], row["key_fingerprint"]
            self._run(update(hosts).where(hosts.c.host_id == host.host_id).values(row))
        else:
            self._put(hosts, [_host_row(kept)])
        self._run(delete(host_labels).where(host_labels.c.host_id == host.host_id))
        labels: list[Values] = [
            {"host_id": host.host_id, "name": name, "value": value}
            for name, value in sorted(host.labels.items())
        ]
        self._put(host_labels, labels)
        return kept

    def delete_host(self, host_id: str) -> bool:
        """Forget a host with its counters, presence, report and shadow usage."""
        return self._run(delete(hosts).where(hosts.c.host_id == host_id)) == 1

    def clear_counters(self, host_id: str) -> None:
        """Forget the host's counter: the next one given starts anew."""
        self._run(delete(host_counters).where(host_counters.c.host_id == host_id))


def _host_row(host: Host) -> Values:
    return {
        "host_id": host.host_id,
        "hostname": host.hostname,
        "status": int(host.status),
        "labels": canonical(dict(host.labels)),
        "machine_id": host.machine_id,
        "key_fingerprint": host.key_fingerprint,
        "assignment_sequence": host.assignment_sequence,
        "enrolled_at_unix_ms": host.enrolled_at_unix_ms,
        "join_token": host.join_token,
        "agent_version": host.agent_version,
        "kernel_release": host.kernel_release,
        "fleet_revision": host.fleet_revision,
    }


@checked
def _host(row: Row[Any]) -> Host:
    return Host(
        host_id=row.host_id,
        hostname=row.hostname,
        status=HostStatus(row.status),
        labels=labels_from(row.labels),
        machine_id=row.machine_id,
        key_fingerprint=blob(row.key_fingerprint),
        assignment_sequence=row.assignment_sequence,
        enrolled_at_unix_ms=row.enrolled_at_unix_ms,
        join_token=row.join_token,
        agent_version=row.agent_version,
        kernel_release=row.kernel_release,
        fleet_revision=row.fleet_revision,
    )


def _presence_row(row: HostPresence) -> Values:
    return {
        "host_id": row.host_id,
        "last_seen_unix_ms": row.last_seen_unix_ms,
        "connected_until_unix_ms": row.connected_until_unix_ms,
        "replica": row.replica,
        "acked_revision": row.acked_revision,
        "last_nack": row.last_nack,
    }


@checked
def _presence(row: Row[Any]) -> HostPresence:
    return HostPresence(
        host_id=row.host_id,
        last_seen_unix_ms=row.last_seen_unix_ms,
        connected_until_unix_ms=row.connected_until_unix_ms,
        replica=row.replica,
        acked_revision=row.acked_revision,
        last_nack=row.last_nack,
    )


@checked
def _report(row: Row[Any]) -> HostReport:
    return HostReport(row.host_id, row.at_unix_ms, blob(row.report))
