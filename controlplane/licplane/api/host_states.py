# SPDX-License-Identifier: Apache-2.0
"""Brings to a stream what its host itself is now: its status, assignment, view and certificate."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from licapi.control.v1 import sync_pb2
from licplane.api import wire
from licplane.api.site import Site
from licplane.api.stream import Ending, Sent, SyncStream
from licplane.errors import ExitCode, PlaneError
from licplane.issuer.authority import BACKDATE
from licplane.service.values import SERVED, HostStatus

if TYPE_CHECKING:
    from licplane.api.hub import Hub
    from licplane.service.answers import HostState

_RENEW_MIN_MS: Final = 500
_RENEW_EACH_MS: Final = 20
_RENEW_MAX_MS: Final = 600_000
_BACKDATED_MS: Final = int(BACKDATE.total_seconds() * 1000)

NOTICES: Final = {
    HostStatus.CLONED: (
        sync_pb2.Notice.CODE_CLONED,
        "Two machines speak for this host; see `licplane host split`",
    ),
    HostStatus.EVICTED: (
        sync_pb2.Notice.CODE_EVICTED,
        "The host was evicted; enrol it again with a new join token",
    ),
    HostStatus.BANNED: (sync_pb2.Notice.CODE_BANNED, "The host was banned"),
}


class HostStates:
    """Acts on the states of the hosts whose streams the hub has."""

    def __init__(self, site: Site, hub: Hub) -> None:
        self._site = site
        self._hub = hub
        self._roots_changed_ms = 0

    async def changed(self, host_id: str) -> None:
        """Something about the host is another now: read what, and act on it."""
        state: HostState | None = None
        try:
            state = await self._site.catalog(self._site.plane.host_state, host_id)
        except PlaneError as error:
            if error.code is not ExitCode.NOT_FOUND:
                raise
        stream = self._hub.streams.get(host_id)
        if stream is not None and state is not None:
            self.take(stream, state)
        elif stream is not None:
            self.dismiss(stream, HostStatus.EVICTED)  # there is no such host any more

    def take(self, stream: SyncStream, state: HostState) -> None:
        """Act on what the host is now: end its stream, tell it, or show it another view."""
        if state.status not in SERVED:
            self.dismiss(stream, state.status)
            return
        if state.assignment_sequence > stream.assignment_sequence:
            stream.assignment_sequence = state.assignment_sequence
            stream.send(Sent.ASSIGNMENT, wire.assignment(state.assignment))
        draining, stream.draining = stream.draining, state.status is not HostStatus.ACTIVE
        if state.view != stream.view:
            self._hub.show(stream, state.view)
            stream.want_reset()
            self._site.metrics.count("licplane_delta_resets_total", why="view")
            self._hub.offer(stream)
        elif draining and not stream.draining:
            self._hub.offer(stream)

    def dismiss(self, stream: SyncStream, status: HostStatus) -> None:
        """Tell the host what became of it, and end its stream."""
        if status is HostStatus.CLONED:
            self._site.metrics.count("licplane_clones_total")
        code, detail = NOTICES[status]
        if self._hub.detach(stream):
            self._hub.gone(stream.host_id)  # its handler finds it detached already
        stream.end(Ending(status.name.lower()), wire.notice(code, detail))

    def roots_changed(self, changed_ms: int) -> None:
        """Let every host whose certificate is older take a new one, and the roots with it."""
        if changed_ms == self._roots_changed_ms:
            return
        self._roots_changed_ms = changed_ms
        for stream in self._hub.streams.values():
            self.ask_to_renew(stream)

    def ask_to_renew(self, stream: SyncStream) -> None:
        """Where its certificate is older than the authorities: at a random moment soon."""
        if stream.identity.issued_unix_ms + _BACKDATED_MS > self._roots_changed_ms:
            return
        within_ms = min(_RENEW_MAX_MS, _RENEW_MIN_MS + _RENEW_EACH_MS * len(self._hub.streams))
        detail = "The control plane's certification authorities have changed"
        stream.send(Sent.NOTICE, wire.notice(sync_pb2.Notice.CODE_RENEW, detail, within_ms))
