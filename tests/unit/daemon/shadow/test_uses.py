# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from typing import Any

from licagent.daemon.shadow import uses as shadow_uses
from licagent.daemon.shadow.uses import Uses

WHO = {
    "pid": 7,
    "name": "curl",
    "executable": "/usr/bin/curl",
    "uid": 1000,
    "gid": 100,
    "user": "alice",
    "unit": "etl.service",
    "cgroup": "/system.slice/etl.service",
}


def record(at: int, verdict: str = "shadow", **fields: Any) -> dict[str, Any]:
    process = {**WHO, **fields.pop("process", {})}
    return {
        "kind": "decision",
        "at": f"2026-01-02T03:04:{at:02d}.000Z",
        "verdict": verdict,
        "resource": "db",
        "reason": "no_binding",
        "count": 1,
        "process": process,
        **fields,
    }


def test_uses_are_added_up_with_those_that_were_refused() -> None:
    uses = Uses()
    uses.take([record(1), record(2, count=4), record(3, "deny"), record(4, "cut", count=2)])
    uses.take([record(5, "allow"), record(5, process={"uid": 1})])
    most, other = uses.most_used()
    assert (most.count, most.refused, most.actor.uid) == (8, 3, 1000)
    assert (most.first_at[-7:], most.last_at[-7:]) == ("01.000Z", "04.000Z")
    assert (other.count, other.actor.uid) == (1, 1)


def test_a_sum_of_repeats_belongs_to_the_one_who_was_told_of_first() -> None:
    gone = {"uid": None, "gid": None, "user": None, "executable": None, "cgroup": None}
    uses = Uses()
    uses.take([record(1), record(9, count=5, folded=True, process=gone)])
    (use,) = uses.most_used()
    assert (use.count, use.last_at[-7:]) == (6, "09.000Z")
    # When they were is not known: a restart tells them late.
    assert use.decided_at[-7:] == "01.000Z"
    # With the first of them out of the window, they are still his.
    later = Uses()
    later.take([record(1), record(9, folded=True, process=gone)], "2026-01-02T03:04:05.000Z")
    (use,) = later.most_used()
    assert (use.count, use.actor.uid) == (1, 1000)


def test_a_program_that_had_ended_is_the_one_of_its_name() -> None:
    ended = {"pid": 8, "executable": None}
    uses = Uses()
    uses.take([record(1, process=ended), record(2)])
    (use,) = uses.most_used()
    assert (use.count, use.actor.executable, use.actor.name) == (2, "/usr/bin/curl", None)
    # Unless it is the name of several, or somebody else's.
    uses.take([record(3, process={"pid": 9, "executable": "/tmp/curl"}), record(4, process=ended)])
    assert {use.actor.executable for use in uses.most_used()} == {
        "/usr/bin/curl",
        "/tmp/curl",
        None,
    }
    alone = Uses()
    alone.take([record(1), record(2, process={**ended, "uid": 5})])
    assert [use.actor.name for use in alone.most_used()] == [None, "curl"]


def test_what_has_no_room_is_counted(monkeypatch: Any) -> None:
    monkeypatch.setattr(shadow_uses, "USES_MAX", 2)
    uses = Uses()
    uses.take(record(1, count=3, process={"uid": uid}) for uid in range(5))
    assert len(uses.most_used()) == 2
    assert uses.left_out == 9


def test_changes_of_licenses_are_noted() -> None:
    uses = Uses()
    at = "2026-01-02T03:04:05.000Z"
    uses.take(
        [
            {"kind": "license", "at": at, "license": "a"},
            {"kind": "condition", "at": at, "licenses": [{"license": "b"}]},
            {"kind": "lease", "at": at, "new": ["c"]},
        ]
    )
    assert [uses.changed_at(name) for name in "abcd"] == [at, at, at, ""]
    uses.take([{"kind": "lease", "at": at, "new": [str(number) for number in range(20)]}])
    assert uses.changed_at("d") == at
    assert uses.log_since == at
