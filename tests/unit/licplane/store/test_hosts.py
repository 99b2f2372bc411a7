# SPDX-License-Identifier: Apache-2.0
"""Hosts, their counters, and what they send."""

from __future__ import annotations

from dataclasses import replace

import pytest

from licplane.errors import ExitCode, PlaneError
from licplane.store.catalog_model import View
from licplane.store.columns import I64_MAX
from licplane.store.database import Store
from licplane.store.host_model import (
    FleetShadow,
    Host,
    HostCounters,
    HostPresence,
    HostReport,
    HostStatus,
    ShadowRow,
)

pytest_plugins = ["tests.support.postgres"]


def host(name: str, **changes: object) -> Host:
    made = Host(
        host_id=name,
        hostname=f"{name}.example",
        status=HostStatus.ACTIVE,
        labels={"org": "acme", "environment": "prod"},
        machine_id=name * 4,
        key_fingerprint=name.encode().ljust(32, b"."),
        assignment_sequence=1,
        enrolled_at_unix_ms=1_000,
        join_token="t1",
        agent_version="1.0",
        kernel_release="6.1",
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def put(store: Store, *hosts: Host) -> None:
    for one in hosts:
        with store.transaction() as transaction:
            transaction.put_host(one)


def ids(hosts: tuple[Host, ...]) -> list[str]:
    return [one.host_id for one in hosts]


def test_a_host_comes_back(store: Store) -> None:
    with store.transaction() as transaction:
        kept = transaction.put_host(host("a"))
        assert kept == replace(host("a"), fleet_revision=1)
        assert transaction.host("a") == kept
    with store.reading() as reader:
        assert reader.host("a") == kept
        assert reader.host("b") is None
        assert reader.host_of_key(kept.key_fingerprint) == kept
        assert reader.host_of_key(bytes(32)) is None
        assert reader.hosts_called("a.example") == (kept,)
        assert reader.hosts_called("A.example") == ()
        assert reader.hosts_on_machine("aaaa") == (kept,)
        assert reader.head().fleet_revision == 1
    assert kept.view == View("acme", "", "prod", "")


def test_an_empty_machine_id_is_nobodys(store: Store) -> None:
    put(store, host("a", machine_id=""))
    with store.reading() as reader:
        assert reader.hosts_on_machine("") == ()


def test_hosts_by_label_and_page(store: Store) -> None:
    put(
        store,
        host("a"),
        host("b", labels={"org": "acme"}),
        host("c", labels={"org": "acme", "environment": "prod", "tier": "web"}),
        host("d", labels={"org": "other", "environment": "prod"}),
    )
    with store.reading() as reader:
        assert ids(reader.hosts()) == ["a", "b", "c", "d"]
        assert ids(reader.hosts(labels={"org": "acme"})) == ["a", "b", "c"]
        both = {"org": "acme", "environment": "prod"}
        assert ids(reader.hosts(labels=both)) == ["a", "c"]
        assert ids(reader.hosts(labels=both, after="a")) == ["c"]
        assert ids(reader.hosts(after="b", limit=1)) == ["c"]
        assert ids(reader.hosts(labels={"org": "' OR 1=1 --"})) == []
    put(store, host("a", labels={}))
    with store.reading() as reader:
        assert ids(reader.hosts(labels={"org": "acme"})) == ["b", "c"]


def test_changes_of_hosts_are_numbered(store: Store) -> None:
    put(store, host("a"), host("b"))
    put(store, host("a", status=HostStatus.EVICTED))
    with store.reading() as reader:
        assert reader.head().fleet_revision == 3
        assert reader.head().revision == 0
        assert ids(reader.hosts_changed_since(0)) == ["b", "a"]
        changed = reader.hosts_changed_since(2)
        assert [(one.host_id, one.status) for one in changed] == [("a", HostStatus.EVICTED)]
        assert reader.hosts_changed_since(3) == ()


def test_a_key_is_one_hosts(store: Store) -> None:
    put(store, host("a"))
    with pytest.raises(PlaneError) as refused:
        put(store, host("b", key_fingerprint=host("a").key_fingerprint))
    assert refused.value.code is ExitCode.REFUSED
    with store.reading() as reader:
        assert ids(reader.hosts()) == ["a"]


def test_counters_change_only_from_what_was_read(store: Store) -> None:
    put(store, host("a"))
    first, second = HostCounters("a", b"1" * 32), HostCounters("a", b"1" * 32, b"2" * 32)
    with store.recording() as recorder:
        assert recorder.counters("a") is None
        assert recorder.swap_counters(None, first)
        assert not recorder.swap_counters(None, first)
        assert not recorder.swap_counters(second, first)
        assert recorder.swap_counters(first, second)
        assert not recorder.swap_counters(first, second)
        assert not recorder.swap_counters(None, HostCounters("nobody", b"1"))
        assert not recorder.swap_counters(first, HostCounters("nobody", b"1"))
    with store.reading() as reader:
        assert reader.counters("a") == second
    with store.transaction() as transaction:
        transaction.clear_counters("a")
        assert transaction.counters("a") is None


def test_the_newer_presence_wins(store: Store) -> None:
    put(store, host("a"), host("b"))
    new = HostPresence("a", 20, 50, "r1", 7, "policy")
    old = HostPresence("a", 10, 40, "r2", 6)
    with store.recording() as recorder:
        recorder.put_presence([new, old, HostPresence("gone", 1), HostPresence("b", 5)])
        recorder.put_presence([old])
        recorder.put_presence([])
    with store.reading() as reader:
        assert reader.presence(["a", "b", "c"]) == {"a": new, "b": HostPresence("b", 5)}
        assert reader.presence([]) == {}


def test_the_newer_report_wins(store: Store) -> None:
    put(store, host("a"), host("b"))
    with store.recording() as recorder:
        recorder.put_reports([HostReport("a", 2, b"new"), HostReport("a", 1, b"old")])
        recorder.put_reports([HostReport("a", 1, b"late"), HostReport("b", 1, b"\0")])
        recorder.put_reports([HostReport("gone", 1, b"")])
    with store.reading() as reader:
        assert reader.report("a") == HostReport("a", 2, b"new")
        assert reader.report("gone") is None
        assert reader.reports() == (HostReport("a", 2, b"new"), HostReport("b", 1, b"\0"))
        assert reader.reports(after="a", limit=5) == (HostReport("b", 1, b"\0"),)


def use(name: str, boot: str, count: int, *, last: int = 9, who: str = "unit:x") -> ShadowRow:
    return ShadowRow(name, boot, "db", who, "/bin/x", "root", count, 1, last, "no-binding")


def test_shadow_counts_are_totals(store: Store) -> None:
    put(store, host("a"), host("b"))
    with store.recording() as recorder:
        recorder.put_shadow([use("a", "1", 5), use("a", "1", 3), use("b", "1", 2)])
        recorder.put_shadow([use("a", "1", 4), use("a", "2", 10, last=30), use("gone", "1", 1)])
        recorder.put_shadow([use("b", "1", 2), use("b", "1", 1, who="unit:y")])
    with store.reading() as reader:
        assert reader.shadow() == (
            FleetShadow("db", "unit:x", "/bin/x", "root", 2, 17, 1, 30),
            FleetShadow("db", "unit:y", "/bin/x", "root", 1, 1, 1, 9),
        )
        after = ("db", "unit:x", "/bin/x", "root")
        assert [one.selector for one in reader.shadow(after=after)] == ["unit:y"]
        assert [one.selector for one in reader.shadow(limit=1)] == ["unit:x"]
        assert reader.shadow_of("a") == (use("a", "1", 5), use("a", "2", 10, last=30))
    with store.recording() as recorder:
        assert recorder.purge_shadow(10) == 3
        assert recorder.shadow_of("b") == ()


def test_long_and_odd_words_of_a_host(store: Store) -> None:
    put(store, host("a"))
    row = replace(use("a", "1", I64_MAX), executable="/x" * 5000, selector="é\n'\"; DROP TABLE x")
    with store.recording() as recorder:
        recorder.put_shadow([row])
    with store.reading() as reader:
        assert reader.shadow_of("a") == (row,)
    for bad in (replace(row, user="a\0b"), replace(row, count=2**63), replace(row, count=-1)):
        with pytest.raises(PlaneError) as refused, store.recording() as recorder:
            recorder.put_shadow([bad])
        assert refused.value.code is ExitCode.USAGE


def test_totals_beyond_64_bits_still_sum(store: Store) -> None:
    put(store, host("a"), host("b"))
    with store.recording() as recorder:
        recorder.put_shadow([use("a", "1", I64_MAX), use("b", "1", I64_MAX)])
    with store.reading() as reader:
        assert reader.shadow()[0].count == I64_MAX


def test_a_host_that_is_deleted_leaves_nothing(store: Store) -> None:
    put(store, host("a"))
    with store.recording() as recorder:
        recorder.swap_counters(None, HostCounters("a", b"1"))
        recorder.put_presence([HostPresence("a", 1)])
        recorder.put_reports([HostReport("a", 1, b"")])
        recorder.put_shadow([use("a", "1", 1)])
    with store.transaction() as transaction:
        assert transaction.delete_host("a")
        assert not transaction.delete_host("a")
    with store.reading() as reader:
        assert reader.host("a") is None
        assert reader.counters("a") is None
        assert reader.presence(["a"]) == {}
        assert reader.reports() == ()
        assert reader.shadow() == ()
        assert reader.hosts(labels={"org": "acme"}) == ()


def test_many_hosts_at_once(store: Store) -> None:
    names = [f"h{at:04}" for at in range(1_200)]
    with store.transaction() as transaction:
        for name in names:
            transaction.put_host(host(name))
        assert transaction.head().fleet_revision == 1
    with store.recording() as recorder:
        recorder.put_presence([HostPresence(name, 1) for name in names])
        assert len(recorder.presence(names)) == len(names)
