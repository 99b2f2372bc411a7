# SPDX-License-Identifier: Apache-2.0
"""Every write, fsync, rename, unlink, truncate and create of the ledger fails once, in each way."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.support.simdisk import Cut, Fault
from tests.unit.store.ledger_world import Host, scenario

from licagent.store.ledger_types import Batch

STEPS = 9


def at(number: int, fault: Fault) -> Callable[[int, str], Fault | None]:
    return lambda operation, _what: fault if operation == number else None


def operations() -> int:
    host = Host()
    scenario(host, STEPS)
    host.drain()
    host.check()
    assert host.ledger is not None
    assert host.ledger.verify().is_intact
    assert not host.excused
    kinds = {each.split()[0] for each in host.disk.log}
    assert kinds >= {"create", "write", "fsync", "rename", "unlink"}
    return host.disk.operations


WAYS = [(fault, False) for fault in Fault] + [(fault, True) for fault in Fault if fault.kills]


@pytest.mark.parametrize(
    ("fault", "power"),
    WAYS,
    ids=[f"{fault.name}-{'power' if cut else 'process'}" for fault, cut in WAYS],
)
def test_each_operation_fails_once(fault: Fault, power: bool) -> None:
    count = operations()
    for number in range(1, count + 1):
        for seed in range(2 if power else 1):
            host = Host(seed)
            host.disk.plan = at(number, fault)
            scenario(host, STEPS, power=float(power))
            host.drain()
            host.check()
            assert host.ledger is not None
            assert not any("keys" in each for each in host.ledger.problems)
            if not power:
                assert not host.excused, "only a power cut may take what is in the kernel"
                assert not any(each.gaps for each in host.server.epochs.values())


spans = st.tuples(st.integers(1, 90), st.integers(1, 6), st.sampled_from(list(Fault)))


@given(
    seed=st.integers(0, 2**32),
    faults=st.lists(spans, max_size=6),
    power=st.sampled_from([0.0, 0.3, 1.0]),
)
@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])
def test_faults_one_after_the_other(
    seed: int, faults: list[tuple[int, int, Fault]], power: float
) -> None:
    host = Host(seed)
    planned = {
        number: fault for begin, count, fault in faults for number in range(begin, begin + count)
    }
    host.disk.plan = lambda number, _what: planned.get(number)
    scenario(host, 14, power=power)
    host.drain()
    host.check()


def test_a_failed_fsync_is_never_believed() -> None:
    """The frame is readable after the failure, and not on the disk: fsyncgate."""
    host = Host()
    host.start()
    host.use(3)
    host.commit()
    fail_on = ("fsync", "truncate")
    host.disk.plan = lambda _number, what: Fault.IO_ERROR if what in fail_on else None
    host.use(3)
    host.commit()
    assert host.refused == 1
    assert host.ledger is not None
    assert "Input/output error" in host.ledger.trouble
    assert len(list(host.ledger.batches(0, limit_bytes=10**6))) == 1
    host.killed()
    # The next daemon sees a whole frame in the kernel's memory; while it cannot make it durable
    # it does not act on it.
    ledger = host.start()
    assert not ledger.settled
    assert len(list(ledger.batches(0, limit_bytes=10**6))) == 1  # it is told to nobody either
    host.use(2)
    host.commit()
    assert host.closed is not None
    assert host.refused == 2
    host.disk.plan = lambda _number, _what: None
    host.commit()
    assert host.closed is None
    assert ledger.settled
    # Now it must survive.
    host.power_cut()
    host.drain()
    assert not host.excused
    host.check()
    assert not any(each.gaps for each in host.server.epochs.values())


def test_a_frame_that_was_refused_is_void_when_the_same_numbers_are_given_again() -> None:
    host = Host()
    host.start()
    host.use(3)
    host.commit()
    host.disk.plan = lambda _number, what: Fault.IO_ERROR if what in ("fsync", "truncate") else None
    host.use(3)
    host.commit()
    host.disk.plan = lambda _number, _what: None
    host.use(5)
    host.commit()  # the closed sheet, under the same sequences in a new segment
    host.commit()
    assert host.ledger is not None
    first, second, third = host.ledger.batches(0, limit_bytes=10**6)
    assert isinstance(second, Batch)
    assert isinstance(third, Batch)
    assert isinstance(first, Batch)
    assert [first.first, second.first, third.first] == [1, 4, 7]
    assert len(list(host.ledger.records())) == 11
    host.ledger.close()
    host.drain()
    host.check()


def test_a_file_that_was_begun_in_vain_does_not_void_the_frame_before_it() -> None:
    host = Host()
    host.start()
    host.use(3)
    host.commit()
    host.disk.plan = lambda _number, what: (
        Fault.IO_ERROR if what in ("fsync", "truncate") or what.startswith("unlink") else None
    )
    host.use(3)
    host.commit()  # whole, but refused
    host.disk.plan = lambda _number, what: Fault.KILL_HALFWAY if what == "write" else None
    with pytest.raises(Cut):
        host.commit()  # a new file for the same numbers, torn
    host.killed()
    host.disk.plan = lambda _number, _what: None
    host.start()
    assert host.closed is None  # the refused one counts after all, once
    host.use(2)
    host.commit()
    host.killed()
    host.start()
    host.drain()
    host.check()
    assert not any(each.gaps for each in host.server.epochs.values())


def test_a_full_disk_holds_everything_and_history_yields() -> None:
    host = Host()
    host.start()
    for _ in range(30):
        host.use(8)
        host.commit()
    host.deliver(limit_bytes=10**9)
    host.commit()
    assert host.ledger is not None
    before = len(host.disk.names_now)
    host.disk.space = sum(len(each.content) for each in host.disk.names_now.values()) + 100
    for _ in range(40):
        host.use(8)
        host.commit()
    assert host.refused  # what was acknowledged went, and then there was nothing left to go
    assert "No space left" in " ".join(host.ledger.problems)
    assert host.closed is not None
    assert before > 1
    host.disk.space = None
    host.drain()
    assert not host.ledger.problems
    host.check()


def test_a_read_only_disk_holds_everything_over_a_restart() -> None:
    host = Host()
    host.start()
    host.use(8)
    host.commit()
    host.disk.is_read_only = True
    host.use(8)
    host.commit()
    assert host.refused == 1
    host.killed()
    ledger = host.start()
    assert not ledger.settled
    assert "Read-only" in ledger.problems[0]
    assert len(list(ledger.records())) == 8
    host.use(8)
    host.commit()
    assert host.refused == 2
    host.drain()
    host.check()
