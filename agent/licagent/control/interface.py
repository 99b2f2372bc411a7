# SPDX-License-Identifier: Apache-2.0
"""Between the control session and the daemon: what each asks of the other. Loads no gRPC."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum, StrEnum
from typing import Protocol

from licagent.control.report import HostReport
from licagent.domain.catalog import (
    CatalogObject,
    CatalogView,
    NackReason,
    ObjectKey,
    Refused,
    SignedBytes,
    StoredCatalog,
    ViewKey,
)
from licagent.domain.hostidentity import Identity
from licagent.domain.lease import LeaseSet, StoredLeases

__all__ = [
    "Assignment",
    "BootCatalog",
    "CatalogStorage",
    "CatalogWrite",
    "ControlCallbacks",
    "ControlPhase",
    "ControlSettings",
    "ControlState",
    "HostStatus",
    "Identity",
    "IdentityStorage",
    "Machine",
    "NackReason",
    "NoticeCode",
    "Refused",
    "StoredCatalog",
    "StoredLeases",
]


class HostStatus(IntEnum):
    """What the control plane holds of this host; numbers as in licapi.control.v1."""

    UNSPECIFIED = 0
    ACTIVE = 1
    EVICTED = 2
    BANNED = 3
    CLONED = 4
    DRAINING = 5
    LEAVING = 6


class NoticeCode(IntEnum):
    """What the control plane had to tell; numbers as in licapi.control.v1.Notice."""

    UNSPECIFIED = 0
    RETRY_LATER = 1
    SUPERSEDED = 2
    CLONED = 3
    EVICTED = 4
    BANNED = 5
    GOING_AWAY = 6
    RENEW = 7
    VERSION = 100
    """Not of the protocol's: the stream was refused because of this agent's version."""


class ControlPhase(StrEnum):
    """Where the session stands."""

    UNENROLLED = "unenrolled"  # `licagent enroll` has not been run
    CONNECTING = "connecting"
    CONNECTED = "connected"  # Welcome has come
    WAITING = "waiting"  # the link is down; the next try is due at retry_at_unix_ms
    STOPPED = "stopped"  # evicted or banned: no more tries until it is enrolled again


@dataclass(frozen=True, slots=True)
class Assignment:
    """What this host is in the eyes of the control plane; verified."""

    host_id: str
    labels: Mapping[str, str]
    sequence: int
    status: HostStatus
    issued_at_unix_ms: int

    @property
    def view(self) -> ViewKey:
        """The part of the catalog that these labels let the host see."""
        return ViewKey.of(self.labels)


@dataclass(frozen=True, slots=True)
class Machine:
    """What a host says of itself when it enrols."""

    hostname: str
    machine_id: str  # 32 hex digits, or empty
    boot_id: str
    agent_version: str
    kernel_release: str


@dataclass(frozen=True, slots=True)
class ControlState:
    """For `licagent status`. Times are unix milliseconds by the host's clock; 0: never."""

    phase: ControlPhase = ControlPhase.UNENROLLED
    server: str = ""  # host:port of the control listener
    host_id: str = ""
    labels: Mapping[str, str] | None = None  # of the assignment
    assignment_sequence: int = 0
    host_status: HostStatus = HostStatus.UNSPECIFIED
    connected_since_unix_ms: int = 0
    last_contact_unix_ms: int = 0  # the last message of the server
    retry_at_unix_ms: int = 0  # of the next try while WAITING
    attempts: int = 0  # failed ones since the last Welcome
    revision: int = 0  # of the catalog in force
    newest_revision: int = 0  # the newest that was offered
    objects: int = 0  # of the catalog in force
    last_sync_unix_ms: int = 0  # the last ACK of a delta
    last_error: str = ""  # of the link; empty while it is well
    last_refusal: str = ""  # of the last delta that was NACKed; empty once one was taken
    lease_end_boottime_ns: int = 0
    leased_licenses: int = 0
    certificate_end_unix_ms: int = 0
    renewal_error: str = ""
    notice: NoticeCode = NoticeCode.UNSPECIFIED  # the last one that still holds
    notice_detail: str = ""
    reports_sent: int = 0

    @property
    def lag_revisions(self) -> int:
        """How many revisions the host is known to be behind."""
        return max(0, self.newest_revision - self.revision)


@dataclass(frozen=True, slots=True)
class BootCatalog:
    """What a host goes on with before there is a network."""

    catalog: CatalogView | None  # None: nothing stored, or what is stored is refused
    assignment: Assignment | None
    leases: LeaseSet
    problems: tuple[str, ...] = ()  # what was refused, and what to do


class ControlCallbacks(Protocol):
    """What the daemon does for the session.

    One call at a time, but for two: `report`, and `apply_revocations`, which does not wait for
    a catalog that is just being applied.

    What raises Refused is told to the server as a NACK; anything else that is raised counts as
    Refused(KERNEL), with its traceback in the log.
    """

    async def apply_revocations(self, tokens: Sequence[bytes]) -> None:
        """Put signed statements in force and on disk, now. Each may have come before.

        Take those that verify, even when others do not; then raise Refused(SIGNATURE).
        """

    async def apply_catalog(self, view: CatalogView) -> None:
        """Bring the kernel to `view`; returns when it is there, not before.

        Raises Refused, with what was in force before still in force. Called with `is_whole`
        for a reset, and to go back where the disk could not take what the kernel took.
        """

    async def apply_leases(self, leases: LeaseSet) -> None:
        """Write lease ends to the kernel's license slots; replaces all leases before."""

    async def apply_assignment(self, assignment: Assignment) -> None:
        """Labels or status of this host changed: judge all licenses again."""

    async def report(self) -> HostReport:
        """The host's state now, for telemetry."""

    def notice(self, code: NoticeCode, detail: str) -> None:
        """The server told something that people should know of (an event, the log)."""

    def changed(self, state: ControlState) -> None:
        """`ControlSession.state` changed. Return at once."""


def _boottime_ns() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


@dataclass(frozen=True, slots=True)
class ControlSettings:
    """What the daemon knows and the session needs."""

    boot_id: str
    agent_version: str
    server: str = ""  # host:port instead of the one learned at enrolment
    public_server: str = ""  # the same for the public listener
    report_interval_ms: int = 0  # 0: as the server says
    keepalive_ms: int = 15_000  # a silent link is asked for a sign of life that often
    keepalive_timeout_ms: int = 8_000  # and is given up that much later
    backoff_first_ms: int = 1_000
    backoff_cap_ms: int = 480_000
    deadline_of_unix_s: Callable[[int], int] | None = None
    """Trusted clock: unix seconds -> CLOCK_BOOTTIME ns (TrustedClock.deadline_boottime_ns); needed
    for offline leases, which last until a date. None: they count as over."""
    boottime_ns: Callable[[], int] = _boottime_ns
    unix_s: Callable[[], float] = time.time


class IdentityStorage(Protocol):
    """Where the identity is kept (licagent.store.identity)."""

    def load(self) -> Identity | None:
        """The host's identity, or None. Raises an error that says what to do."""

    def save(self, identity: Identity) -> None:
        """Replace it, durably."""

    def replace(self, old: Identity, new: Identity) -> bool:
        """Save `new` if `old` is what is kept; False if the host has become another one."""

    def pending_key(self) -> bytes | None:
        """The key of an enrolment that was begun and not ended (PKCS #8, PEM)."""

    def keep_pending_key(self, key_pem: bytes) -> None:
        """Keep a key durably before it is shown to the server."""

    def drop_pending_key(self) -> None:
        """The enrolment is done."""


class CatalogWrite(Protocol):
    """A change of the stored catalog that is not in force yet."""

    def commit(self) -> None:
        """Make it durable, whole. Raises Refused(DISK) with the old one in place."""

    def rollback(self) -> None:
        """Forget it."""


class CatalogStorage(Protocol):
    """Where the catalog is kept (licagent.store.catalog). Methods block; any thread may call."""

    def load(self) -> StoredCatalog | None:
        """What was committed last, or None. Raises where the file is torn."""

    def begin(
        self,
        host_id: str,
        manifest: SignedBytes,
        put: Sequence[CatalogObject],
        removed: Sequence[ObjectKey],
        *,
        reset: bool,
    ) -> CatalogWrite:
        """Write a change up to its commit. Raises Refused(DISK)."""

    def load_leases(self) -> StoredLeases | None:
        """The newest lease bundle, or None."""

    def save_leases(self, leases: StoredLeases) -> None:
        """Replace it, durably. Raises Refused(DISK)."""

    def clear(self) -> None:
        """Forget catalog and leases: the host has become another one."""
