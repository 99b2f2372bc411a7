# SPDX-License-Identifier: Apache-2.0
"""Which storage is measured: what the settings say, and what the policy's resources name."""

from __future__ import annotations

from pathlib import Path

from licagent.daemon.metering.footing import Footing, specs_of
from licagent.domain.footprint import FootprintSpec, fault_of
from licagent.domain.policy_model import Resource, ResourceKind
from licagent.metering.footprint import Instant


def storage(name: str, *paths: str) -> Resource:
    return Resource(name, ResourceKind.STORAGE, enforce=False, paths=paths)


def test_each_path_of_a_storage_resource_is_measured_once() -> None:
    own = (FootprintSpec("mine", "/srv", resource="disk", every_s=60),)
    network = Resource("db", ResourceKind.NETWORK, enforce=True)
    found = specs_of(own, (storage("disk", "/srv", "/var"), network, storage("other", "/srv")))
    assert [(each.name, each.path, each.resource) for each in found] == [
        ("mine", "/srv", "disk"),
        ("disk:/var", "/var", "disk"),
        ("other:/srv", "/srv", "other"),
    ]


def test_names_fit_and_stay_apart() -> None:
    deep = "/" + "x" * 100
    found = specs_of((), (storage("disk", deep + "1", deep + "2", "/a\nb"),))
    assert len({each.name for each in found}) == 3
    assert all(not fault_of(each) for each in found)


def test_footprints_follow_the_policy_and_go_on_where_they_were(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(8192))
    now_ms = 1_000
    mark = b""
    footing = Footing(lambda: Instant("boot", now_ms, now_ms), lambda: mark)
    assert footing.take() == ((), b"")
    assert footing.states() == ()
    spec = FootprintSpec("a", str(tmp_path), every_s=5)
    try:
        footing.follow((spec,))
        assert [each.name for each in footing.states()] == ["a"]
        _rows, mark = footing.take()
        footing.committed()
        footing.follow((spec,))  # the same: nothing begins anew
        footing.follow((spec, FootprintSpec("b", str(tmp_path), every_s=5)))
        assert [each.name for each in footing.states()] == ["a", "b"]
        footing.follow(())
        assert footing.take() == ((), mark)
    finally:
        footing.close()
