# SPDX-License-Identifier: Apache-2.0
"""The last good policy is on the disk twice: one copy may be lost, and the loss of both is told."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from licagent.daemon.policy.last_good import LastGoodPolicy
from licagent.store.errors import DocumentDamaged
from licagent.store.statedir import StateDir

TEXTS = (("a.toml", "# one"), ("b.toml", "# two"))


@pytest.fixture
def state(tmp_path: Path) -> Iterator[StateDir]:
    with StateDir(tmp_path / "state") as opened:
        yield opened


def copies(state: StateDir) -> list[Path]:
    found = sorted(state.path.glob("last-good-policy*.json"))
    assert len(found) == 2
    return found


def test_there_is_none_before_one_was_in_force(state: StateDir) -> None:
    assert LastGoodPolicy(state).texts() is None


def test_it_outlives_who_kept_it(state: StateDir) -> None:
    LastGoodPolicy(state).remember(TEXTS)
    assert LastGoodPolicy(state).texts() == TEXTS


@pytest.mark.parametrize("torn", [0, 1])
def test_one_copy_will_do(state: StateDir, torn: int) -> None:
    LastGoodPolicy(state).remember(TEXTS)
    copies(state)[torn].write_bytes(b"{")
    assert LastGoodPolicy(state).texts() == TEXTS


def test_both_damaged_is_not_the_same_as_none(state: StateDir) -> None:
    LastGoodPolicy(state).remember(TEXTS)
    for copy in copies(state):
        copy.write_bytes(b"{")
    with pytest.raises(DocumentDamaged):
        LastGoodPolicy(state).texts()


def test_one_damaged_and_one_gone_is_not_the_same_as_none(state: StateDir) -> None:
    LastGoodPolicy(state).remember(TEXTS)
    first, second = copies(state)
    first.unlink()
    second.write_bytes(b"{")
    with pytest.raises(DocumentDamaged):
        LastGoodPolicy(state).texts()
