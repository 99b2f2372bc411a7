# SPDX-License-Identifier: Apache-2.0
"""Takes deltas: verified, put on the copy, into the kernel, on the disk; in that order.

The disk has the change written up to its commit before the kernel is touched, and commits once
the kernel holds it. So a crash at any point leaves a snapshot that was signed, and a full disk
is found before anything changed.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Coroutine
from dataclasses import dataclass, replace
from typing import Any, Final, TypeVar

from licagent.control.interface import (
    Assignment,
    CatalogStorage,
    ControlCallbacks,
    IdentityStorage,
)
from licagent.control.trust import opened, rotated, trust_of
from licagent.control.wire import assignment as parse_assignment
from licagent.control.wire import manifest as parse_manifest
from licagent.domain.catalog import (
    TRUST_NAME,
    CatalogView,
    Delta,
    Kind,
    NackReason,
    Refused,
    SignedBytes,
)
from licagent.domain.delta_parts import GatheredDelta
from licagent.domain.hostidentity import Identity
from licagent.domain.replica import Replica
from lictoken.errors import TokenError
from lictoken.revocation import RevocationAction, verify_revocation
from lictoken.sealed import SealPurpose
from lictoken.trust import TrustStore

_log: Final = logging.getLogger(__name__)

_SETTLE_S: Final = 30.0

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Taken:
    """What a delta came to."""

    revision: int
    asks_for_leases: bool = False  # licenses are new, or were given back


class CatalogKeeper:
    """What this host holds of its control plane. Outlives the streams that bring it."""

    def __init__(
        self,
        identities: IdentityStorage,
        catalogs: CatalogStorage,
        callbacks: ControlCallbacks,
        *,
        replica: Replica,
        identity: Identity,
        assignment: Assignment,
        trust: TrustStore,
    ) -> None:
        self._identities = identities
        self._catalogs = catalogs
        self._callbacks = callbacks
        self._busy: asyncio.Task[Any] | None = None
        self.replica = replica
        self.identity = identity
        self.assignment = assignment
        self.trust = trust

    async def settled(self) -> None:
        """Wait for a change that a cut link left half way: it is carried to its end.

        Not for ever: a daemon that hangs must still be able to stop.
        """
        busy = self._busy
        if busy is not None and not busy.done():
            await asyncio.wait({busy}, timeout=_SETTLE_S)

    async def take_delta(self, delta: GatheredDelta) -> Taken:
        """Put a delta in force. Raises Refused with what was in force still in force."""
        return await self._whole(self._take_delta(delta))

    async def take_assignment(self, proof: SignedBytes) -> bool:
        """Put labels and status in force; False where they are not news. Raises Refused."""
        return await self._whole(self._take_assignment(proof))

    async def replace_identity(self, new: Identity) -> bool:
        """Save a changed identity, durably; False if the host has become another one."""
        done = await asyncio.to_thread(self._identities.replace, self.identity, new)
        if done:
            self.identity = new
        return done

    async def _whole(self, change: Coroutine[Any, Any, Result]) -> Result:
        """Run a change that the end of the stream must not tear."""
        await self.settled()
        task = asyncio.ensure_future(change)
        self._busy = task
        task.add_done_callback(_look)
        return await asyncio.shield(task)

    async def _take_delta(self, gathered: GatheredDelta) -> Taken:
        delta = self._verified(gathered)
        if self.replica.is_held(delta):
            return Taken(self.replica.revision)
        new_trust = self._new_trust(delta)
        view = await asyncio.to_thread(self.replica.stage, delta)
        try:
            await self._enforce(view, delta)
        except Refused:
            self.replica.undo()
            await self._revoke_anyway(delta)
            raise
        self.replica.keep()
        if new_trust is not None:
            await self._rotate(new_trust)
        return Taken(self.replica.revision, self._asks_for_leases(view))

    def _verified(self, gathered: GatheredDelta) -> Delta:
        payload = opened(SealPurpose.SNAPSHOT, gathered.manifest, self.trust)
        manifest = parse_manifest(payload, gathered.manifest)
        if manifest.view != self.assignment.view:
            raise Refused(
                NackReason.NOT_OURS,
                f"the snapshot is for the view {manifest.view}, this host's is "
                f"{self.assignment.view}",
            )
        return Delta(
            gathered.from_revision,
            gathered.to_revision,
            gathered.reset,
            gathered.changes,
            manifest,
        )

    def _new_trust(self, delta: Delta) -> TrustStore | None:
        for change in delta.changes:
            if change.kind is not Kind.TRUST:
                continue
            if change.name != TRUST_NAME:
                raise Refused(NackReason.POLICY, f"keys under the name {change.name[:80]!a}")
            if change.payload is not None:
                return trust_of(change.payload)
        return None

    async def _enforce(self, view: CatalogView, delta: Delta) -> None:
        write = await asyncio.to_thread(
            self._catalogs.begin,
            self.identity.host_id,
            delta.manifest.sealed,
            list(view.objects.values())
            if delta.reset
            else [
                view.objects[change.key] for change in delta.changes if change.payload is not None
            ],
            [change.key for change in delta.changes if change.payload is None],
            reset=delta.reset,
        )
        try:
            await self._call(self._callbacks.apply_catalog(view))
        except BaseException:
            await asyncio.to_thread(write.rollback)
            raise
        try:
            await asyncio.to_thread(write.commit)
        except Refused:
            await self._go_back()
            raise

    async def _go_back(self) -> None:
        """The kernel took what the disk did not: bring it back to what the disk has."""
        self.replica.undo()
        view = self.replica.view()
        if view is None:
            view = CatalogView(self.assignment.view, 0, b"", {}, (), (), is_whole=True)
        try:
            await self._call(self._callbacks.apply_catalog(view))
        except Refused as error:
            _log.error("cannot go back to revision %d: %s", view.revision, error)

    async def _revoke_anyway(self, delta: Delta) -> None:
        """What a refused delta takes away is taken away all the same: it is signed by itself."""
        tokens = [
            change.payload
            for change in delta.changes
            if change.kind is Kind.REVOCATION and change.payload is not None
        ]
        if not tokens:
            return
        try:
            await self._call(self._callbacks.apply_revocations(tokens))
        except Refused as error:
            _log.warning("statements of a refused delta: %s", error)

    async def _rotate(self, new: TrustStore) -> None:
        trust = rotated(self.trust, new)
        self.trust = trust
        try:
            await self.replace_identity(replace(self.identity, trust=trust.to_bytes()))
        except Exception as error:  # noqa: BLE001 -- any failure of the disk; tried again at boot
            _log.warning("the issuers' new keys are in force, but not on disk: %s", error)

    def _asks_for_leases(self, view: CatalogView) -> bool:
        for kind, name in view.changed:
            if kind is Kind.LICENSE:
                return True
            if kind is Kind.REVOCATION and self._gives_back(view.objects[kind, name].payload):
                return True
        return False

    def _gives_back(self, token: bytes) -> bool:
        with contextlib.suppress(TokenError):
            return verify_revocation(token, self.trust).action is RevocationAction.REINSTATE
        return False

    async def _take_assignment(self, proof: SignedBytes) -> bool:
        found = parse_assignment(opened(SealPurpose.ASSIGNMENT, proof, self.trust))
        if found.host_id != self.identity.host_id:
            raise Refused(
                NackReason.NOT_OURS,
                f"the assignment is for the host {found.host_id}, this is {self.identity.host_id}",
            )
        if found.sequence < self.assignment.sequence:
            raise Refused(
                NackReason.ROLLBACK,
                f"the assignment {found.sequence} is older than {self.assignment.sequence}",
            )
        if found.sequence == self.assignment.sequence:
            return False
        await self._call(self._callbacks.apply_assignment(found))
        before, self.assignment = self.assignment, found
        try:
            await self.replace_identity(replace(self.identity, assignment=proof))
        except Exception as error:
            self.assignment = before
            await self._call(self._callbacks.apply_assignment(before))
            raise Refused(NackReason.DISK, f"cannot keep the assignment: {error}") from error
        return True

    async def _call(self, change: Coroutine[Any, Any, None]) -> None:
        await called(change)


async def called(change: Coroutine[Any, Any, None]) -> None:
    """Await one of the daemon's methods; what it did not foresee is Refused(KERNEL)."""
    try:
        await change
    except Refused:
        raise
    except Exception as error:
        _log.exception("the daemon could not take what the control plane sent")
        raise Refused(NackReason.KERNEL, f"{type(error).__name__}: {error}") from error


def _look(task: asyncio.Task[Any]) -> None:
    """Nobody may be waiting any more when it ends; its failure is then told by the next delta."""
    if not task.cancelled():
        task.exception()
