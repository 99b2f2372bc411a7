# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from licagent.store import statedir
from licagent.store.errors import StoreError
from licagent.store.licenses import (
    EPOCH_MAX,
    IdTaken,
    LicenseRecords,
    NumberTaken,
    RecordsLost,
    ReplayedGeneration,
    Statement,
)
from licagent.store.statedir import StateDir


@pytest.fixture
def state(tmp_path: Path) -> Iterator[StateDir]:
    with StateDir(tmp_path / "state") as opened:
        yield opened


def revocation() -> Statement:
    return Statement("rev-1", "acme", "https://issuer", "revoke", 3, "left", 1_700_000_000, "file")


def test_an_older_generation_is_refused_for_good(state: StateDir) -> None:
    records = LicenseRecords(state)
    assert records.accept("acme", 7, 3, issuer="issuer")
    assert not records.accept("acme", 7, 3, issuer="issuer")
    assert records.accept("acme", 7, 4, issuer="issuer")
    for opened in (records, LicenseRecords(state)):
        with pytest.raises(ReplayedGeneration, match="4 was accepted"):
            opened.accept("acme", 7, 3, issuer="issuer")
        assert opened.newest_generation("acme") == 4
        assert opened.newest_generation("other") == 0


def test_a_number_belongs_to_one_license(state: StateDir) -> None:
    records = LicenseRecords(state)
    records.accept("acme", 7, 1, issuer="issuer")
    with pytest.raises(NumberTaken, match="acme"):
        LicenseRecords(state).accept("other", 7, 1, issuer="issuer")
    assert LicenseRecords(state).jti_of(7) == "acme"
    assert LicenseRecords(state).newest_generation("other") == 0


def test_a_revocation_moves_the_epoch_and_is_kept(state: StateDir) -> None:
    records = LicenseRecords(state)
    records.accept("acme", 7, 1, issuer="issuer")
    records.accept("acme", 9, 2, issuer="issuer")  # issued again with another number
    records.accept("other", 8, 1, issuer="issuer")
    assert records.epoch(7) == 1
    assert records.record(revocation())
    assert not records.record(revocation())
    again = LicenseRecords(state)
    assert again.statements("acme") == (revocation(),)
    assert again.statements("other") == ()
    assert (again.epoch(7), again.epoch(9), again.epoch(8)) == (2, 2, 1)
    assert again.bump(8) == 2
    assert LicenseRecords(state).epoch(8) == 2


def test_epochs_do_not_wrap(state: StateDir) -> None:
    records = LicenseRecords(state)
    records._epochs[7] = EPOCH_MAX
    with pytest.raises(StoreError, match="new number"):
        records.bump(7)


@pytest.mark.parametrize("damage", ["licenses", "licenses-spare"])
def test_one_damaged_copy_loses_nothing(state: StateDir, damage: str) -> None:
    records = LicenseRecords(state)
    records.accept("acme", 7, 3, issuer="issuer")
    records.record(revocation())
    (state.path / f"{damage}.json").write_text("garbage")
    again = LicenseRecords(state)
    assert again.statements("acme") == (revocation(),)
    assert again.epoch(7) == 2
    assert again.damaged is not None
    assert again.damaged.name == damage
    # Both are whole again.
    other = {"licenses": "licenses-spare", "licenses-spare": "licenses"}[damage]
    (state.path / f"{other}.json").write_text("garbage")
    assert LicenseRecords(state).statements("acme") == (revocation(),)


def test_a_crash_between_the_two_copies_keeps_the_newer(
    state: StateDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = LicenseRecords(state)
    records.accept("acme", 7, 3, issuer="issuer")
    real = state.write_document

    def spare_only(name: str, schema: str, body: dict[str, Any]) -> None:
        if name != "licenses-spare":
            raise KeyboardInterrupt
        real(name, schema, body)

    with monkeypatch.context() as patch:
        patch.setattr(state, "write_document", spare_only)
        with pytest.raises(KeyboardInterrupt):
            records.record(revocation())
    again = LicenseRecords(state)
    assert again.damaged is None
    assert again.statements("acme") == (revocation(),)
    # What was once read is acted upon: it must not be forgotten with the spare copy.
    (state.path / "licenses-spare.json").write_text("garbage")
    assert LicenseRecords(state).statements("acme") == (revocation(),)


@pytest.mark.parametrize("missing", ["licenses", "licenses-spare"])
def test_one_missing_copy_loses_nothing(state: StateDir, missing: str) -> None:
    LicenseRecords(state).record(revocation())
    state.delete_document(missing)
    assert LicenseRecords(state).statements("acme") == (revocation(),)


def test_with_both_copies_damaged_nobody_is_let_in_until_root_confirms(state: StateDir) -> None:
    before = LicenseRecords(state)
    before.accept("acme", 7, 3, issuer="issuer")
    before.record(revocation())
    for name in ("licenses", "licenses-spare"):
        (state.path / f"{name}.json").write_text("garbage")
    for _start in range(2):  # the second start finds no damage any more, and must know all the same
        records = LicenseRecords(state)
        assert records.lost
        with pytest.raises(RecordsLost, match="may have been revoked"):
            records.accept("acme", 7, 3, issuer="issuer")
    assert records.accept("acme", 7, 3, issuer="issuer", confirmed=True)
    assert not LicenseRecords(state).accept("acme", 7, 3, issuer="issuer")
    with pytest.raises(RecordsLost):
        LicenseRecords(state).accept("other", 8, 1, issuer="issuer")


def test_an_id_belongs_to_the_issuer_that_was_seen_first(state: StateDir) -> None:
    records = LicenseRecords(state)
    records.accept("acme", 7, 1, issuer="first")
    for opened in (records, LicenseRecords(state)):
        with pytest.raises(IdTaken, match="from the issuer first"):
            opened.accept("acme", 7, 2, issuer="second")
        assert opened.newest_generation("acme") == 1
    assert records.accept("acme", 7, 2, issuer="first")
    assert IdTaken.refusal == "id-taken"


def test_a_batch_is_one_write(state: StateDir, monkeypatch: pytest.MonkeyPatch) -> None:
    writes: list[str] = []
    real = os.rename
    monkeypatch.setattr(
        statedir.os,
        "rename",
        lambda source, target, **rest: (writes.append(target), real(source, target, **rest))[1],
    )
    records = LicenseRecords(state)
    with records.batch():
        for number in range(1, 101):
            records.accept(f"license-{number}", number, 1, issuer="issuer")
        assert writes == []
    assert writes == ["licenses-spare.json", "licenses.json"]
    assert LicenseRecords(state).newest_generation("license-100") == 1


def test_a_refused_license_spoils_no_batch(state: StateDir) -> None:
    records = LicenseRecords(state)
    with records.batch():
        records.accept("acme", 7, 1, issuer="issuer")
        with pytest.raises(NumberTaken):
            records.accept("other", 7, 1, issuer="issuer")
    assert LicenseRecords(state).newest_generation("acme") == 1
