# SPDX-License-Identifier: Apache-2.0
"""Messages to hosts as bytes: a delta is encoded once, however many streams it goes to."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, cast

from licapi.control.v1 import common_pb2, sync_pb2
from licplane.service.answers import ViewDelta
from licplane.service.values import CatalogObject, Kind
from lictoken.sealed import Seal

_NONCE_TAG: Final = b"\x08"  # ServerMessage.nonce: field 1, varint
_OVERHEAD_BYTES: Final = 64  # of an object and of a message, at most


@dataclass(frozen=True, slots=True)
class EncodedDelta:
    """A delta of a view, ready for any stream: bodies of ServerMessage without their nonces."""

    from_revision: int
    to_revision: int
    reset: bool
    digest: bytes
    count: int  # objects in `parts`
    revocations: tuple[bytes, ...]  # the statements in it, to be sent before
    parts: tuple[bytes, ...]

    @property
    def size_bytes(self) -> int:
        """Of all parts."""
        return sum(map(len, self.parts))


def framed(nonce: int, body: bytes) -> bytes:
    """The message with its nonce. Fields of a message may stand in any order (protobuf)."""
    number = bytearray(_NONCE_TAG)
    while nonce > 0x7F:
        number.append(nonce & 0x7F | 0x80)
        nonce >>= 7
    number.append(nonce)
    return bytes(number) + body


def sealed(seal: Seal) -> common_pb2.Sealed:
    """A seal as a message."""
    return common_pb2.Sealed(payload=seal.payload, kid=seal.kid, signature=seal.signature)


def encode_delta(delta: ViewDelta, manifest: Seal, part_bytes: int) -> EncodedDelta:
    """Encode `delta` in parts of at most `part_bytes`."""
    groups = list(_groups(delta.objects, part_bytes)) or [[]]
    parts: list[bytes] = []
    for at, group in enumerate(groups):
        last = at == len(groups) - 1
        message = sync_pb2.Delta(
            from_revision=delta.from_revision,
            to_revision=delta.to_revision,
            reset=delta.reset,
            more=not last,
            objects=map(_object, group),
            manifest=sealed(manifest) if last else None,
        )
        parts.append(sync_pb2.ServerMessage(delta=message).SerializeToString())
    return EncodedDelta(
        from_revision=delta.from_revision,
        to_revision=delta.to_revision,
        reset=delta.reset,
        digest=delta.digest,
        count=len(delta.objects),
        revocations=_revocations(delta.objects, part_bytes),
        parts=tuple(parts),
    )


def assignment(seal: Seal) -> bytes:
    """The body of a message with an assignment."""
    return sync_pb2.ServerMessage(assignment=sealed(seal)).SerializeToString()


def leases(seal: Seal) -> bytes:
    """The body of a message with leases."""
    return sync_pb2.ServerMessage(leases=sealed(seal)).SerializeToString()


def welcome(
    counter: bytes, *, server_time_unix_ms: int, lease_ttl_s: int, report_interval_s: int
) -> bytes:
    """The body of the first message."""
    message = sync_pb2.Welcome(
        counter=counter,
        server_time_unix_ms=server_time_unix_ms,
        lease_ttl_ms=lease_ttl_s * 1000,
        report_interval_ms=report_interval_s * 1000,
    )
    return sync_pb2.ServerMessage(welcome=message).SerializeToString()


def notice(code: sync_pb2.Notice.Code.ValueType, detail: str, retry_after_ms: int = 0) -> bytes:
    """The body of a notice."""
    message = sync_pb2.Notice(code=code, detail=detail, retry_after_ms=retry_after_ms)
    return sync_pb2.ServerMessage(notice=message).SerializeToString()


def _revocations(objects: Sequence[CatalogObject], part_bytes: int) -> tuple[bytes, ...]:
    found = [one for one in objects if one.kind is Kind.REVOCATION and not one.removed]
    return tuple(
        sync_pb2.ServerMessage(
            revocations=sync_pb2.Revocations(objects=map(_object, group))
        ).SerializeToString()
        for group in _groups(found, part_bytes)
    )


def _groups(objects: Iterable[CatalogObject], part_bytes: int) -> Iterator[list[CatalogObject]]:
    group: list[CatalogObject] = []
    room = part_bytes - 4 * _OVERHEAD_BYTES
    for one in objects:
        size = len(one.payload) + len(one.name.encode()) + _OVERHEAD_BYTES
        if group and size > room:
            yield group
            group, room = [], part_bytes - 4 * _OVERHEAD_BYTES
        group.append(one)
        room -= size
    if group:
        yield group


def _object(one: CatalogObject) -> common_pb2.Object:
    return common_pb2.Object(
        kind=cast("common_pb2.Kind.ValueType", int(one.kind)),
        name=one.name,
        revision=one.revision,
        removed=one.removed,
        payload=one.payload,
    )
