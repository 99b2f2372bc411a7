# SPDX-License-Identifier: Apache-2.0
"""The records of one sheet without an object for each. Pure.

Of 10,000 live processes each has a record in every sheet, and all but its quantities is the same
from one to the next. What is the same is a `UsageLine`, kept as long as its owner is known; a
sheet's records are lines and amounts, and become `UsageRecord` only for whoever looks at them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from licagent.domain.usage import Meter, UsageKind, UsageOwner, UsageRecord

COMPUTE_METERS: Final = (
    Meter.CPU_NS,
    Meter.READ_BYTES,
    Meter.WRITE_BYTES,
    Meter.CANCELLED_BYTES,
    Meter.MEMORY_BYTE_MS,
    Meter.PROCESSES,
)
Amounts = tuple[int, int, int, int, int, int]
"""Of COMPUTE_METERS, in their order."""


@dataclass(slots=True, eq=False)
class UsageLine:
    """Whose records are, and what they are charged to. Compared by identity."""

    owner: UsageOwner
    license: str = ""
    resource: str = ""
    binding: str = ""
    encoded: bytes = b""
    """For whoever writes records: its bytes, once they are made. Nothing else changes."""


@dataclass(frozen=True, slots=True)
class ComputeLines(Collection[UsageRecord]):
    """COMPUTE records of one interval."""

    start_unix_ms: int
    end_unix_ms: int
    rows: Sequence[tuple[UsageLine, Amounts]]
    """Each line once. No amount is negative, and one of each row is not zero."""
    estimated: frozenset[Meter] = frozenset()
    """A record has those of them in which it has a quantity."""
    unsupported: frozenset[Meter] = frozenset()

    def record(self, line: UsageLine, amounts: Amounts) -> UsageRecord:
        """One row as a record."""
        quantities = {
            meter: amount
            for meter, amount in zip(COMPUTE_METERS, amounts, strict=True)
            if amount > 0
        }
        return UsageRecord(
            kind=UsageKind.COMPUTE,
            start_unix_ms=self.start_unix_ms,
            end_unix_ms=self.end_unix_ms,
            quantities=quantities,
            owner=line.owner,
            license=line.license,
            resource=line.resource,
            binding=line.binding,
            estimated=self.estimated.intersection(quantities),
            unsupported=self.unsupported,
        )

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[UsageRecord]:
        for line, amounts in self.rows:
            yield self.record(line, amounts)

    def __contains__(self, record: object) -> bool:
        return any(each == record for each in self)


@dataclass(frozen=True, slots=True)
class SheetLines(Collection[UsageRecord]):
    """All records of a commit, in order."""

    before: Sequence[UsageRecord]
    compute: ComputeLines
    after: Sequence[UsageRecord]

    def __len__(self) -> int:
        return len(self.before) + len(self.compute) + len(self.after)

    def __iter__(self) -> Iterator[UsageRecord]:
        yield from self.before
        yield from self.compute
        yield from self.after

    def __contains__(self, record: object) -> bool:
        return any(each == record for each in self)
