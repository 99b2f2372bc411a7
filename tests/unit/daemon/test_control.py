# SPDX-License-Identifier: Apache-2.0
"""The daemon's side of a control plane, where no kernel is needed."""

from __future__ import annotations

import json
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from licagent.control.interface import (
    Assignment,
    ControlPhase,
    ControlState,
    HostStatus,
    NoticeCode,
)
from licagent.daemon.control import status as control_status
from licagent.daemon.control.managed import Managed, step
from licagent.daemon.control.reach import Reach
from licagent.daemon.control.report import selector_of
from licagent.domain.catalog import (
    CatalogObject,
    CatalogView,
    Kind,
    NackReason,
    ObjectKey,
    Refused,
    ViewKey,
)
from licagent.domain.failsafe import failsafe_entries
from licagent.domain.lease import NO_LEASES, Lease, LeaseSet
from licagent.store.statedir import StateDir

BINDING = {"license": "l", "selectors": ["host"]}
RESOURCE = {"kind": "network", "destinations": [{"cidr": "10.0.0.0/8"}]}


def view(
    now: dict[ObjectKey, bytes], before: dict[ObjectKey, bytes] | None, revision: int = 1
) -> CatalogView:
    def made(key: ObjectKey, payload: bytes) -> CatalogObject:
        return CatalogObject(*key, 1, payload)

    old = before or {}
    return CatalogView(
        ViewKey(),
        revision,
        b"",
        {key: made(key, payload) for key, payload in now.items()},
        tuple(key for key, payload in now.items() if old.get(key) != payload),
        tuple(made(key, payload) for key, payload in old.items() if key not in now),
        is_whole=before is None,
    )


OBJECTS = st.dictionaries(
    st.tuples(st.sampled_from([Kind.RESOURCE, Kind.BINDING, Kind.LICENSE]), st.sampled_from("abc")),
    st.integers(0, 2),
)


def payloads(described: dict[ObjectKey, int]) -> dict[ObjectKey, bytes]:
    found = {}
    for (kind, name), version in described.items():
        if kind is Kind.LICENSE:
            found[kind, name] = f"token {version}".encode()
        else:
            table = BINDING if kind is Kind.BINDING else RESOURCE
            if kind is Kind.BINDING:
                table = {**table, "license": f"l{version}"}
            else:
                table = {**table, "description": str(version)}
            found[kind, name] = json.dumps(table).encode()
    return found


@given(st.lists(OBJECTS, min_size=1, max_size=5))
def test_changes_add_up_to_the_whole(history: list[dict[ObjectKey, int]]) -> None:
    held = Managed()
    before: dict[ObjectKey, bytes] | None = None
    for revision, described in enumerate(history, 1):
        now = payloads(described)
        change = step(held, view(now, before, revision))
        whole = step(held, view(now, None, revision))
        assert change.after == whole.after
        assert set(change.changed) == set(whole.changed)
        assert set(change.removed) == set(whole.removed)
        exchanged = change.exchanged_bindings()
        kinds = {kind for kind, _ in (*change.changed, *change.removed)}
        assert (exchanged is not None) == (kinds <= {Kind.BINDING})
        held, before = change.after, now
    assert set(held.tokens) == {name for kind, name in before or {} if kind is Kind.LICENSE}


def test_a_bad_document_is_refused_and_what_was_before_is_untouched() -> None:
    held = step(Managed(), view(payloads({(Kind.BINDING, "a"): 0}), None)).after
    copy = dict(held.bindings)
    with pytest.raises(Refused) as caught:
        step(held, view({(Kind.BINDING, "a"): b"[]"}, {}))
    assert caught.value.reason is NackReason.POLICY
    assert "binding a" in caught.value.detail
    assert held.bindings == copy


def test_a_refusal_fits_into_a_message() -> None:
    many = {(Kind.BINDING, f"binding-{number}"): b"[]" for number in range(1000)}
    with pytest.raises(Refused) as caught:
        step(Managed(), view(many, None))
    assert len(caught.value.detail) < 4096


def test_the_addresses_of_a_control_plane_are_kept_for_a_boot_without_names(tmp_path: Path) -> None:
    with StateDir(tmp_path / "state") as state:
        reach = Reach(state)
        assert reach.settings() == ()
        assert reach.resolve(["127.0.0.1:8443", "[::1]:8444"])
        assert not reach.resolve(["127.0.0.1:8443", "[::1]:8444"])
        again = Reach(state)
        assert again.settings() == reach.settings()
        entries = failsafe_entries(again.settings(), ())
        assert {(each.direction, each.cidr, str(each.ports)) for each in entries} == {
            ("out", "127.0.0.1/32", "8443"),
            ("out", "::1/128", "8444"),
        }
        # A name that cannot be looked up now keeps what it had; one that is no more loses it.
        again._found["name.invalid:1"] = (("192.0.2.1", 1),)
        again.resolve(["name.invalid:1"])
        assert again.addresses == (("192.0.2.1", 1),)


def test_a_damaged_list_of_addresses_does_not_keep_the_daemon_from_starting(tmp_path: Path) -> None:
    with StateDir(tmp_path / "state") as state:
        Reach(state).resolve(["127.0.0.1:8443"])
        (tmp_path / "state" / "control-addresses.json").write_bytes(b"x")
        assert Reach(state).addresses == ()


@pytest.mark.parametrize(
    ("given_", "wanted"),
    [
        ({"unit": "etl.service", "executable": "/bin/a"}, "systemd:unit:etl.service"),
        ({"unit": "session-3.scope", "executable": "/bin/a"}, "unix:path:/bin/a"),
        ({"unit": "docker.service", "container": "ab" * 32}, "container:id:" + "ab" * 32),
        ({"executable": "/tmp/x (deleted)", "user": "bob"}, "unix:user:bob"),
        ({"user": "4711", "uid": 4711}, "unix:uid:4711"),
        ({}, "host"),
    ],
)
def test_a_workload_is_named_by_what_it_will_be_tomorrow(given_: Any, wanted: str) -> None:
    nothing = {"unit": None, "container": None, "executable": None, "user": None, "uid": None}
    assert selector_of(**(nothing | given_)) == wanted


def agent(
    *,
    state: ControlState | None = None,
    status: HostStatus = HostStatus.ACTIVE,
    left_s: float | None = None,
    failure_mode: str = "closed",
    problems: tuple[str, ...] = (),
) -> Any:
    now_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    leases = NO_LEASES
    if left_s is not None:
        end_ns = now_ns + int(left_s * 1e9)
        leases = LeaseSet({"l": Lease("l", 1, 1)}, end_ns - 600 * 10**9, end_ns)
    license_ = SimpleNamespace(failure_mode=failure_mode)
    return SimpleNamespace(
        link=SimpleNamespace(state=state or ControlState()),
        control=SimpleNamespace(problems=problems),
        membership=SimpleNamespace(leases=leases, assignment=Assignment("h", {}, 1, status, 0)),
        licensing=SimpleNamespace(held={"l": SimpleNamespace(managed=True, license=license_)}),
    )


def codes(**fields: Any) -> list[str]:
    found = list(control_status.reasons(agent(**fields)))
    assert all(each["message"] and each["hint"] for each in found)
    return [each["code"] for each in found]


def test_a_control_plane_that_is_away_is_no_reason_while_leases_last() -> None:
    away = ControlState(phase=ControlPhase.WAITING, last_error="connection refused")
    assert codes(state=away, left_s=500) == []
    assert codes(state=away, left_s=150) == ["lease-ending"]
    assert codes(state=away, left_s=-1) == ["lease-lost"]
    assert codes(state=away) == ["lease-lost"]  # none since it booted
    assert codes(state=ControlState(phase=ControlPhase.CONNECTED)) == []
    assert codes(state=ControlState()) == []  # not tried yet
    assert codes(state=away, failure_mode="open") == []
    # What needs no lease to go on is no reason either.
    assert codes(state=away, left_s=-1, failure_mode="open") == []
    assert codes(state=away, left_s=150, status=HostStatus.DRAINING) == []


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"status": HostStatus.CLONED}, "control-cloned"),
        ({"state": ControlState(notice=NoticeCode.CLONED)}, "control-cloned"),
        ({"status": HostStatus.EVICTED}, "control-evicted"),
        ({"state": ControlState(notice=NoticeCode.EVICTED)}, "control-evicted"),
        ({"status": HostStatus.BANNED}, "control-banned"),
        ({"state": ControlState(last_refusal="policy: no")}, "control-refused"),
        ({"problems": ("the stored catalog is refused",)}, "control-lost"),
    ],
)
def test_what_only_people_can_mend_is_a_reason(fields: Any, code: str) -> None:
    assert codes(**fields) == [code]
