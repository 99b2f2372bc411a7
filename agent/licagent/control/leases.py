# SPDX-License-Identifier: Apache-2.0
"""Asks for leases in time, and takes the answers to what was asked, each for what it is worth."""

from __future__ import annotations

import asyncio
import os
from collections import OrderedDict
from typing import Final

from licagent.control.backoff import around
from licagent.control.catalog import CatalogKeeper, called
from licagent.control.hostkey import fingerprint
from licagent.control.interface import CatalogStorage, ControlCallbacks, ControlSettings
from licagent.control.trust import opened
from licagent.control.wire import lease_answer
from licagent.domain.catalog import Kind, NackReason, Refused, SignedBytes
from licagent.domain.lease import (
    Lease,
    LeaseHolder,
    LeaseRequest,
    LeaseSet,
    StoredLeases,
    accept,
)
from lictoken.sealed import SealPurpose
from lictoken.trust import TrustStore

NONCE_BYTES: Final = 16
_OUTSTANDING_MAX: Final = 8
_ANSWER_MS: Final = 15_000
_MS: Final = 1_000_000


class LeaseKeeper:
    """The leases of one stream. Nonces die with the stream; leases do not."""

    def __init__(
        self,
        keeper: CatalogKeeper,
        catalogs: CatalogStorage,
        callbacks: ControlCallbacks,
        settings: ControlSettings,
        leases: LeaseSet,
    ) -> None:
        self._keeper = keeper
        self._catalogs = catalogs
        self._callbacks = callbacks
        self._settings = settings
        self._asked: OrderedDict[bytes, LeaseRequest] = OrderedDict()
        self._unanswered = 0
        self._due = asyncio.Event()
        self._due_boottime_ns = self._due_of(leases)
        self.leases = leases
        self.ttl_ms = 600_000

    def wants_leases(self) -> bool:
        """Whether there is anything to lease."""
        return any(kind is Kind.LICENSE for kind, _ in self._keeper.replica.objects)

    def ask_now(self) -> None:
        """Ask at the next opportunity, whatever was planned."""
        self._due_boottime_ns = 0
        self._due.set()

    async def next_request(self) -> LeaseRequest:
        """Wait until it is time to ask; what to send."""
        while True:
            left_ns = self._due_boottime_ns - self._settings.boottime_ns()
            if left_ns <= 0 and self.wants_leases():
                return self._request()
            self._due.clear()
            # A host that sleeps wakes up late: CLOCK_BOOTTIME is looked at again every minute.
            wait_s = min(left_ns / 1e9, 60.0) if left_ns > 0 else 60.0
            try:
                async with asyncio.timeout(wait_s):
                    await self._due.wait()
            except TimeoutError:
                continue

    async def take(self, bundle: SignedBytes) -> bool:
        """Put an answer in force; False if a newer request was answered before. Raises Refused."""
        answer = lease_answer(opened(SealPurpose.LEASE, bundle, self._keeper.trust))
        request = self._asked.get(answer.nonce)
        if request is None:
            raise Refused(
                NackReason.NOT_OURS,
                f"the leases answer the request {answer.nonce.hex()}, which this stream did not "
                "make",
            )
        identity = self._keeper.identity
        holder = LeaseHolder(
            identity.host_id, fingerprint(identity.key_pem), self._settings.boot_id
        )
        found = accept(answer, request, holder)
        self._forget_until(answer.nonce)
        if found.requested_boottime_ns < self.leases.requested_boottime_ns:
            return False
        kept = StoredLeases(bundle, request.nonce, request.boot_id, request.requested_boottime_ns)
        await asyncio.to_thread(self._catalogs.save_leases, kept)
        await called(self._callbacks.apply_leases(found))
        self.leases = found
        self._unanswered = 0
        half_ns = int(around(answer.ttl_ms / 2) * _MS)
        if self._due_boottime_ns:  # not asked again meanwhile
            self._due_boottime_ns = found.requested_boottime_ns + half_ns
        return True

    def _due_of(self, leases: LeaseSet) -> int:
        """When a new stream asks first: not at once where all is leased, so that a server which
        comes back to a whole fleet has less to sign."""
        licenses = {name for kind, name in self._keeper.replica.objects if kind is Kind.LICENSE}
        if not licenses <= leases.leases.keys() or not leases.requested_boottime_ns:
            return 0
        half_ns = (leases.end_boottime_ns - leases.requested_boottime_ns) / 2
        return leases.requested_boottime_ns + int(around(half_ns))

    def _request(self) -> LeaseRequest:
        now_ns = self._settings.boottime_ns()
        request = LeaseRequest(os.urandom(NONCE_BYTES), self._settings.boot_id, now_ns)
        self._asked[request.nonce] = request
        while len(self._asked) > _OUTSTANDING_MAX:
            self._asked.popitem(last=False)
        # Until an answer comes: ask again, ever more seldom, but often before the lease ends.
        wait_ms = min(_ANSWER_MS << min(self._unanswered, 10), max(self.ttl_ms // 2, 1_000))
        wait_ms = min(wait_ms, max(self.ttl_ms // 4, 1_000))
        self._unanswered += 1
        self._due_boottime_ns = now_ns + int(around(wait_ms) * _MS)
        return request

    def _forget_until(self, nonce: bytes) -> None:
        """An answer ends its request and those before it."""
        while self._asked:
            asked, _ = self._asked.popitem(last=False)
            if asked == nonce:
                return


def opened_leases(
    kept: StoredLeases, holder: LeaseHolder, trust: TrustStore, settings: ControlSettings
) -> LeaseSet:
    """Leases from the disk. Raises Refused; NOT_OURS for those of another boot.

    Offline leases (from an enrolment bundle, for a host with no network) are for any boot, and
    last until a date.
    """
    answer = lease_answer(opened(SealPurpose.LEASE, kept.bundle, trust))
    request = LeaseRequest(kept.nonce, kept.boot_id, kept.requested_boottime_ns)
    if answer.boot_id or kept.boot_id:
        return accept(answer, request, holder)
    anywhere = LeaseHolder(holder.host_id, holder.key_fingerprint, "")
    found = accept(answer, request, anywhere)
    if settings.deadline_of_unix_s is None:
        return LeaseSet({}, 0, 0)
    end_ms = answer.issued_at_unix_ms + answer.ttl_ms
    leases: dict[str, Lease] = dict(found.leases)
    return LeaseSet(leases, 0, settings.deadline_of_unix_s(end_ms // 1000))
