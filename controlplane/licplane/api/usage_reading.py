# SPDX-License-Identifier: Apache-2.0
"""Usage records from their bytes. What cannot be billed is set aside by itself, with a reason."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterable, Sequence
from operator import attrgetter
from typing import Final

from google.protobuf.message import DecodeError

from licapi.control.v1 import telemetry_pb2
from licplane.service.remembering import Remembered
from licplane.service.usage.values import ReadRecords
from licplane.store.usage_model import METER_FIRST, METERS, Owner, SetAside, UsageKind, UsageRow
from lictoken.claims import I64_MAX

RECORD_BYTES_MAX: Final = 16 * 1024
_TEXT_BYTES_MAX: Final = 1024
_TIME_MAX_MS: Final = 253_402_300_799_999  # 9999-12-31
_UID_MAX: Final = 2**32 - 1
_PROTOCOL_MAX: Final = 255
_MASK_BITS: Final = 62
_KINDS: Final = frozenset(map(int, UsageKind))
_KNOWN_BYTES: Final = 32 * 1024 * 1024
_ENTRY_BYTES: Final = 600
"""What an entry takes besides its texts."""

_texts = attrgetter(
    "unit", "cgroup", "user", "uid", "executable", "license", "resource", "binding", "detail"
)
_numbers = attrgetter(
    "kind", "start_unix_ms", "end_unix_ms", "pid", "process_start_unix_ms", "protocol", "loopback"
)
_quantities = attrgetter(*(name for name, _ in METERS))

_Texts = tuple[str, str, str, int, str, str, str, str, str]


class RecordReader:
    """Reads batches. It remembers texts that it has judged. Threads may share it."""

    def __init__(self, known_bytes: int = _KNOWN_BYTES) -> None:
        self._known: Remembered[_Texts, Owner | str] = Remembered(known_bytes)

    def read(self, first: int, records: Sequence[bytes]) -> ReadRecords:
        """The rows of these records, the first of which has sequence `first`."""
        rows: list[UsageRow] = []
        refused: list[SetAside] = []
        known = self._known
        parse = telemetry_pb2.UsageRecord.FromString
        sha256 = hashlib.sha256
        for sequence, data in enumerate(records, first):
            if len(data) > RECORD_BYTES_MAX:
                refused.append(SetAside(sequence, "it is too long", data))
                continue
            try:
                message = parse(data)
            except DecodeError:
                refused.append(SetAside(sequence, "it is no usage record", data))
                continue
            texts: _Texts = _texts(message)
            owner = known.get(texts)
            if owner is None:
                owner = _judged(texts)
                known.put(texts, owner, _ENTRY_BYTES + sum(map(sys.getsizeof, texts)))
            kind, start_ms, end_ms, pid, began_ms, protocol, loopback = _numbers(message)
            quantities: tuple[int, ...] = _quantities(message)
            why = (
                owner
                if isinstance(owner, str)
                else _why_not(
                    kind,
                    start_ms=start_ms,
                    end_ms=end_ms,
                    began_ms=began_ms,
                    protocol=protocol,
                    largest=max(quantities),
                )
            )
            if why:
                refused.append(SetAside(sequence, why, data))
                continue
            assert isinstance(owner, Owner)  # noqa: S101 -- else there is a reason
            rows.append(
                UsageRow(
                    sequence,
                    kind,
                    start_ms,
                    end_ms,
                    texts[5],
                    texts[6],
                    texts[7],
                    owner,
                    pid,
                    began_ms,
                    protocol,
                    1 if loopback else 0,
                    _mask(message.estimated) if message.estimated else 0,
                    _mask(message.unsupported) if message.unsupported else 0,
                    texts[8],
                    sha256(data).digest(),
                    quantities,
                )
            )
        return ReadRecords(
            rows,
            refused,
            min((row.start_ms for row in rows), default=0),
            max((row.end_ms for row in rows), default=0),
        )


def _judged(texts: _Texts) -> Owner | str:
    """The owner, or why these texts cannot be stored."""
    unit, cgroup, user, uid, executable, *others = texts
    for text in (unit, cgroup, user, executable, *others):
        if "\0" in text:
            return "a text holds a NUL"
        if len(text.encode()) > _TEXT_BYTES_MAX:
            return "a text is too long"
    if not -1 <= uid <= _UID_MAX:
        return "there is no such user id"
    return Owner(unit, cgroup, user, uid, executable)


def _why_not(
    kind: int, *, start_ms: int, end_ms: int, began_ms: int, protocol: int, largest: int
) -> str:
    if kind not in _KINDS:
        return f"its kind {kind} is not known"
    if not 0 <= start_ms <= end_ms <= _TIME_MAX_MS:
        return "its times make no sense"
    if not 0 <= began_ms <= _TIME_MAX_MS:
        return "the start of its process makes no sense"
    if protocol > _PROTOCOL_MAX:
        return "there is no such protocol"
    if largest > I64_MAX:
        return "a quantity is too large"
    return ""


def _mask(fields: Iterable[int]) -> int:
    """One bit for each meter. Those that this program does not know are of a newer agent."""
    mask = 0
    for field in fields:
        if METER_FIRST <= field < METER_FIRST + _MASK_BITS:
            mask |= 1 << (field - METER_FIRST)
    return mask
