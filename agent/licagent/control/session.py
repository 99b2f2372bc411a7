# SPDX-License-Identifier: Apache-2.0
"""The link to the control plane over the life of the daemon: connect, sync, come back.

Loads gRPC only when `ControlSession.run` has somebody to talk to.
"""

from __future__ import annotations

from licagent.control.interface import (
    Assignment,
    BootCatalog,
    CatalogStorage,
    ControlCallbacks,
    ControlPhase,
    ControlSettings,
    ControlState,
    HostStatus,
    IdentityStorage,
    NackReason,
    NoticeCode,
    Refused,
)

__all__ = [
    "Assignment",
    "BootCatalog",
    "ControlCallbacks",
    "ControlPhase",
    "ControlSession",
    "ControlSettings",
    "ControlState",
    "HostStatus",
    "NackReason",
    "NoticeCode",
    "Refused",
]


class ControlSession:
    """One host's session. `boot`, then `run` as a task of the daemon's loop."""

    def __init__(
        self,
        identity_store: IdentityStorage,
        catalog_store: CatalogStorage,
        callbacks: ControlCallbacks,
        settings: ControlSettings,
    ) -> None:
        self._identities = identity_store
        self._catalogs = catalog_store
        self._callbacks = callbacks
        self._settings = settings
        self.state = ControlState()

    def boot(self) -> BootCatalog:
        """What is in force from before: read and verified, without the network. Blocking."""
        raise NotImplementedError

    async def run(self) -> None:
        """Until cancelled. Never raises for reasons of the network, the server or the disk."""
        raise NotImplementedError

    def wake(self) -> None:
        """The identity changed (`licagent enroll`), or somebody wants a try now."""
        raise NotImplementedError

    def ask_for_leases(self) -> None:
        """Ask for leases now, where there is a stream."""
        raise NotImplementedError
