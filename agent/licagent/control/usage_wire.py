# SPDX-License-Identifier: Apache-2.0
"""Usage records as bytes, and the messages of the stream that carries them."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, Final
from weakref import WeakKeyDictionary

from google.protobuf.message import DecodeError

from licagent.control.texts import sendable
from licagent.control.usage_source import BatchShape, EpochShape, GapShape
from licagent.domain.usage import Meter, UsageKind, UsageOwner, UsageRecord
from licagent.domain.usage_lines import COMPUTE_METERS, ComputeLines
from licapi.control.v1 import telemetry_pb2

TEXT_BYTES_MAX: Final = 1024
"""Longer texts are cut (a cgroup's path may have 4 KiB)."""
_U64_MAX: Final = 2**64 - 1
_HEAD_BYTES: Final = 16
_CHARGES_MAX: Final = 16
_NO_METERS: Final[frozenset[Meter]] = frozenset()
_BY_NUMBER: Final = {int(meter): meter for meter in Meter}
_KEYS: Final = {meter: meter.key for meter in Meter}


class RecordDamaged(ValueError):
    """Bytes that are no usage record."""


def encode(record: UsageRecord) -> bytes:
    """A record's bytes: what is hashed, signed, stored and billed.

    Raises ValueError for a quantity or a time that the format cannot hold (negative, or beyond
    64 bits): such a number is a fault of ours, and must not be sent as another one.
    """
    fields: dict[str, int] = {}
    for meter, quantity in record.quantities.items():
        if not 0 <= quantity <= _U64_MAX:
            raise ValueError(f"{meter.key} is {quantity}")
        fields[_KEYS[meter]] = quantity
    parts = [
        _head(record.kind, record.start_unix_ms, record.end_unix_ms),
        _whose(record.owner, record.license, record.resource, record.binding),
    ]
    if any((record.protocol, record.is_loopback, record.detail)) or (
        record.estimated or record.unsupported
    ):
        parts.append(
            _serialized(
                protocol=record.protocol,
                loopback=record.is_loopback,
                detail=sendable(record.detail, TEXT_BYTES_MAX),
                estimated=sorted(record.estimated),
                unsupported=sorted(record.unsupported),
            )
        )
    parts.append(_serialized(**fields))
    return b"".join(parts)


def encode_lines(lines: ComputeLines) -> list[bytes]:
    """What `encode` makes of each of these records, at a fraction of the cost.

    Raises ValueError for a number that the format cannot hold; which one, `encode` says.
    """
    head = _head(UsageKind.COMPUTE, lines.start_unix_ms, lines.end_unix_ms)
    estimated = [place for place, meter in enumerate(COMPUTE_METERS) if meter in lines.estimated]
    # The kernel's sheets have one such meter, memory: looked at without a call for each row.
    one = estimated[0] if len(estimated) == 1 else -1
    quality = _quality(lines, ())
    with_it = _quality(lines, estimated)
    message = telemetry_pb2.UsageRecord()  # one for all: each sets what the last one had
    serialize = message.SerializeToString
    is_clear = True
    made = []
    for line, amounts in lines.rows:
        cpu_ns, read, written, cancelled, memory, ended = amounts
        message.cpu_ns = cpu_ns
        message.memory_byte_ms = memory
        if read or written or cancelled or ended:
            is_clear = False
            message.read_bytes = read
            message.write_bytes = written
            message.cancelled_bytes = cancelled
            message.processes = ended
        elif not is_clear:
            is_clear = True
            message.read_bytes = message.write_bytes = 0
            message.cancelled_bytes = message.processes = 0
        whose = line.encoded
        if not whose:
            whose = _whose_bytes(line.owner, line.license, line.resource, line.binding)
            line.encoded = whose
        if one >= 0:
            said = with_it if amounts[one] else quality
        elif estimated:
            said = _quality(lines, [place for place in estimated if amounts[place]])
        else:
            said = quality
        made.append(head + whose + said + serialize())
    return made


def _quality(lines: ComputeLines, estimated: Sequence[int]) -> bytes:
    """What a record says of its quantities; `estimated`: places of those that it has."""
    return _quality_bytes(tuple(COMPUTE_METERS[place] for place in estimated), lines.unsupported)


@functools.lru_cache(maxsize=256)
def _quality_bytes(estimated: tuple[Meter, ...], unsupported: frozenset[Meter]) -> bytes:
    return _serialized(estimated=sorted(estimated), unsupported=sorted(unsupported))


def _serialized(**fields: Any) -> bytes:
    return telemetry_pb2.UsageRecord(**fields).SerializeToString(deterministic=True)


# A message is the bytes of its fields one after the other, in the order of their numbers
# (protobuf's encoding, "message structure"): what many records share is made once.


@functools.lru_cache(maxsize=64)
def _head(kind: UsageKind, start_unix_ms: int, end_unix_ms: int) -> bytes:
    return _serialized(kind=int(kind), start_unix_ms=start_unix_ms, end_unix_ms=end_unix_ms)


_made: Final[WeakKeyDictionary[UsageOwner, dict[tuple[str, str, str], bytes]]] = WeakKeyDictionary()
"""By owner, for as long as somebody has him: who is alive has a record in each sheet."""


def _whose(owner: UsageOwner, license_: str, resource: str, binding: str) -> bytes:
    its = _made.get(owner)
    if its is None:
        its = _made[owner] = {}
    charge = (license_, resource, binding)
    data = its.get(charge)
    if data is None:
        if len(its) >= _CHARGES_MAX:
            its.clear()
        data = its[charge] = _whose_bytes(owner, license_, resource, binding)
    return data


def _whose_bytes(owner: UsageOwner, license_: str, resource: str, binding: str) -> bytes:
    return _serialized(
        license=sendable(license_, TEXT_BYTES_MAX),
        resource=sendable(resource, TEXT_BYTES_MAX),
        binding=sendable(binding, TEXT_BYTES_MAX),
        unit=sendable(owner.unit, TEXT_BYTES_MAX),
        cgroup=sendable(owner.cgroup, TEXT_BYTES_MAX),
        user=sendable(owner.user, TEXT_BYTES_MAX),
        uid=owner.uid,
        executable=sendable(owner.executable, TEXT_BYTES_MAX),
        pid=owner.pid,
        process_start_unix_ms=owner.process_start_unix_ms,
    )


def decode(data: bytes) -> UsageRecord:
    """The record in these bytes. Meters that are zero are left out, as `encode` leaves them out.

    Raises RecordDamaged for what is no record, or one of a kind that this program does not know.
    """
    try:
        message = telemetry_pb2.UsageRecord.FromString(data)
        kind = UsageKind(message.kind)
    except (DecodeError, ValueError) as error:
        raise RecordDamaged(f"no usage record ({error})") from error
    # Only what is set: a week's ledger has millions of records, and most fields of one are not.
    quantities: dict[Meter, int] = {}
    for field, value in message.ListFields():
        meter = _BY_NUMBER.get(field.number)
        if meter is not None:
            quantities[meter] = value
    return UsageRecord(
        kind=kind,
        start_unix_ms=message.start_unix_ms,
        end_unix_ms=message.end_unix_ms,
        quantities=quantities,
        owner=_owner(
            message.unit,
            message.cgroup,
            message.user,
            message.uid,
            message.executable,
            message.pid,
            message.process_start_unix_ms,
        ),
        license=message.license,
        resource=message.resource,
        binding=message.binding,
        protocol=message.protocol,
        is_loopback=message.loopback,
        estimated=_meters(tuple(message.estimated)) if message.estimated else _NO_METERS,
        unsupported=_meters(tuple(message.unsupported)) if message.unsupported else _NO_METERS,
        detail=message.detail,
    )


def interval(data: bytes) -> tuple[int, int] | None:
    """Start and end of a record that `encode` made, at a tenth of the cost of `decode`.

    None where that cannot be told from its beginning: then decode it.
    """
    return _interval(data[:_HEAD_BYTES])


@functools.lru_cache(maxsize=64)
def _interval(head: bytes) -> tuple[int, int] | None:
    # A kind of one byte and two times of six: of 1971 to 2109.
    if len(head) != _HEAD_BYTES or (head[0], head[2], head[9]) != (0x08, 0x10, 0x18):
        return None
    if head[8] & 0x80 or head[15] & 0x80:
        return None
    try:
        message = telemetry_pb2.UsageRecord.FromString(head)
    except DecodeError:
        return None
    return message.start_unix_ms, message.end_unix_ms


_owner: Final = functools.lru_cache(maxsize=4096)(UsageOwner)
"""One owner has many records."""


def hello_message(epoch: EpochShape) -> telemetry_pb2.UsageUp:
    """What a stream begins with."""
    return telemetry_pb2.UsageUp(
        hello=telemetry_pb2.UsageHello(
            epoch=epoch.epoch,
            public_key=epoch.public_key,
            boot_id=epoch.boot_id,
            first_sequence=epoch.first_sequence,
            next_sequence=epoch.next_sequence,
        )
    )


def batch_message(batch: BatchShape) -> telemetry_pb2.UsageUp:
    """A batch as it is sent."""
    return telemetry_pb2.UsageUp(
        batch=telemetry_pb2.UsageBatch(
            epoch=batch.epoch,
            boot_id=batch.boot_id,
            first_sequence=batch.first,
            records=batch.records,
            previous_hash=batch.previous_hash,
            hash=batch.hash,
            signature=batch.signature,
        )
    )


def gap_message(gap: GapShape) -> telemetry_pb2.UsageUp:
    """A named gap as it is sent."""
    return telemetry_pb2.UsageUp(
        gap=telemetry_pb2.UsageGap(
            epoch=gap.epoch,
            first_sequence=gap.first,
            last_sequence=gap.last,
            reason=gap.reason,
            next_previous_hash=gap.next_previous_hash,
            signature=gap.signature,
        )
    )


@functools.lru_cache(maxsize=256)
def _meters(numbers: tuple[int, ...]) -> frozenset[Meter]:
    return frozenset(_BY_NUMBER[one] for one in numbers if one in _BY_NUMBER)
