# SPDX-License-Identifier: Apache-2.0
"""Leases: until when a host may use the licenses that its control plane gave it.

The end counts from the moment of the request, by CLOCK_BOOTTIME, which nobody can set and which
runs on through suspend. An answer that comes late, or again, is worth no more for that.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from licagent.domain.catalog import NackReason, Refused, SignedBytes


@dataclass(frozen=True, slots=True)
class Lease:
    """One license leased."""

    license: str  # the jti
    number: int
    generation: int  # an older token of the license has no lease


@dataclass(frozen=True, slots=True)
class LeaseRequest:
    """What was asked, and when."""

    nonce: bytes  # 16 random bytes; of an offline lease: made from the enrolment request
    boot_id: str
    requested_boottime_ns: int


@dataclass(frozen=True, slots=True)
class LeaseAnswer:
    """A lease bundle as the control plane signed it."""

    host_id: str
    key_fingerprint: bytes  # SHA-256 of the host key's SubjectPublicKeyInfo
    boot_id: str  # empty: an offline lease, for any boot
    nonce: bytes
    ttl_ms: int
    issued_at_unix_ms: int
    leases: tuple[Lease, ...]


@dataclass(frozen=True, slots=True)
class LeaseHolder:
    """Who asks."""

    host_id: str
    key_fingerprint: bytes
    boot_id: str


@dataclass(frozen=True, slots=True)
class LeaseSet:
    """The licenses leased to this host; one that is not named has no lease."""

    leases: Mapping[str, Lease]  # by the license's jti
    requested_boottime_ns: int
    end_boottime_ns: int  # CLOCK_BOOTTIME of this boot; 0: over

    def end_of(self, license_id: str, generation: int) -> int:
        """CLOCK_BOOTTIME until which this generation of a license is leased; 0: it is not."""
        lease = self.leases.get(license_id)
        if lease is None or generation < lease.generation:
            return 0
        return self.end_boottime_ns

    def ends_by_number(self) -> dict[int, int]:
        """License number -> CLOCK_BOOTTIME of the lease's end, in ns."""
        return {each.number: self.end_boottime_ns for each in self.leases.values()}


@dataclass(frozen=True, slots=True)
class StoredLeases:
    """A lease bundle on the disk, and the request that it answers."""

    bundle: SignedBytes
    nonce: bytes
    boot_id: str
    requested_boottime_ns: int


NO_LEASES = LeaseSet({}, 0, 0)
"""A host that was leased nothing."""


def accept(answer: LeaseAnswer, request: LeaseRequest, holder: LeaseHolder) -> LeaseSet:
    """The leases of an answer to `request`. Raises Refused(NOT_OURS) where it is not ours."""
    for what, found, wanted in (
        ("host", answer.host_id, holder.host_id),
        ("host key", answer.key_fingerprint.hex(), holder.key_fingerprint.hex()),
        ("boot", answer.boot_id, holder.boot_id),
        ("boot", request.boot_id, holder.boot_id),
        ("request", answer.nonce.hex(), request.nonce.hex()),
    ):
        if found != wanted:
            raise Refused(
                NackReason.NOT_OURS, f"the leases are for the {what} {found}, not for {wanted}"
            )
    return LeaseSet(
        {each.license: each for each in answer.leases},
        request.requested_boottime_ns,
        request.requested_boottime_ns + answer.ttl_ms * 1_000_000,
    )
