# SPDX-License-Identifier: Apache-2.0
"""The bytes inside sealed messages: the one place of the service that knows the wire format."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from licapi.control.v1 import common_pb2, sync_pb2
from licplane.service.values import HostStatus, View


@dataclass(frozen=True, slots=True)
class LeaseTerms:
    """One license of a lease bundle."""

    license: str
    number: int
    generation: int


def manifest(view: View, revision: int, digest: bytes, count: int, now_ms: int) -> bytes:
    """A SnapshotManifest."""
    return sync_pb2.SnapshotManifest(
        view=view_message(view),
        revision=revision,
        digest=digest,
        objects=count,
        issued_at_unix_ms=now_ms,
    ).SerializeToString(deterministic=True)


def assignment(
    host_id: str, labels: Mapping[str, str], sequence: int, status: HostStatus, now_ms: int
) -> bytes:
    """An Assignment."""
    return common_pb2.Assignment(
        host_id=host_id,
        labels=labels,
        sequence=sequence,
        status=common_pb2.HostStatus.ValueType(status.value),
        issued_at_unix_ms=now_ms,
    ).SerializeToString(deterministic=True)


def lease_bundle(
    host_id: str,
    key_fingerprint: bytes,
    boot_id: str,
    nonce: bytes,
    *,
    ttl_ms: int,
    now_ms: int,
    leases: Iterable[LeaseTerms],
) -> bytes:
    """A LeaseBundle."""
    return sync_pb2.LeaseBundle(
        host_id=host_id,
        key_fingerprint=key_fingerprint,
        boot_id=boot_id,
        nonce=nonce,
        ttl_ms=ttl_ms,
        issued_at_unix_ms=now_ms,
        leases=[
            sync_pb2.Lease(license=one.license, number=one.number, generation=one.generation)
            for one in leases
        ],
    ).SerializeToString(deterministic=True)


def view_message(view: View) -> common_pb2.View:
    """A view as a message."""
    return common_pb2.View(
        org=view.org, project=view.project, environment=view.environment, region=view.region
    )
