# SPDX-License-Identifier: Apache-2.0
"""What hosts lost: gaps are taken as signed, or with words, and the chain goes on."""

from __future__ import annotations

from dataclasses import replace

import pytest
from sqlalchemy import update
from tests.support.usage import record
from tests.unit.licplane.service.usage_sender import Sender, alarms, stored
from tests.unit.licplane.service.world import ROOT

from licplane.api.usage_reading import RecordReader
from licplane.service.usage.values import SentGap, UsageRefused
from licplane.service.usage.verify import UsageVerify
from licplane.store.usage_schema import usage_gaps

pytest_plugins = ["tests.support.postgres"]


def test_gaps_are_named_and_the_chain_goes_on(sender: Sender) -> None:
    sender.send(sender.spool.commit([record(1)]))
    gap = sender.spool.lose(5)
    with pytest.raises(UsageRefused) as refused:
        sender.send(replace(gap, last=gap.last + 1))
    assert refused.value.alarm == "signature"
    assert sender.send(gap).sequence == 6
    sender.intake.repeated(
        sender.open(), SentGap(gap.epoch, 2, 6, gap.reason, gap.next_previous_hash, gap.signature)
    )
    sender.send(sender.spool.commit([record(7)]))
    with sender.world.store.reading() as reader:
        (lost,) = reader.gaps(sender.host.id)
    assert (lost.first_sequence, lost.last_sequence, lost.reason) == (2, 6, "a frame was damaged")
    assert alarms(sender.world.store) == {"signature": 1, "gap": 1}
    assert [row["sequence"] for row in stored(sender.world.store)] == [1, 7]


def test_a_gap_whose_key_is_lost_is_taken_with_words(sender: Sender) -> None:
    gap = replace(sender.spool.lose(3), signature=b"")
    sender.send(gap)
    with sender.world.store.reading() as reader:
        (alarm,) = reader.usage_alarms()
    assert "not signed" in alarm.detail
    # It is noted, and no alteration for ever.
    check = UsageVerify(sender.world.plane._core).verify(ROOT, RecordReader().read)
    assert check.problems == []
    assert any("nobody signed it" in one for one in check.notes)
    assert sender.world.actions().count("usage.gap") == 1
    # One that somebody put into the database is.
    with sender.world.store.recording() as recorder:
        recorder._connection.execute(update(usage_gaps).values(first_sequence=2))
    check = UsageVerify(sender.world.plane._core).verify(ROOT, RecordReader().read)
    assert any("the gap is not signed" in one for one in check.problems)


def test_unsigned_gaps_are_few(sender: Sender) -> None:
    for _ in range(16):
        sender.send(replace(sender.spool.lose(1), signature=b""))
    with pytest.raises(UsageRefused, match="too many unsigned gaps"):
        sender.send(replace(sender.spool.lose(1), signature=b""))
    assert sender.world.actions().count("usage.gap") == 16
