# SPDX-License-Identifier: Apache-2.0
"""Totals of usage for the metrics: bounded, and over a restart they go on or begin anew."""

from __future__ import annotations

from pathlib import Path

from licagent.daemon.metering.totals import UsageTotals
from licagent.daemon.metrics.families import SERIES_MAX
from licagent.domain.usage import Meter, UsageKind, UsageRecord
from licagent.store.statedir import StateDir

HERE = (7, 42)


def record(
    kind: UsageKind = UsageKind.COMPUTE,
    license_: str = "acme",
    *,
    loopback: bool = False,
    **sums: int,
) -> UsageRecord:
    quantities = {Meter[name.upper()]: amount for name, amount in sums.items()}
    return UsageRecord(kind, 0, 1, quantities, license=license_, is_loopback=loopback)


def totals_of(totals: UsageTotals) -> dict[tuple[str, ...], int]:
    return {
        (*pair, "loopback" if is_loopback else "network", meter.key): amount
        for pair, is_loopback, meter, amount in totals.used()
    }


def test_records_add_up_by_license_and_resource() -> None:
    totals = UsageTotals()
    totals.add([record(cpu_ns=5), record(cpu_ns=6), record(license_="", cpu_ns=1)])
    totals.add([record(UsageKind.NETWORK, tx_wire_bytes=9, loopback=True)])
    totals.add([record(UsageKind.UNATTRIBUTED, "", cpu_ns=3), record(UsageKind.GAP)])
    assert totals_of(totals) == {
        ("acme", "none", "network", "cpu_ns"): 11,
        ("none", "none", "network", "cpu_ns"): 1,
        ("acme", "none", "loopback", "tx_wire_bytes"): 9,
    }
    assert totals.unattributed() == {Meter.CPU_NS: 3}


def test_beyond_the_bound_all_others_are_one() -> None:
    totals = UsageTotals()
    totals.add([record(license_=f"l{number}", cpu_ns=1) for number in range(SERIES_MAX + 5)])
    totals.add([record(license_="l0", cpu_ns=1)])
    found = totals_of(totals)
    assert len(found) == SERIES_MAX + 1
    assert found["other", "other", "network", "cpu_ns"] == 5
    assert found["l0", "none", "network", "cpu_ns"] == 2


def test_they_go_on_where_the_ledger_does_and_begin_anew_where_it_does_not(tmp_path: Path) -> None:
    state = StateDir(tmp_path / "state")
    try:
        totals = UsageTotals()
        totals.add([record(cpu_ns=5), record(UsageKind.UNATTRIBUTED, cpu_ns=2)])
        totals.put_down(state, HERE)
        after = UsageTotals()
        after.take_up(state, HERE)
        after.add([record(cpu_ns=1)])
        assert totals_of(after) == {("acme", "none", "network", "cpu_ns"): 6}
        assert after.unattributed() == {Meter.CPU_NS: 2}
        for elsewhere in ((7, 43), (8, 42)):
            crashed = UsageTotals()
            crashed.take_up(state, elsewhere)
            assert totals_of(crashed) == {}
    finally:
        state.close()


def test_what_makes_no_sense_is_no_total(tmp_path: Path) -> None:
    state = StateDir(tmp_path / "state")
    try:
        for body in ({}, {"epoch": "7", "next_sequence": 42, "used": [{}], "unattributed": {}}):
            state.write_document("metrics-usage", "licagent.metrics-usage/1", body)
            totals = UsageTotals()
            totals.take_up(state, HERE)
            assert totals_of(totals) == {}
    finally:
        state.close()
