# SPDX-License-Identifier: Apache-2.0
"""The copy of the catalog, the parts of a delta, and leases: what follows from what."""

from __future__ import annotations

import pytest

from licagent.domain.catalog import (
    Delta,
    Kind,
    Manifest,
    NackReason,
    ObjectChange,
    Refused,
    SignedBytes,
    ViewKey,
)
from licagent.domain.delta_parts import DeltaPart, DeltaParts
from licagent.domain.lease import (
    Lease,
    LeaseAnswer,
    LeaseHolder,
    LeaseRequest,
    accept,
)
from licagent.domain.replica import Replica
from lictoken.digest import DigestTree, digest_of

SIGNED = SignedBytes(b"", "", b"")
VIEW = ViewKey("acme")


def put(name, payload=b"x", revision=1, kind=Kind.RESOURCE):
    return ObjectChange(kind, name, revision, payload)


def gone(name, revision):
    return ObjectChange(Kind.RESOURCE, name, revision, None)


def delta(since, to, changes, live, *, reset=False, view=VIEW):
    objects = [(Kind.RESOURCE, name, payload) for name, payload in live.items()]
    manifest = Manifest(view, to, digest_of(objects), len(objects), SIGNED)
    return Delta(since, to, reset, tuple(changes), manifest)


@pytest.fixture
def replica():
    found = Replica(DigestTree)
    changes = [put("a"), put("b")]
    found.stage(delta(0, 1, changes, {"a": b"x", "b": b"x"}, reset=True))
    found.keep()
    return found


def names(view):
    return {key[1] for key in view.changed}, {each.name for each in view.removed}


def test_a_delta_says_what_changed_and_only_that(replica):
    changes = [gone("a", 2), put("b", revision=2), put("c", revision=2)]
    view = replica.stage(delta(1, 2, changes, {"b": b"x", "c": b"x"}))
    assert names(view) == ({"c"}, {"a"})
    assert not view.is_whole
    assert replica.revision == 1
    replica.keep()
    assert replica.revision == 2


def test_a_reset_says_it_too(replica):
    view = replica.stage(
        delta(0, 5, [put("b"), put("c", revision=5)], {"b": b"x", "c": b"x"}, reset=True)
    )
    assert names(view) == ({"c"}, {"a"})
    assert view.is_whole
    replica.undo()
    assert {name for _, name in replica.objects} == {"a", "b"}
    assert replica.revision == 1


def test_undone_it_takes_the_next_one_as_if_nothing_had_been(replica):
    changes = [gone("a", 2), put("c", revision=2)]
    replica.stage(delta(1, 2, changes, {"b": b"x", "c": b"x"}))
    replica.undo()
    assert {name for _, name in replica.objects} == {"a", "b"}
    replica.stage(delta(1, 2, changes, {"b": b"x", "c": b"x"}))


@pytest.mark.parametrize(
    ("made", "reason"),
    [
        (delta(0, 2, [put("c", revision=2)], {}), NackReason.BASE),
        (delta(1, 2, [put("c", revision=2)], {"c": b"x"}), NackReason.DIGEST),
        (delta(1, 2, [], {"a": b"x", "b": b"x"}, view=ViewKey("other")), NackReason.BASE),
        (delta(1, 0, [], {"a": b"x", "b": b"x"}), NackReason.ROLLBACK),
        (delta(0, 0, [put("a", revision=0)], {"a": b"x"}, reset=True), NackReason.ROLLBACK),
        (delta(7, 8, [], {}, reset=True), NackReason.BASE),
        (delta(1, 2, [put("c"), put("c")], {}), NackReason.DIGEST),
        (delta(1, 2, [put("c", revision=3)], {}), NackReason.DIGEST),
        (delta(1, 2, [put("")], {}), NackReason.DIGEST),
        (delta(1, 2, [put("n" * 256)], {}), NackReason.DIGEST),
        (delta(1, 2, [put("c\0")], {}), NackReason.DIGEST),
        (delta(1, 2, [put("c", b"x" * 65537)], {}), NackReason.DIGEST),
        (delta(0, 2, [gone("c", 2)], {}, reset=True), NackReason.DIGEST),
    ],
)
def test_what_does_not_fit_is_refused_and_changes_nothing(replica, made, reason):
    with pytest.raises(Refused) as refused:
        replica.stage(made)
    assert refused.value.reason is reason
    assert {name for _, name in replica.objects} == {"a", "b"}
    replica.stage(delta(1, 2, [gone("a", 2)], {"b": b"x"}))


def part(*changes, more=True, to=1, manifest=None):
    return DeltaPart(0, to, True, more, changes, manifest)


def test_parts_come_together_with_the_last_one():
    parts = DeltaParts()
    assert parts.add(part(put("a"))) is None
    assert parts.add(part(put("b"))) is None
    whole = parts.add(part(more=False, manifest=SIGNED))
    assert [each.name for each in whole.changes] == ["a", "b"]
    # And nothing of it is left for the next one:
    assert parts.add(part(put("c"), more=False, to=2, manifest=SIGNED)).changes == (put("c"),)


@pytest.mark.parametrize(
    ("last", "reason"),
    [
        (part(to=2), NackReason.DIGEST),
        (part(more=False), NackReason.SIGNATURE),
        (part(manifest=SIGNED), NackReason.DIGEST),
        (part(put("b"), put("c"), put("d")), NackReason.KERNEL),
        (part(put("b", b"x" * 60)), NackReason.KERNEL),
    ],
)
def test_parts_that_do_not_belong_together_or_are_too_many(last, reason):
    parts = DeltaParts(objects_max=3, bytes_max=50)
    parts.add(part(put("a")))
    with pytest.raises(Refused) as refused:
        parts.add(last)
    assert refused.value.reason is reason


def test_the_rest_of_a_refused_delta_is_passed_over_and_the_next_one_is_not():
    parts = DeltaParts(objects_max=1)
    with pytest.raises(Refused):
        parts.add(part(put("a"), put("b")))
    assert parts.add(part(put("c"))) is None
    assert parts.add(part(more=False, manifest=SIGNED)) is None
    assert parts.add(part(put("a"), more=False, manifest=SIGNED)) is not None


ANSWER = LeaseAnswer("h", b"key", "boot", b"nonce", 1000, 0, (Lease("l", 7, 3),))
REQUEST = LeaseRequest(b"nonce", "boot", 5_000_000_000)
HOLDER = LeaseHolder("h", b"key", "boot")


def test_a_lease_ends_counted_from_the_request():
    leases = accept(ANSWER, REQUEST, HOLDER)
    assert leases.end_boottime_ns == 6_000_000_000
    assert leases.end_of("l", 3) == leases.end_of("l", 4) == 6_000_000_000
    assert leases.end_of("l", 2) == leases.end_of("m", 3) == 0
    assert leases.ends_by_number() == {7: 6_000_000_000}


@pytest.mark.parametrize(
    "holder",
    [
        LeaseHolder("x", b"key", "boot"),
        LeaseHolder("h", b"x", "boot"),
        LeaseHolder("h", b"key", "x"),
    ],
)
def test_a_lease_is_nobody_elses(holder):
    with pytest.raises(Refused) as refused:
        accept(ANSWER, REQUEST, holder)
    assert refused.value.reason is NackReason.NOT_OURS
    with pytest.raises(Refused):
        accept(ANSWER, LeaseRequest(b"other", "boot", 0), HOLDER)
