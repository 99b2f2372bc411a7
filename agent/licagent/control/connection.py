# SPDX-License-Identifier: Apache-2.0
"""One connection: the certificate brought up to date, the stream, renewal and reports beside it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import grpc

from licagent.control.backoff import around
from licagent.control.boot import Kept
from licagent.control.catalog import CatalogKeeper
from licagent.control.hostkey import span_of
from licagent.control.interface import (
    Assignment,
    CatalogStorage,
    ControlCallbacks,
    ControlPhase,
    ControlSettings,
    IdentityStorage,
    NoticeCode,
)
from licagent.control.join import EnrolmentFailed
from licagent.control.leases import LeaseKeeper
from licagent.control.renewal import reenrolled, renewed
from licagent.control.stream import Progress, StreamEnded, SyncStream, first_to_end
from licagent.control.telemetry import report_for_ever
from licagent.control.transport import (
    control_channel,
    described,
    is_of_version,
    retry_after_ms,
)
from licagent.domain.hostidentity import Identity
from licagent.domain.lease import LeaseSet
from lictoken.trust import TrustStore

_log: Final = logging.getLogger(__name__)

_REENROL_EVERY: Final = 4
_RENEW_RETRY_MIN_MS: Final = 10_000
_YOUNG_MS: Final = 15_000
"""A certificate is not renewed before; it begins 10 s before it was made."""
_CLOSE_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class Ended:
    """How a connection ended, and what the host is after it."""

    identity: Identity
    assignment: Assignment
    trust: TrustStore
    leases: LeaseSet
    error: str = ""
    notice: NoticeCode = NoticeCode.UNSPECIFIED
    retry_after_ms: int = 0
    was_welcome: bool = False
    is_renewed: bool = False  # the certificate is new: connect again with it
    must_reload: bool = False  # the host has become another one


class _Renewed(Exception):
    """The certificate was renewed."""


class _Woken(Exception):
    """The identity on disk is another one."""


async def connect(
    kept: Kept,
    identities: IdentityStorage,
    catalogs: CatalogStorage,
    callbacks: ControlCallbacks,
    settings: ControlSettings,
    *,
    failures: int,
    is_renewed: bool,
    woken: asyncio.Event,
    update: Callable[..., None],
    leases: LeaseSet,
    asker: Callable[[Callable[[], None] | None], None],
) -> Ended:
    """Connect, sync, and say how it ended. Raises nothing for reasons of the network."""
    keeper = CatalogKeeper(
        identities,
        catalogs,
        callbacks,
        replica=kept.replica,
        identity=kept.identity,
        assignment=kept.assignment,
        trust=kept.trust,
    )
    lease_keeper = LeaseKeeper(keeper, catalogs, callbacks, settings, leases)
    connection = _Connection(keeper, lease_keeper, callbacks, settings, update=update)
    connection.is_renewed = is_renewed

    def ended(error: str, **more: Any) -> Ended:
        return Ended(
            keeper.identity,
            keeper.assignment,
            keeper.trust,
            lease_keeper.leases,
            error=error,
            was_welcome=connection.was_welcome,
            **more,
        )

    address = settings.server or keeper.identity.control_address
    try:
        await connection.certify(failures)
        asker(lease_keeper.ask_now)
        await connection.run(address, identities, woken)
    except StreamEnded as end:
        return ended(end.detail, notice=end.code, retry_after_ms=end.retry_after_ms)
    except grpc.aio.AioRpcError as error:
        if error.code() is grpc.StatusCode.UNAUTHENTICATED:
            connection.is_unknown = True
            try:
                await connection.certify(failures)
            except EnrolmentFailed as refused:
                return ended(
                    f"{described(error, address)}; {refused}",
                    retry_after_ms=retry_after_ms(error),
                )
            # At once, but only once: a server that takes no certificate of its own is waited for.
            return ended(described(error, address), retry_after_ms=int(failures == 0))
        if is_of_version(error):
            return ended((error.details() or "")[:400], notice=NoticeCode.VERSION)
        return ended(
            "; ".join(filter(None, (connection.problem, described(error, address)))),
            retry_after_ms=retry_after_ms(error),
        )
    except EnrolmentFailed as error:
        return ended(str(error))
    except _Renewed:
        return ended("", is_renewed=True)
    except _Woken:
        return ended("", must_reload=True)
    finally:
        asker(None)
    return ended("the stream ended")


class _Connection:
    def __init__(
        self,
        keeper: CatalogKeeper,
        leases: LeaseKeeper,
        callbacks: ControlCallbacks,
        settings: ControlSettings,
        *,
        update: Callable[..., None],
    ) -> None:
        self._keeper = keeper
        self._leases = leases
        self._callbacks = callbacks
        self._settings = settings
        self._update = update
        self._reports = 0
        self.was_welcome = False
        self.is_unknown = False
        self.is_renewed = False  # a moment ago
        self.problem = ""  # why there is no new certificate, where the old one has ended

    async def certify(self, failures: int) -> None:
        """Get a new certificate where the old one has ended.

        A server that judges it ended by its own clock, or whose authority is another one by now,
        cuts the connection without a word (it is TLS that refuses), so a certificate is taken for
        ended once every _REENROL_EVERY failures, however young it is. And
        where this host's clock is wrong, the old one may do after all: it is tried. Raises
        EnrolmentFailed only where the server said that it does not know the old one.
        """
        identity = self._keeper.identity
        span = span_of(identity.certificate_chain[0])
        now_ms = self._settings.unix_s() * 1000
        is_over = not span.not_before_unix_ms <= now_ms < span.not_after_unix_ms
        is_suspect = failures % _REENROL_EVERY == _REENROL_EVERY - 1
        if not (is_over or is_suspect or self.is_unknown):
            return
        try:
            fresh = await reenrolled(identity, self._keeper.trust, self._settings)
        except EnrolmentFailed as error:
            if self.is_unknown:
                raise
            self.problem = str(error) if is_over else ""
            return
        if not await self._keeper.replace_identity(fresh):
            raise _Woken
        self._update(certificate_end_unix_ms=fresh.not_after_unix_ms, renewal_error="")

    async def run(self, address: str, identities: IdentityStorage, woken: asyncio.Event) -> None:
        """Raises what ended it."""
        channel = control_channel(self._keeper.identity, address, self._settings)
        stream = SyncStream(
            channel,
            self._keeper,
            self._leases,
            self._callbacks,
            self._settings,
            progress=self._progress,
        )
        try:
            await first_to_end(
                stream.run(),
                self._renewing(channel, stream),
                self._reporting(address, stream),
                self._watching(identities, woken),
            )
        finally:
            await channel.close(_CLOSE_S)

    async def _renewing(self, channel: grpc.aio.Channel, stream: SyncStream) -> None:
        """Renew at half the certificate's life, give or take a tenth. Raises _Renewed."""
        await stream.welcomed.wait()
        span = span_of(self._keeper.identity.certificate_chain[0])
        life_ms = span.not_after_unix_ms - span.not_before_unix_ms
        due_ms = span.not_before_unix_ms + around(life_ms / 2)
        if self.is_renewed:
            # Where this host's clock is wrong, a new certificate may look old: not in a circle.
            due_ms = max(due_ms, self._settings.unix_s() * 1000 + around(life_ms / 20))
        while True:
            left_ms = due_ms - self._settings.unix_s() * 1000
            if left_ms > 0:
                # The wall clock may be set, and the host may sleep: look again now and then.
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(min(left_ms / 1000, 60.0)):
                        await stream.renewal_wanted.wait()
                if stream.renewal_wanted.is_set():
                    stream.renewal_wanted.clear()
                    spread_ms = random.uniform(0, stream.renew_within_ms)  # noqa: S311
                    soon_ms = self._settings.unix_s() * 1000 + spread_ms
                    # Servers whose clocks differ may ask again and again: not in a circle.
                    due_ms = min(due_ms, max(soon_ms, span.not_before_unix_ms + _YOUNG_MS))
                continue
            try:
                fresh = await renewed(channel, self._keeper.identity)
            except EnrolmentFailed as error:
                _log.warning("the certificate was not renewed: %s", error)
                self._update(renewal_error=str(error))
                wait_ms = max(life_ms / 40, min(_RENEW_RETRY_MIN_MS, life_ms / 8))
                due_ms = self._settings.unix_s() * 1000 + around(wait_ms)
                continue
            if not await self._keeper.replace_identity(fresh):
                raise _Woken
            self._update(certificate_end_unix_ms=fresh.not_after_unix_ms, renewal_error="")
            raise _Renewed

    async def _reporting(self, address: str, stream: SyncStream) -> None:
        await stream.welcomed.wait()
        await report_for_ever(
            self._keeper.identity,
            address,
            self._callbacks,
            self._settings,
            stream.report_interval_ms,
            sent=self._reported,
        )

    async def _watching(self, identities: IdentityStorage, woken: asyncio.Event) -> None:
        """Raises _Woken when the host was enrolled again."""
        while True:
            await woken.wait()
            woken.clear()
            if await asyncio.to_thread(identities.load) != self._keeper.identity:
                raise _Woken

    def _reported(self) -> None:
        self._reports += 1
        self._update(reports_sent=self._reports)

    def _progress(self, progress: Progress) -> None:
        now_ms = int(self._settings.unix_s() * 1000)
        changes: dict[str, Any] = {"last_contact_unix_ms": now_ms}
        if progress.is_connected:
            self.was_welcome = True
            changes |= {
                "phase": ControlPhase.CONNECTED,
                "connected_since_unix_ms": now_ms,
                "attempts": 0,
                "last_error": "",
                "notice": NoticeCode.UNSPECIFIED,
                "notice_detail": "",
            }
        if progress.newest_revision is not None:
            changes["newest_revision"] = progress.newest_revision
        if progress.refusal is not None:
            changes["last_refusal"] = progress.refusal
        if progress.synced:
            replica = self._keeper.replica
            changes |= {
                "revision": replica.revision,
                "objects": len(replica),
                "last_sync_unix_ms": now_ms,
            }
        if progress.leases:
            changes |= {
                "lease_end_boottime_ns": self._leases.leases.end_boottime_ns,
                "leased_licenses": len(self._leases.leases.leases),
            }
        if progress.assignment:
            assignment = self._keeper.assignment
            changes |= {
                "labels": assignment.labels,
                "assignment_sequence": assignment.sequence,
                "host_status": assignment.status,
            }
        self._update(**changes)
