# SPDX-License-Identifier: Apache-2.0
"""The ledger as the sampler needs it: records as bytes, and trouble as a word, not an error."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from typing import Final

from licagent.control.usage_wire import encode, encode_lines
from licagent.domain.usage import UsageKind, UsageRecord
from licagent.domain.usage_lines import SheetLines
from licagent.metering.spool import Refusal
from licagent.store.errors import StoreError
from licagent.store.ledger import Ledger
from licagent.store.ledger_types import LedgerFull

_log: Final = logging.getLogger(__name__)


class LedgerSpool:
    """`metering.spool.Spool` over a ledger."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self.problem = ""
        """Why the last frame was not taken; empty while all is well."""
        self.unwritable = 0
        """Records that no format can hold, since the daemon started: a fault of the meter."""

    @property
    def marks(self) -> Mapping[str, bytes]:
        """See `Spool`."""
        return self._ledger.marks

    def settle(self) -> bool:
        """See `Spool`."""
        try:
            self._ledger.settle()
        except (StoreError, OSError) as error:
            self.problem = str(error)
            return False
        return True

    def commit(
        self, records: Collection[UsageRecord], marks: Mapping[str, bytes]
    ) -> Refusal | None:
        """See `Spool`."""
        payloads = self._payloads(records)
        try:
            self._ledger.commit(payloads, marks)
        except LedgerFull as error:
            self.problem = str(error)
            return Refusal.FULL
        except (StoreError, OSError) as error:
            self.problem = str(error)
            return Refusal.BLOCKED
        self.problem = ""
        return None

    def _payloads(self, records: Iterable[UsageRecord]) -> list[bytes]:
        if isinstance(records, SheetLines):
            try:
                compute = encode_lines(records.compute)
            except ValueError:  # one of them: each for itself then
                compute = self._payloads(records.compute)
            return [*self._payloads(records.before), *compute, *self._payloads(records.after)]
        return [self._bytes(record) for record in records]

    def _bytes(self, record: UsageRecord) -> bytes:
        try:
            return encode(record)
        except ValueError as error:
            # One impossible number must not hold up all others. It is told of, never left out.
            self.unwritable += 1
            _log.error("a usage record cannot be written: %s: %r", error, record)
            gap = replace(
                record,
                kind=UsageKind.GAP,
                quantities={},
                detail=f"a record could not be written: {error}",
            )
            return encode(gap)
