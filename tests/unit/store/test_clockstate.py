# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import pytest

from licagent.domain.clock import ClockState
from licagent.store.clockstate import ClockStore
from licagent.store.errors import DocumentDamaged, StoreError
from licagent.store.statedir import StateDir


def test_the_state_survives_and_its_mark_never_falls(tmp_path: Path) -> None:
    with StateDir(tmp_path / "state") as state:
        store = ClockStore(state)
        assert store.load() is None
        store.save(ClockState("boot-1", 10, 5000, 4000))
        assert ClockStore(state).load() == ClockState("boot-1", 10, 5000, 4000)
        again = ClockStore(state)
        again.load()
        again.save(ClockState("boot-2", 1, 4500, 4000))  # the clock was turned back
        assert ClockStore(state).load() == ClockState("boot-2", 1, 5000, 4000)
        # Also where nobody loaded it first.
        ClockStore(state).save(ClockState("boot-3", 1, 10, 5))
        assert ClockStore(state).load() == ClockState("boot-3", 1, 5000, 5)


def test_damage_and_nonsense_are_said(tmp_path: Path) -> None:
    with StateDir(tmp_path / "state") as state:
        state.write_document("clock", "licagent.clock/1", {"boot_id": 7})
        with pytest.raises(StoreError, match="makes no sense"):
            ClockStore(state).load()
        state.delete_document("clock")
        ClockStore(state).save(ClockState("boot-1", 10, 5000, 4000))
        (state.path / "clock.json").write_bytes(b"\0" * 100)
        with pytest.raises(DocumentDamaged):
            ClockStore(state).load()
        assert ClockStore(state).load() is None
