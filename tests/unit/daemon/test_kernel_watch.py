# SPDX-License-Identifier: Apache-2.0
"""What is told of hands on the kernel side; the kernel's part is in tests/kernel and tests/vm."""

from __future__ import annotations

from typing import Any

from licagent.daemon.decisions import DecisionBook, NameBook
from licagent.daemon.kernel_side import HookReport
from licagent.daemon.kernel_watch import KIND, KernelWatch
from licagent.domain.tables import FAMILY_RESOURCE
from licagent.kernel.enforcement_structs import Event
from licagent.kernel.numbers import EventKind, Guarded, Hook


class Guard:
    """Locks, and has attempts that no event told of."""

    untold = 0

    def lock(self) -> bool:
        return True

    def take_refused(self) -> int:
        count, self.untold = self.untold, 0
        return count


class Kernel:
    """Two programs at work."""

    def __init__(self) -> None:
        self.guard = Guard()
        self.rows = {"cgroup_egress": (3, 30), "cgroup_ingress": (4, 40)}

    def hooks(self) -> list[HookReport]:
        return [
            HookReport(name, True, "prebuilt", "", link_id, program_id)
            for name, (link_id, program_id) in self.rows.items()
        ]


def watched(kernel: Any) -> tuple[KernelWatch, list[tuple[str, str]]]:
    told: list[tuple[str, str]] = []
    watch = KernelWatch(lambda kind, message, **_fields: told.append((kind, message)))
    watch.begin(kernel)
    return watch, told


def test_a_change_is_told_once_and_so_is_its_end() -> None:
    kernel = Kernel()
    watch, told = watched(kernel)
    watch.check()
    assert (told, watch.replaced, watch.is_locked) == ([], (), True)

    kernel.rows["cgroup_egress"] = (3, 31)
    del kernel.rows["cgroup_ingress"]
    watch.check()
    watch.check()
    assert [kind for kind, _ in told] == [KIND, KIND]
    assert len(watch.replaced) == 1
    assert "cgroup_egress" in watch.replaced[0]

    kernel.rows |= {"cgroup_egress": (3, 30), "cgroup_ingress": (4, 40)}
    watch.check()
    assert len(told) == 4
    assert not watch.replaced


def test_what_this_daemon_detaches_is_no_tampering() -> None:
    kernel = Kernel()
    watch, told = watched(kernel)
    watch.end()
    kernel.rows.clear()
    watch.check()
    assert told == []


def test_attempts_are_told_and_a_flood_as_a_sum() -> None:
    kernel = Kernel()
    watch, told = watched(kernel)
    watch.refused(
        Event(kind=EventKind.GUARD, rule=Guarded.LINK, pid=9, uid=0, count=3, comm=b"bpftool")
    )
    kernel.guard.untold = 7
    watch.check()
    watch.check()
    assert len(told) == 2
    assert "bpftool (process 9, uid 0) was refused" in told[0][1]
    assert told[0][1].endswith("3 times")
    assert told[1][1].startswith("7 more attempts")


def test_a_socket_of_another_family_is_named_by_it() -> None:
    book = DecisionBook(NameBook(lambda _number: None), None, None)  # type: ignore[arg-type]
    event = Event(
        verdict=2,
        reason=5,
        resource=FAMILY_RESOURCE,
        hook=Hook.FAMILY,
        destination_port=44,
        uid=0xFFFFFFFF,
    )
    record = book.record(event)
    assert record["resource"] == "other-families"
    assert record["hook"] == "family"
    assert record["network"]["family"] == "AF_XDP"
    assert record["network"]["destination"] is None
