# SPDX-License-Identifier: Apache-2.0
"""How this host gets its identity and keeps it: join tokens, renewal, bundles from a file.

Run in the daemon, which holds the state folder. Loads gRPC when it talks to a server.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from licagent.control.interface import (
        CatalogStorage,
        ControlSettings,
        IdentityStorage,
        Machine,
    )


class EnrolmentFailed(Exception):
    """Enrolment did not happen; the message says what to do. What was there before stands."""

    def __init__(self, message: str, *, code: str = "refused", is_network: bool = False) -> None:
        """`code` is a word for scripts: join, network, refused, exists, other-host, bundle."""
        super().__init__(message)
        self.code = code
        self.is_network = is_network


class EnrolmentMode(StrEnum):
    """What is to become of an identity that the host has."""

    KEEP = "keep"  # use its key; the same host again changes nothing
    AGAIN = "again"  # a new key for the same host_id (the machine to keep, after a clone)
    NEW = "new"  # a new key and a new host_id (the clone; another control plane)


@dataclass(frozen=True, slots=True)
class EnrolmentResult:
    """What an enrolment came to."""

    host_id: str
    changed: bool  # False: the host was enrolled already
    labels: dict[str, str]
    not_after_unix_ms: int  # end of the certificate
    control_address: str


async def enroll(
    join: str,
    identities: IdentityStorage,
    catalogs: CatalogStorage,
    machine: Machine,
    *,
    mode: EnrolmentMode = EnrolmentMode.KEEP,
    timeout_s: float = 30.0,
) -> EnrolmentResult:
    """Become a host by a join token (`licjoin1....`). Raises EnrolmentFailed."""
    raise NotImplementedError


def enrolment_request(
    identities: IdentityStorage, machine: Machine, *, mode: EnrolmentMode = EnrolmentMode.KEEP
) -> bytes:
    """The text of a request file for `licplane host admit`, for a host with no network."""
    raise NotImplementedError


def enroll_from_bundle(
    data: bytes,
    identities: IdentityStorage,
    catalogs: CatalogStorage,
    settings: ControlSettings,
    *,
    mode: EnrolmentMode = EnrolmentMode.KEEP,
) -> EnrolmentResult:
    """Become a host by the bundle that `licplane host admit` made. Raises EnrolmentFailed.

    The catalog and leases in the bundle are in the stores afterwards: `ControlSession.boot`
    reads them.
    """
    raise NotImplementedError
