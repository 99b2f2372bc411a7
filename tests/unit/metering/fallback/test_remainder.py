# SPDX-License-Identifier: Apache-2.0
"""What a cgroup's counter has more than the rows goes to those that ended, and to nobody else."""

from __future__ import annotations

from pathlib import Path

from licagent.metering.fallback.identity import Identity
from licagent.metering.fallback.remainder import LARGEST_END_NS, Remainders
from licagent.metering.fallback.tally import Amount, Owner

MS = 1_000_000


class Counters:
    def __init__(self, root: Path) -> None:
        self.root = root

    def set(self, **milliseconds: int) -> None:
        for name, value in milliseconds.items():
            folder = self.root / name.replace("__", "/")
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "cpu.stat").write_text(f"usage_usec {value * 1000}\nuser_usec 0\n")


def row(path: str, cpu_ms: int, ends: int, pid: int = 0) -> tuple[Owner, Amount]:
    owner = Owner(pid, 0, Identity(cgroup_path=path, comm=f"{path}{pid}{ends}"))
    return owner, Amount(cpu_ns=cpu_ms * MS, ends=ends)


def divided(remainders: Remainders, *rows: tuple[Owner, Amount]) -> list[float]:
    remainders.divide(dict(rows))
    return [amount.cpu_ns / MS for _, amount in rows]


def test_the_sum_is_the_counters(tmp_path: Path) -> None:
    counters = Counters(tmp_path)
    counters.set(a=1000)
    remainders = Remainders(str(tmp_path))
    counters.set(a=1100)
    assert divided(remainders, row("/a", 50, 30), row("/a", 40, 10)) == [57.5, 42.5]
    counters.set(a=1110)
    assert divided(remainders, row("/a", 5, 1)) == [10]  # only what is new


def test_who_lives_gets_nothing(tmp_path: Path) -> None:
    counters = Counters(tmp_path)
    counters.set(a=0)
    remainders = Remainders(str(tmp_path))
    counters.set(a=100)
    assert divided(remainders, row("/a", 90, 0, pid=7)) == [90]


def test_what_a_row_had_before_the_counter_is_not_given_again(tmp_path: Path) -> None:
    counters = Counters(tmp_path)
    counters.set(a=0)
    remainders = Remainders(str(tmp_path))
    counters.set(a=95)
    assert divided(remainders, row("/a", 100, 0, pid=7)) == [100]
    counters.set(a=105)
    assert divided(remainders, row("/a", 3, 1)) == [5]


def test_no_more_than_an_end_can_take(tmp_path: Path) -> None:
    """A process that used much here was moved and counts elsewhere."""
    counters = Counters(tmp_path)
    counters.set(a=0)
    remainders = Remainders(str(tmp_path))
    counters.set(a=10_000)
    assert divided(remainders, row("/a", 0, 2)) == [2 * LARGEST_END_NS / MS]


def test_each_cgroup_for_itself_and_removed_ones_for_the_one_above(tmp_path: Path) -> None:
    counters = Counters(tmp_path)
    counters.set(a=0, a__b=0, a__c=0)
    remainders = Remainders(str(tmp_path))
    counters.set(a=30, a__b=20, a__c=10)
    assert divided(remainders, row("/a/b", 15, 1), row("/a/c", 5, 1)) == [20, 10]
    (tmp_path / "a" / "c" / "cpu.stat").unlink()
    (tmp_path / "a" / "c").rmdir()
    counters.set(a=47, a__b=28)  # c used 9 more, and left it to a
    assert divided(remainders, row("/a/b", 4, 1), row("/a/c", 4, 1)) == [8, 9]


def test_without_cgroup_v2_nothing_is_divided() -> None:
    assert divided(Remainders(""), row("/a", 1, 1)) == [1]
