# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from licagent.domain.tables import FAILSAFE_RESOURCE
from licagent.store import numbers as module
from licagent.store.numbers import NUMBER_MAX, NumbersExhausted, PersistentNumbering
from licagent.store.statedir import StateDir


@pytest.fixture
def state(tmp_path: Path) -> Iterator[StateDir]:
    with StateDir(tmp_path / "state") as opened:
        yield opened


def test_numbers_start_at_one_and_stay(state: StateDir) -> None:
    numbering = PersistentNumbering(state)
    assert numbering.number("resource", "db") == 1
    assert numbering.number("resource", "web") == 2
    assert numbering.number("scope", "db") == 1  # spaces are apart
    assert numbering.number("resource", "db") == 1
    assert numbering.name("resource", 2) == "web"
    assert numbering.name("resource", 3) is None
    assert numbering.save()
    assert not numbering.save()
    again = PersistentNumbering(state)
    assert dict(again.names("resource")) == {"db": 1, "web": 2}
    assert again.number("resource", "new") == 3


def test_a_forgotten_names_number_is_not_given_away(state: StateDir) -> None:
    numbering = PersistentNumbering(state)
    numbering.number("resource", "db")
    numbering.number("resource", "web")
    assert numbering.forget("resource", frozenset({"web", "unknown"})) == 1
    numbering.save()
    again = PersistentNumbering(state)
    assert again.number("resource", "other") == 3
    assert again.number("resource", "web") == 4


def test_numbers_that_the_kernel_still_holds_are_passed_over(state: StateDir) -> None:
    numbering = PersistentNumbering(state)
    numbering.raise_floor("resource", 41)
    numbering.raise_floor("resource", 7)
    assert numbering.number("resource", "db") == 42


@pytest.mark.parametrize("damage", ["numbers", "numbers-floor"])
def test_damage_never_brings_a_number_back(state: StateDir, damage: str) -> None:
    numbering = PersistentNumbering(state)
    last = max(numbering.number("resource", f"r{i}") for i in range(5000))
    numbering.save()
    (state.path / f"{damage}.json").write_text("garbage")
    again = PersistentNumbering(state)
    assert again.damaged is not None
    assert again.damaged.name == damage
    assert again.number("resource", "new") > last
    again.save()
    once_more = PersistentNumbering(state)
    assert once_more.damaged is None
    assert once_more.number("resource", "new") == again.number("resource", "new")


def test_the_floor_is_on_disk_before_the_names(
    state: StateDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    real = state.write_document
    monkeypatch.setattr(
        state, "write_document", lambda name, *rest: (order.append(name), real(name, *rest))[1]
    )
    numbering = PersistentNumbering(state)
    numbering.number("resource", "a")
    numbering.save()
    numbering.number("resource", "b")
    numbering.save()
    assert order == ["numbers-floor", "numbers", "numbers"]


def test_the_last_number_is_below_the_failsafe_mark(state: StateDir) -> None:
    numbering = PersistentNumbering(state)
    numbering.raise_floor("resource", NUMBER_MAX - 1)
    assert numbering.number("resource", "last") == NUMBER_MAX < FAILSAFE_RESOURCE
    with pytest.raises(NumbersExhausted):
        numbering.number("resource", "one too many")
    assert numbering.number("resource", "last") == NUMBER_MAX


class Numbering(RuleBasedStateMachine):
    """Over saves, crashes and damage, no saved number ever means two names."""

    def __init__(self) -> None:
        super().__init__()
        import tempfile

        self.folder = tempfile.TemporaryDirectory()
        self.state = StateDir(Path(self.folder.name) / "state")
        self.numbering = PersistentNumbering(self.state)
        self.used: dict[int, str] = {}  # numbers that were durable once, and their names

    @rule(name=st.sampled_from("abcdefgh"))
    def give(self, name: str) -> None:
        number = self.numbering.number("resource", name)
        assert self.used.get(number, name) == name

    @rule()
    def save(self) -> None:
        self.numbering.save()
        for name, number in self.numbering.names("resource").items():
            assert self.used.setdefault(number, name) == name

    @rule(names=st.frozensets(st.sampled_from("abcdefgh")))
    def forget(self, names: frozenset[str]) -> None:
        self.numbering.forget("resource", names)

    @rule()
    def crash(self) -> None:
        self.numbering = PersistentNumbering(self.state)

    @rule(which=st.sampled_from(["numbers", "numbers-floor"]))
    def damage(self, which: str) -> None:
        self.numbering.save()
        self.save()
        (self.state.path / f"{which}.json").write_text("{}")
        self.numbering = PersistentNumbering(self.state)

    @invariant()
    def distinct(self) -> None:
        numbers = list(self.numbering.names("resource").values())
        assert len(numbers) == len(set(numbers))

    def teardown(self) -> None:
        self.state.close()
        self.folder.cleanup()


TestNumbering = Numbering.TestCase
TestNumbering.settings = settings(max_examples=25, stateful_step_count=25, deadline=None)


def test_the_schema_has_a_version() -> None:
    assert module._SCHEMA.endswith("/1")
