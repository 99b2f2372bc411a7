# SPDX-License-Identifier: Apache-2.0
"""Sync streams: the rotating counter, what a host is, its leases, what it acknowledged."""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from licplane.errors import ExitCode, PlaneError
from licplane.service import payloads
from licplane.service.answers import CounterResult, CounterVerdict, FleetChanges, HostState
from licplane.service.core import Core
from licplane.service.counters import holds
from licplane.service.replica import Replica
from licplane.service.requests import Progress
from licplane.service.texts import tidy
from licplane.service.values import SERVED, Actor, HostStatus, Role, View
from licplane.service.work import Work, perform_once
from licplane.store.host_model import Host, HostCounters, HostPresence
from licplane.store.reader import Reader
from lictoken.claims import I64_MAX
from lictoken.sealed import Seal, SealPurpose

NONCE_BYTES: Final = 16
_NACK_MAX: Final = 4096
_BOOT_ID_MAX: Final = 64
_TRIES: Final = 5


class Streams:
    """What the sync streams of all hosts need."""

    def __init__(self, core: Core, replica: Replica) -> None:
        self._core = core
        self._replica = replica

    def open(self, host_id: str, counter: bytes) -> CounterResult:
        """See Plane.open_stream."""
        counters = self._core.counters()
        for _ in range(_TRIES):
            with self._core.store.recording() as recorder:
                host = host_of(recorder, host_id)
                if host.status is HostStatus.CLONED:
                    return CounterResult(CounterVerdict.CLONED, b"")
                if host.status not in SERVED:
                    raise _not_served(host)
                known = recorder.counters(host_id)
                if known is not None and not holds(known, counter):
                    if not counters.is_ahead(host_id, counter, known):
                        break
                    # Ours, and newer than what we know: the database was put back from a copy.
                    ahead = HostCounters(host_id, counter)
                    pending = counters.following(host_id, ahead)
                else:
                    pending = counters.following(host_id, known)
                current = counter if known is not None else pending
                if recorder.swap_counters(known, HostCounters(host_id, current, pending)):
                    recorder.put_presence([self._seen(recorder, host_id)])
                    return CounterResult(CounterVerdict.ACCEPTED, pending)
        else:
            raise PlaneError(
                ExitCode.BUSY, "The host opens several streams at once", "Try again in a second"
            )
        self._cloned(host_id, "an old counter was shown at the start of a stream")
        return CounterResult(CounterVerdict.CLONED, b"")

    def keep(self, host_id: str, counter: bytes) -> CounterVerdict:
        """See Plane.keep_counter."""
        for _ in range(_TRIES):
            with self._core.store.recording() as recorder:
                known = recorder.counters(host_id)
                if known is None:
                    return CounterVerdict.ACCEPTED
                if hmac.compare_digest(known.current, counter):
                    return CounterVerdict.ACCEPTED
                if not hmac.compare_digest(known.pending, counter) or not counter:
                    break
                if recorder.swap_counters(known, HostCounters(host_id, counter)):
                    return CounterVerdict.ACCEPTED
        self._cloned(host_id, "another machine was given a newer counter")
        return CounterVerdict.CLONED

    def close(self, host_id: str) -> None:
        """See Plane.close_stream."""
        now_ms = self._core.now_ms()
        with self._core.store.recording() as recorder:
            known = recorder.presence([host_id]).get(host_id)
            if known is not None:
                seen = max(now_ms, known.last_seen_unix_ms)
                row = replace(known, connected_until_unix_ms=0, last_seen_unix_ms=seen)
                recorder.put_presence([row])

    def state(self, host_id: str) -> HostState:
        """See Plane.host_state."""
        with self._core.store.reading() as reader:
            host = host_of(reader, host_id)
        return HostState(
            host.host_id,
            host.status,
            dict(host.labels),
            host.view,
            host.assignment_sequence,
            assignment(self._core, host),
        )

    def view_of(self, host_id: str) -> View:
        """See Plane.view_of."""
        with self._core.store.reading() as reader:
            return host_of(reader, host_id).view

    def fleet_changes(self, cursor: int | None) -> FleetChanges:
        """See Plane.fleet_changes."""
        with self._core.store.reading() as reader:
            newest = reader.head().fleet_revision
            if cursor is None or cursor == newest:
                return FleetChanges(newest, ())
            changed = reader.hosts_changed_since(cursor)
        return FleetChanges(newest, tuple(host.host_id for host in changed))

    def record(self, progress: Sequence[Progress]) -> None:
        """See Plane.record_progress."""
        if not progress:
            return
        now_ms = self._core.now_ms()
        until_ms = now_ms + self._core.settings.connected_ttl_s * 1000
        newest = {one.host_id: one for one in progress}  # a later one replaces an earlier one
        with self._core.store.recording() as recorder:
            known = recorder.presence(list(newest))
            rows = []
            for host_id, one in newest.items():
                was = known.get(host_id) or HostPresence(host_id, 0)
                rows.append(
                    replace(
                        was,
                        last_seen_unix_ms=max(now_ms, was.last_seen_unix_ms),
                        connected_until_unix_ms=until_ms,
                        acked_revision=min(max(one.revision, 0), I64_MAX) or was.acked_revision,
                        last_nack=tidy(one.nack, _NACK_MAX),
                    )
                )
            recorder.put_presence(rows)

    def lease(self, host_id: str, key_fingerprint: bytes, boot_id: str, nonce: bytes) -> Seal:
        """See Plane.lease."""
        if len(nonce) != NONCE_BYTES or len(boot_id) > _BOOT_ID_MAX:
            raise PlaneError(
                ExitCode.USAGE,
                f"A lease request has a nonce of {NONCE_BYTES} bytes and a boot id",
                "Upgrade licagent",
            )
        with self._core.store.reading() as reader:
            host = host_of(reader, host_id)
        if host.status is not HostStatus.ACTIVE:
            raise _not_served(host)
        self._core.check_looked_at()
        return self.lease_for(
            host, key_fingerprint, boot_id, nonce, self._core.settings.lease_ttl_s
        )

    def lease_for(
        self, host: Host, key_fingerprint: bytes, boot_id: str, nonce: bytes, ttl_s: int
    ) -> Seal:
        """A sealed lease for what a host's view holds now."""
        now_ms = self._core.now_ms()
        lock, standings = self._replica.with_standings()
        with lock:
            leases = standings.leases(host.view, now_ms // 1000)
        payload = payloads.lease_bundle(
            host.host_id,
            key_fingerprint,
            boot_id,
            nonce,
            ttl_ms=ttl_s * 1000,
            now_ms=now_ms,
            leases=leases,
        )
        return self._core.current_sealer().seal(SealPurpose.LEASE, payload)

    def _seen(self, reader: Reader, host_id: str) -> HostPresence:
        now_ms = self._core.now_ms()
        known = reader.presence([host_id]).get(host_id) or HostPresence(host_id, 0)
        return replace(
            known,
            last_seen_unix_ms=max(now_ms, known.last_seen_unix_ms),
            connected_until_unix_ms=now_ms + self._core.settings.connected_ttl_s * 1000,
        )

    def _cloned(self, host_id: str, why: str) -> None:
        mark_cloned(self._core, host_id, why)


def mark_cloned(core: Core, host_id: str, why: str) -> None:
    """Two machines speak for the host: it becomes CLONED, once."""

    def body(work: Work) -> bool:
        host = host_of(work.transaction, host_id)
        if host.status not in SERVED:
            return False
        work.transaction.put_host(
            replace(
                host,
                status=HostStatus.CLONED,
                assignment_sequence=host.assignment_sequence + 1,
            )
        )
        work.audit("host.cloned", host_id, {"hostname": host.hostname, "why": why})
        return True

    perform_once(core, Actor(f"host:{host_id}", Role.HOST), body, why)


def host_of(reader: Reader, host_id: str) -> Host:
    """A host by id. Raises PlaneError NOT_FOUND."""
    found = reader.host(host_id)
    if found is None:
        raise PlaneError(
            ExitCode.NOT_FOUND, f"There is no host {host_id}", "`licplane host list` shows all"
        )
    return found


def assignment(core: Core, host: Host) -> Seal:
    """The host's labels and status, sealed."""
    payload = payloads.assignment(
        host.host_id, host.labels, host.assignment_sequence, host.status, core.now_ms()
    )
    return core.current_sealer().seal(SealPurpose.ASSIGNMENT, payload)


def _not_served(host: Host) -> PlaneError:
    return PlaneError(
        ExitCode.REFUSED,
        f"The host is {host.status.word}",
        "Ask an administrator of the control plane",
    )
