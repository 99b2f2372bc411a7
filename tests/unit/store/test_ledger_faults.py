# SPDX-License-Identifier: Apache-2.0
"""Every write, fsync, rename, unlink, truncate and create of the ledger fails once, in each way."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.support.simdisk import Fault
from tests.unit.store.ledger_world import Host, scenario

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


@pytest.mark.parametrize("fault", list(Fault))
@pytest.mark.parametrize("power", [False, True], ids=["process", "power"])
def test_each_operation_fails_once(fault: Fault, power: bool) -> None:
    if power and not fault.kills:
        pytest.skip("the power goes where the process is killed")
    count = operations()
    for number in range(1, count + 1):
        for seed in range(2 if power else 1):
            host = Host(seed)
            host.disk.plan = at(number, fault)
            scenario(host, STEPS, power=power)
            host.drain()
            host.check()
            if not power:
                assert not host.excused, "only a power cut may take what is in the kernel"
                assert not any(each.gaps for each in host.server.epochs.values())


@given(
    seed=st.integers(0, 2**32),
    faults=st.lists(st.tuples(st.integers(1, 90), st.sampled_from(list(Fault))), max_size=6),
    power=st.booleans(),
)
@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow])
def test_faults_one_after_the_other(
    seed: int, faults: list[tuple[int, Fault]], power: bool
) -> None:
    host = Host(seed)
    planned = dict(faults)
    host.disk.plan = lambda number, _what: planned.get(number)
    scenario(host, 14, power=power)
    host.drain()
    host.check()
