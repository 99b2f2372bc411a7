# SPDX-License-Identifier: Apache-2.0
"""One host's sync stream: what was sent, what was answered, what comes next."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final

import grpc

from licapi.control.v1 import sync_pb2
from licplane.api import wire
from licplane.api.wire import EncodedDelta
from licplane.service.values import Identity, View

if TYPE_CHECKING:
    from licplane.api.hub import Hub

_UNANSWERED_MAX: Final = 4096
_REMEMBERED_MAX: Final = 200  # messages of one stream
_RATE_WINDOW_S: Final = 60.0
_STATEMENT_DETAIL_MAX: Final = 1024

Context = Any
"""grpc.aio.ServicerContext; its stubs have no read() and write() of bytes."""


class Sent(StrEnum):
    """Kinds of messages that are counted."""

    WELCOME = "welcome"
    REVOCATIONS = "revocations"
    DELTA = "delta"
    ASSIGNMENT = "assignment"
    LEASES = "leases"
    NOTICE = "notice"


@dataclass(frozen=True, slots=True)
class Ending:
    """How the server ends a stream. `status` None is an orderly end, after a notice."""

    why: str
    status: grpc.StatusCode | None = None
    detail: str = ""


@dataclass(slots=True)
class _Parcel:
    """Bodies to be written one after the other; what is urgent goes between them."""

    kind: Sent
    bodies: tuple[bytes, ...]
    at: int = 0


class SyncStream:
    """Lives from Hello to the end of the stream, on the event loop's thread."""

    __slots__ = (
        "_answers",
        "_context",
        "_delta",
        "_delta_nonces",
        "_held_back_at",
        "_hub",
        "_nonce",
        "_received",
        "_remembered",
        "_reset_wanted",
        "_task",
        "_urgent",
        "_waiting",
        "_was_ahead",
        "_window_began_s",
        "_writer",
        "assignment_sequence",
        "cold",
        "draining",
        "ending",
        "host_id",
        "identity",
        "last_nack",
        "opening",
        "reported_s",
        "revision",
        "view",
        "waits_since_s",
    )

    def __init__(self, hub: Hub, context: Context, identity: Identity, view: View) -> None:
        self._hub = hub
        self._context = context
        self._task = asyncio.current_task()
        self.identity = identity
        self.host_id = identity.host_id
        self.view = view
        self.revision = 0
        """In force on the host, as far as we know."""
        self.assignment_sequence = 0
        self.draining = False
        self.cold = False
        """It holds one of the slots for cold syncs."""
        self.opening = True
        """Its first delta was not sent yet."""
        self.last_nack = ""
        self.reported_s = 0.0
        self.waits_since_s = 0.0
        """Monotonic: when the host last answered, while it owes an answer; 0: it owes none."""
        self.ending: Ending | None = None
        self._nonce = 0
        self._urgent: deque[_Parcel] | None = None
        self._waiting: deque[_Parcel] | None = None
        self._writer: asyncio.Task[None] | None = None
        self._answers: dict[int, Sent] = {}
        self._delta: EncodedDelta | None = None  # sent, and not answered yet
        self._delta_nonces: tuple[int, ...] | list[int] = ()
        self._held_back_at = -1  # a delta to this revision was refused: wait for another one
        self._reset_wanted = False
        self._was_ahead = False
        self._remembered = 0  # messages
        self._received = 0
        self._window_began_s = 0.0

    # ------------------------------------------------------------------------- sending

    @property
    def since(self) -> int:
        """The revision that the next delta builds on; 0: a reset."""
        return 0 if self._reset_wanted else self.revision

    @property
    def has_urgent(self) -> bool:
        """Whether something urgent was not written yet."""
        return bool(self._urgent)

    @property
    def wants_reset(self) -> bool:
        """Whether it was found to hold something else than we thought."""
        return self._reset_wanted

    @property
    def takes_delta(self) -> bool:
        """Whether a delta to the hub's revision may be sent now."""
        return (
            self._delta is None
            and not self.opening
            and not self.draining
            and self.ending is None
            and self._held_back_at != self._hub.revision
        )

    @property
    def was_refused(self) -> bool:
        """Whether the host refused what it was sent last."""
        return self._held_back_at >= 0

    def want_reset(self) -> None:
        """The next delta is the whole view."""
        self._reset_wanted = True
        self._held_back_at = -1

    def send(self, kind: Sent, *bodies: bytes, urgent: bool = False) -> None:
        """Queue messages; `urgent` ones overtake all others. A full queue ends the stream."""
        if self.ending is not None or not bodies:
            return
        self._queue(kind, bodies, urgent=urgent)

    def send_delta(self, delta: EncodedDelta) -> None:
        """Queue a delta; it is the only one until it is answered."""
        self._delta = delta
        self._delta_nonces = []
        self._reset_wanted = False
        self.send(Sent.DELTA, *delta.parts)

    def end(self, ending: Ending, notice: bytes | None = None) -> None:
        """End the stream, after the notice. Nothing else is sent any more."""
        if self.ending is not None:
            return
        self._waiting = None
        if notice is not None:
            self._queue(Sent.NOTICE, (notice,), urgent=False)
        self.ending = ending
        if notice is None:
            self.cut(ending)

    def cut(self, ending: Ending) -> None:
        """End the stream now: what is queued is dropped."""
        self.ending = ending
        self._urgent = self._waiting = None
        if self._writer is not None:
            self._writer.cancel()
            self._writer = None
        if self._task is not None:
            self._task.cancel()

    def _queue(self, kind: Sent, bodies: tuple[bytes, ...], *, urgent: bool) -> None:
        length = len(self._urgent or ()) + len(self._waiting or ())
        if length >= self._hub.limits.queue_messages:
            self._hub.refused("queue")
            self.cut(Ending("slow", grpc.StatusCode.RESOURCE_EXHAUSTED, "The host does not read"))
            return
        parcel = _Parcel(kind, bodies)
        if urgent:
            self._urgent = self._urgent or deque()
            self._urgent.append(parcel)
        else:
            self._waiting = self._waiting or deque()
            self._waiting.append(parcel)
        if self._writer is None:
            self._writer = asyncio.create_task(self._write())

    async def _write(self) -> None:
        """Write all that is queued, then end: an idle stream has no writer."""
        hub = self._hub
        try:
            while (parcel := self._next()) is not None:
                body = parcel.bodies[parcel.at]
                parcel.at += 1
                nonce = self._numbered(parcel.kind)
                async with asyncio.timeout(hub.limits.write_timeout_s):
                    await self._context.write(wire.framed(nonce, body))
                hub.sent(parcel.kind, len(body))
            self._writer = None
            if self.ending is not None and self._task is not None:
                self._task.cancel()
        except TimeoutError:
            self._writer = None
            hub.refused("slow")
            self.cut(Ending("slow", grpc.StatusCode.RESOURCE_EXHAUSTED, "The host does not read"))
        except (grpc.aio.UsageError, grpc.aio.InternalError, asyncio.InvalidStateError):
            self._writer = None  # the stream is gone; its handler is told by gRPC

    def _next(self) -> _Parcel | None:
        for queue in (self._urgent, self._waiting):
            while queue:
                if queue[0].at < len(queue[0].bodies):
                    return queue[0]
                queue.popleft()
        self._urgent = self._waiting = None
        return None

    def _drop_parts(self) -> None:
        """The rest of a delta that was refused before its end."""
        if self._waiting:
            self._waiting = deque(one for one in self._waiting if one.kind is not Sent.DELTA)

    def _numbered(self, kind: Sent) -> int:
        self._nonce += 1
        is_answered = kind in {Sent.DELTA, Sent.REVOCATIONS, Sent.ASSIGNMENT}
        if is_answered and not self.waits_since_s:
            self.waits_since_s = time.monotonic()
        if kind is Sent.DELTA and isinstance(self._delta_nonces, list):
            self._delta_nonces.append(self._nonce)
        elif kind in {Sent.REVOCATIONS, Sent.ASSIGNMENT}:
            if len(self._answers) >= _UNANSWERED_MAX:
                self._answers.pop(next(iter(self._answers)))
            self._answers[self._nonce] = kind
        return self._nonce

    # ----------------------------------------------------------------------- answers

    def may_remember(self) -> bool:
        """Whether the host may tell what we have forgotten: it refused a catalog as older."""
        self._remembered += 1
        return self._was_ahead and self._remembered <= _REMEMBERED_MAX

    def counts(self, now_s: float) -> bool:
        """Count a message of the host; False when it sends too many."""
        if now_s - self._window_began_s >= _RATE_WINDOW_S:
            self._window_began_s, self._received = now_s, 0
        self._received += 1
        return self._received <= self._hub.limits.messages_a_second * _RATE_WINDOW_S

    def acked(self, ack: sync_pb2.Ack) -> None:
        """The host has a message in force."""
        hub = self._hub
        if self._delta is None or ack.nonce not in self._delta_nonces:
            if self._answers.pop(ack.nonce, None) is None:
                hub.refused("nonce")
            else:
                hub.metrics.count("licplane_sync_acks_total")
                self._heard()
            return
        delta, self._delta, self._delta_nonces = self._delta, None, ()
        self._heard()
        hub.metrics.count("licplane_sync_acks_total")
        self.revision = delta.to_revision
        self.last_nack = ""
        self._held_back_at = -1
        if ack.revision != delta.to_revision:
            hub.refused("revision")
            self.want_reset()
        hub.settled(self)

    def nacked(self, nack: sync_pb2.Nack) -> None:
        """The host refuses a message; what it had stays in force."""
        hub = self._hub
        reason = _reason(nack.reason)
        known = self._answers.pop(nack.nonce, None)
        ours = self._delta is not None and nack.nonce in self._delta_nonces
        if known is None and not ours:
            hub.refused("nonce")
            return
        hub.metrics.count("licplane_sync_nacks_total", reason=reason)
        self.last_nack = f"{reason}: {nack.detail[:_STATEMENT_DETAIL_MAX]}"
        delta = self._delta
        if ours and delta is not None:
            self._delta, self._delta_nonces = None, ()
            self._drop_parts()
            self.revision = nack.revision
            mendable = nack.reason in {
                sync_pb2.NACK_REASON_DIGEST,
                sync_pb2.NACK_REASON_BASE,
            }
            if mendable and not delta.reset:
                hub.metrics.count("licplane_delta_resets_total", why=reason)
                self.want_reset()
            else:
                self._held_back_at = delta.to_revision
                # Its revisions are not ours where the database was put back from a copy.
                is_ahead = nack.reason == sync_pb2.NACK_REASON_ROLLBACK
                self._reset_wanted |= is_ahead
                self._was_ahead |= is_ahead
        self._heard()
        hub.settled(self)

    def _heard(self) -> None:
        """The host answered something; it may owe more."""
        owes = self._delta is not None or bool(self._answers)
        self.waits_since_s = time.monotonic() if owes else 0.0


def _reason(number: int) -> str:
    try:
        name = sync_pb2.NackReason.Name(number)  # type: ignore[arg-type]
    except ValueError:
        return "unspecified"
    return name.removeprefix("NACK_REASON_").lower()
