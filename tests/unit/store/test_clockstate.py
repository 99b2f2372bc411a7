# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import pytest

from licagent.store.clockstate import ClockRecord, ClockStore
from licagent.store.errors import DocumentDamaged
from licagent.store.statedir import StateDir


def test_the_record_survives_and_its_mark_never_falls(tmp_path: Path) -> None:
    with StateDir(tmp_path / "state") as state:
        store = ClockStore(state)
        assert store.load() is None
        store.save(ClockRecord("boot-1", 1000, 10, 5000))
        assert ClockStore(state).load() == ClockRecord("boot-1", 1000, 10, 5000)
        again = ClockStore(state)
        again.load()
        again.save(ClockRecord("boot-2", 900, 1, 4000))  # the clock was turned back
        assert ClockStore(state).load() == ClockRecord("boot-2", 900, 1, 5000)
        # Also where nobody loaded it first.
        ClockStore(state).save(ClockRecord("boot-3", 800, 1, 10))
        assert ClockStore(state).load() == ClockRecord("boot-3", 800, 1, 5000)


def test_damage_is_said(tmp_path: Path) -> None:
    with StateDir(tmp_path / "state") as state:
        ClockStore(state).save(ClockRecord("boot-1", 1000, 10, 5000))
        (state.path / "clock.json").write_bytes(b"\0" * 100)
        with pytest.raises(DocumentDamaged):
            ClockStore(state).load()
