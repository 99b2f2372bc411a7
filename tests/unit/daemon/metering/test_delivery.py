# SPDX-License-Identifier: Apache-2.0
"""What the ledger sets aside is told to the control plane in the epoch that follows."""

from __future__ import annotations

from pathlib import Path

from licagent.control.usage_wire import encode
from licagent.daemon.metering.delivery import LedgerSource
from licagent.domain.usage import Meter, UsageKind, UsageRecord
from licagent.store.ledger import Ledger
from licagent.store.ledger_types import Batch


def record(number: int) -> bytes:
    times = (number * 1000, number * 1000 + 1000)
    return encode(UsageRecord(UsageKind.COMPUTE, *times, {Meter.CPU_NS: number}))


def test_what_is_set_aside_is_named_with_its_numbers_and_time(tmp_path: Path) -> None:
    told: list[tuple[int, int, str]] = []
    ledger = Ledger(tmp_path / "usage", boot_id="one")
    source = LedgerSource(ledger, lambda *gap: told.append(gap))
    ledger.commit([record(1), record(2)], {})
    [first] = source.batches(0, limit_bytes=10**6)
    assert isinstance(first, Batch)
    assert source.acknowledge(first.last, first.hash)
    ledger.commit([record(5), record(6), record(7)], {})
    [state] = source.epochs()
    source.diverged(state.epoch, "another chain")
    source.diverged(state.epoch, "twice is once")
    [(start_ms, end_ms, detail)] = told
    assert start_ms == 5000
    assert end_ms > start_ms
    assert detail == f"records 3 to 5 of epoch {state.epoch} are not delivered: another chain"
    [newest] = source.epochs()
    assert newest.epoch > state.epoch
    ledger.close()


def test_an_epoch_that_is_wholly_acknowledged_lacks_nothing(tmp_path: Path) -> None:
    told: list[tuple[int, int, str]] = []
    ledger = Ledger(tmp_path / "usage", boot_id="one")
    source = LedgerSource(ledger, lambda *gap: told.append(gap))
    ledger.commit([record(1)], {})
    [first] = source.batches(0, limit_bytes=10**6)
    assert isinstance(first, Batch)
    assert source.acknowledge(first.last, first.hash)
    source.diverged(first.epoch, "another chain")
    assert told == []
    ledger.close()
