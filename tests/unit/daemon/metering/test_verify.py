# SPDX-License-Identifier: Apache-2.0
"""The check of a ledger on disk, as the local API tells it."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from licagent.daemon.metering.verify import verified
from licagent.local.errors import ErrorCode, LocalError
from licagent.local.usage_shapes import EpochRow, GapRow, VerifyResult
from licagent.store.ledger import Ledger
from licagent.store.ledger_types import LedgerLimits


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A ledger of ten commits, three records each."""
    ledger = Ledger(tmp_path / "usage", boot_id="one")
    for number in range(10):
        payloads = [b"%d-%d" % (number, each) * 50 for each in range(3)]
        ledger.commit(payloads, {"sheet": b"%d" % number})
    ledger.close()
    return tmp_path / "usage"


def test_a_good_ledger(folder: Path) -> None:
    found = verified(folder)
    assert found.keys() == VerifyResult.__annotations__.keys()
    assert (found["good"], found["records"], found["gaps"], found["problems"]) == (True, 30, [], [])
    [epoch] = found["epochs"]
    assert epoch.keys() == EpochRow.__annotations__.keys()
    assert (epoch["first"], epoch["last"], epoch["acknowledged"]) == (1, 30, 0)
    assert len(bytes.fromhex(epoch["public_key"])) == 32
    assert str(int(epoch["epoch"])) == epoch["epoch"]


def test_no_record_is_altered_unseen(folder: Path) -> None:
    [segment] = folder.glob("*.usage")
    whole = segment.read_bytes()
    found_bad = 0
    for place in range(0, len(whole), 41):
        segment.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        found = verified(folder)
        # What a frame says of itself stands in it twice: damage to one copy costs no record.
        assert found["records"] == 30 or not found["good"], place
        assert bool(found["problems"]) != found["good"]
        found_bad += not found["good"]
        for gap in found["gaps"]:
            assert gap.keys() == GapRow.__annotations__.keys()
    assert found_bad > 5
    segment.write_bytes(whole)
    assert verified(folder)["good"]


def test_a_damaged_end_is_not_good_because_the_daemon_has_named_it(folder: Path) -> None:
    [segment] = folder.glob("*.usage")
    whole = segment.read_bytes()
    segment.write_bytes(whole[:-3000] + b"\xff" * 3000)
    ledger = Ledger(folder, boot_id="one")  # goes on behind the damage, and says so
    ledger.commit([b"more"], {"sheet": b"11"})
    ledger.close()
    found = verified(folder)
    assert found["gaps"]
    assert not found["good"]
    assert len(found["problems"]) >= len(found["gaps"])


def test_what_the_spools_bound_took_is_no_problem(tmp_path: Path) -> None:
    limits = LedgerLimits(spool_max_bytes=40_000, when_full="drop_oldest")
    ledger = Ledger(tmp_path / "usage", boot_id="one", limits=limits)
    for number in range(40):
        ledger.commit([random.Random(number).randbytes(3000)], {})
    assert ledger.gaps
    ledger.close()
    found = verified(tmp_path / "usage")
    assert 0 < found["records"] < 40
    assert (found["good"], found["problems"]) == (True, [])


def test_it_reads_beside_a_daemon_and_changes_nothing(folder: Path) -> None:
    ledger = Ledger(folder, boot_id="two")
    ledger.commit([b"more"], {"sheet": b"11"})
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    assert verified(folder)["records"] == 31
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before
    ledger.close()


def test_no_ledger_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(LocalError) as caught:
        verified(tmp_path / "usage")
    assert caught.value.code is ErrorCode.NOT_FOUND
