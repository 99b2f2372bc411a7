# SPDX-License-Identifier: Apache-2.0
"""`usage` over a ledger of any length: how far it is counted, and that it says so."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from licagent.control.usage_wire import decode, encode, interval
from licagent.daemon.metering import reports as metering_reports
from licagent.domain.usage import Meter, UsageKind, UsageOwner, UsageRecord
from licagent.metering.tally import Tally, Wanted
from licagent.store.ledger import Ledger
from licagent.store.ledger_types import LedgerLimits

DAY_MS = 86_400_000
FRAMES = 60
START_MS = 1_790_000_000_000


def record(number: int) -> UsageRecord:
    """The one of an hour; `number` of CPU time."""
    start_ms = START_MS + number * 3_600_000
    owner = UsageOwner(unit=f"u{number % 3}", pid=number, process_start_unix_ms=start_ms)
    return UsageRecord(
        UsageKind.COMPUTE, start_ms, start_ms + 3_600_000, {Meter.CPU_NS: number}, owner
    )


@pytest.fixture
def parts(tmp_path: Path) -> Iterator[Any]:
    """A ledger of many segments, a frame an hour."""
    now_ms = START_MS
    limits = LedgerLimits(spool_max_bytes=10**8, segment_bytes=2000)
    ledger = Ledger(tmp_path / "usage", boot_id="one", limits=limits, now_unix_ms=lambda: now_ms)
    for number in range(FRAMES):
        now_ms = record(number).end_unix_ms
        ledger.commit([encode(record(number))], {})
    assert len(list(ledger.newest_first())) > 10
    yield SimpleNamespace(ledger=ledger)
    ledger.close()


def counted(parts: Any, **wanted: Any) -> tuple[Tally, int | None]:
    asked = Wanted(by="unit", **wanted)
    tally = Tally(asked)
    return tally, metering_reports._count(tally, parts, [], asked)


def cpu(tally: Tally) -> int:
    return sum(row.quantities.get(Meter.CPU_NS, 0) for row in tally.rows.values())


def test_all_that_there_is_time_for(parts: Any) -> None:
    tally, counted_from_ms = counted(parts)
    assert counted_from_ms is None
    assert (tally.records, cpu(tally)) == (FRAMES, sum(range(FRAMES)))


def test_without_time_the_newest_is_counted_and_since_when_is_told(
    parts: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metering_reports, "PATIENCE_S", -1.0)
    tally, counted_from_ms = counted(parts)
    assert counted_from_ms is not None
    assert 0 < tally.records < FRAMES
    wanted = [record(n) for n in range(FRAMES) if record(n).end_unix_ms >= counted_from_ms]
    assert cpu(tally) == sum(each.quantities[Meter.CPU_NS] for each in wanted)


def test_a_window_that_is_short_enough_is_whole(
    parts: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metering_reports, "PATIENCE_S", -1.0)
    since_ms = record(FRAMES - 1).start_unix_ms
    [_newest] = parts.ledger.newest_first(since_ms + 2 * DAY_MS)
    tally, counted_from_ms = counted(parts, since_unix_ms=since_ms + 2 * DAY_MS)
    assert (tally.records, counted_from_ms) == (0, None)


def test_windows_add_up_to_the_whole(parts: Any) -> None:
    cuts = [START_MS, START_MS + 7 * 3_600_000, START_MS + 40 * 3_600_000, START_MS + 90 * DAY_MS]
    sums = [
        cpu(counted(parts, since_unix_ms=since_ms, until_unix_ms=until_ms)[0])
        for since_ms, until_ms in itertools.pairwise(cuts)
    ]
    assert sum(sums) == sum(range(FRAMES))
    assert sums[0] == sum(range(7))


@pytest.mark.parametrize("start_ms", [0, 1, 2**35 - 1, 2**35, START_MS, 2**42 - 1, 2**42])
@pytest.mark.parametrize("length_ms", [0, 1, 5000, 2**41])
def test_an_interval_is_that_of_the_record_or_not_told(start_ms: int, length_ms: int) -> None:
    owner = UsageOwner(unit="\x18" * 40, uid=0)
    data = encode(
        UsageRecord(UsageKind.NETWORK, start_ms, start_ms + length_ms, {Meter.CPU_NS: 24}, owner)
    )
    found = decode(data)
    assert interval(data) in (None, (found.start_unix_ms, found.end_unix_ms))
    if start_ms == START_MS and length_ms == 5000:
        assert interval(data) is not None
