# SPDX-License-Identifier: Apache-2.0
"""The regular work on usage: one replica does it, and another one takes over when that is gone."""

from __future__ import annotations

import logging
import secrets
from typing import Final

from licplane.errors import PlaneError
from licplane.service.billing.budgets import alerts
from licplane.service.billing.closing import KEEPER, Billing
from licplane.service.core import Core
from licplane.service.drift import drift_of
from licplane.service.outbox import Outbox
from licplane.service.requests import Change
from licplane.service.usage.retention import purge
from licplane.service.usage.triggers import crossed
from licplane.store.host_model import HostPresence

LEAD_MS: Final = 20_000
"""A leader that does not come back for so long is replaced. Two at once do no harm: what they
write is held together by locks and keys."""
LOOK_MS: Final = 60_000
"""How often triggers, budgets and bills are looked at."""
SOON_MS: Final = 10_000
"""The same where usage came in."""
DRIFT_MS: Final = 300_000
"""How often all hosts are looked at for what differs on them."""
TIDY_MS: Final = 3_600_000
DELIVERIES_KEPT_MS: Final = 400 * 86_400_000

log = logging.getLogger("licplane.billing")


class UsageKeeper:
    """Made once in each worker. One thread at a time calls `keep`, every few seconds."""

    def __init__(self, core: Core, billing: Billing) -> None:
        self._core = core
        self._billing = billing
        self._outbox = Outbox(core)
        self._name = secrets.token_hex(8)
        self._looked_ms = 0
        self._drifted_ms = 0
        self._tidied_ms = 0
        self._has_new = False  # usage came in since bills and triggers were looked at
        self._earliest_ms: int | None = 0  # of what was rolled up since bills were looked at

    def keep(self) -> bool:
        """Do what is due; whether this replica leads."""
        now_ms = self._core.now_ms()
        is_time = now_ms - self._looked_ms >= LOOK_MS or now_ms < self._looked_ms
        with self._core.store.reading() as reader:
            work = reader.usage_work()
            if work.leader not in ("", self._name) and work.leader_until_unix_ms > now_ms:
                return False
            is_idle = not is_time and not self._has_new and not reader.pending_batches()
            if is_idle and not reader.due_deliveries(now_ms, 1):
                return work.leader == self._name
        if not self._lead(LEAD_MS):
            return False
        self._has_new = self.roll_up() or self._has_new
        if is_time or (self._has_new and now_ms - self._looked_ms >= SOON_MS):
            self._looked_ms = now_ms
            self._has_new = False
            self.look()
        # The lead outlives what may take long, or another one would deliver the same meanwhile.
        self._outbox.deliver(lambda longest_ms: self._lead(max(LEAD_MS, longest_ms + 1_000)))
        if now_ms - self._tidied_ms >= TIDY_MS or now_ms < self._tidied_ms:
            self._tidied_ms = now_ms
            self.tidy()
        return True

    def _lead(self, for_ms: int) -> bool:
        now_ms = self._core.now_ms()
        with self._core.store.recording() as recorder:
            return recorder.take_lead(self._name, now_ms, now_ms + for_ms)

    def roll_up(self) -> bool:
        """Add up what came in; whether there was something."""
        has_new = False
        while True:
            with self._core.store.recording() as recorder:
                recorder.lock_usage()
                earliest_ms = recorder.roll_up()
            if earliest_ms is None:
                return has_new
            has_new = True
            known = self._earliest_ms
            self._earliest_ms = earliest_ms if known is None else min(known, earliest_ms)

    def look(self) -> None:
        """Close and correct what is due, and see what triggers and budgets have to tell."""
        self._keep_bills()
        now_ms = self._core.now_ms()
        with self._core.store.reading() as reader:
            found = [*crossed(reader, now_ms), *alerts(reader, now_ms)]
        with self._core.store.recording() as recorder:
            recorder.put_deliveries(found)
        if now_ms - self._drifted_ms >= DRIFT_MS or now_ms < self._drifted_ms:
            self._drifted_ms = now_ms
            self._note_drift(now_ms)

    def tidy(self) -> None:
        """Forget what is old."""
        now_ms = self._core.now_ms()
        gone = purge(self._core.store, now_ms)
        if gone:
            log.info("usage: %d rows and parts were deleted as old", gone)
        with self._core.store.recording() as recorder:
            recorder.purge_deliveries(now_ms - DELIVERIES_KEPT_MS)

    def _keep_bills(self) -> None:
        if not self._core.has_keys:
            return
        for plan, label in self._billing.due():
            self._try(f"close {plan} {label}", plan, label)
        earliest_ms, self._earliest_ms = self._earliest_ms, None
        if earliest_ms is None:
            return
        for period in self._billing.late(earliest_ms):
            self._try(f"correct {period}", period, None)

    def _try(self, what: str, name: str, label: str | None) -> None:
        try:
            if label is None:
                change = Change(reason="usage came after the period was billed")
                self._billing.correct(KEEPER, change, name)
            else:
                change = Change(reason="the period is over")
                self._billing.close(KEEPER, change, name, label)
        except PlaneError as error:
            log.error("billing: %s: %s", what, error)
            self._earliest_ms = 0

    def _note_drift(self, now_ms: int) -> None:
        found: dict[str, tuple[str, ...]] = {}
        with self._core.store.reading() as reader:
            revision = reader.head().revision
            hosts = reader.hosts()
            seen = reader.presence([host.host_id for host in hosts])
            for host in hosts:
                told = drift_of(
                    host,
                    seen.get(host.host_id) or HostPresence(host.host_id, 0),
                    reader.report(host.host_id),
                    revision,
                    now_ms,
                )
                if told:
                    # Without the time of a host that is silent: it would be another each minute.
                    found[host.host_id] = tuple(one.partition(" at 2")[0] for one in told)
        with self._core.store.recording() as recorder:
            recorder.note_drift(found, now_ms)
