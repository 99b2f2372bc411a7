# SPDX-License-Identifier: Apache-2.0
"""Whatever is done to the catalog: deltas from any revision end in what a view should see."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from licplane.store.catalog_model import CatalogChange, Kind, ObjectDraft, Scope, View
from licplane.store.database import Store
from licplane.store.digest import CatalogDigest

pytest_plugins = ["tests.support.postgres"]

NAMES = st.sampled_from(["a", "b", "c", "d"])
SCOPES = st.builds(
    Scope,
    org=st.sampled_from(["", "x", "y"]),
    environments=st.sampled_from([(), ("prod",), ("prod", "test")]),
)
VIEWS = [View(), View("x"), View("x", environment="prod"), View("y", environment="test")]


@dataclass(frozen=True)
class Put:
    name: str
    scope: Scope
    payload: bytes


@dataclass(frozen=True)
class Remove:
    name: str


@dataclass(frozen=True)
class Compact:
    back: int


CHANGES = st.one_of(st.builds(Put, NAMES, SCOPES, st.binary(max_size=1)), st.builds(Remove, NAMES))
STEPS = st.one_of(st.lists(CHANGES, min_size=1, max_size=4), st.builds(Compact, st.integers(0, 4)))


def take(store: Store, step: list[Put | Remove] | Compact) -> None:
    with store.transaction() as transaction:
        if isinstance(step, Compact):
            transaction.compact_changes(max(0, transaction.head().revision - step.back))
            return
        for change in step:
            if isinstance(change, Put):
                draft = ObjectDraft(Kind.BINDING, change.name, change.scope, change.payload)
                transaction.put_object(draft)
            else:
                transaction.remove_objects(Kind.BINDING, [change.name])


def seen(store: Store, view: View) -> dict[str, bytes]:
    with store.reading() as reader:
        return {
            one.name: one.payload for one in reader.every_object() if one.scope.visible_in(view)
        }


def followed(tables: dict[str, bytes], rows: tuple[CatalogChange, ...], view: View) -> None:
    """What a host does that sees only rows of its view."""
    for row in rows:
        if row.scope.visible_in(view):
            if row.payload is None:
                tables.pop(row.name, None)
            else:
                tables[row.name] = row.payload


def check(store: Store, steps: list[list[Put | Remove] | Compact], limit: int) -> None:
    digest, digested = CatalogDigest(), 0
    # What each view saw at each revision: from any of them a delta must lead to the end.
    snapshots: dict[int, list[dict[str, bytes]]] = {0: [seen(store, view) for view in VIEWS]}
    for step in steps:
        take(store, step)
        with store.reading() as reader:
            head = reader.head()
            rows = reader.changes_since(digested)
            assert rows is None or not rows or rows[-1].revision <= head.revision
            if rows is None:
                digest = CatalogDigest(reader.every_object())
            else:
                for row in rows:
                    digest.apply(row)
            digested = head.revision
            assert digest.root() == reader.catalog_root() == reader.compute_catalog_root()
        snapshots[head.revision] = [seen(store, view) for view in VIEWS]
    for at, tables in enumerate(snapshots[max(snapshots)]):
        for revision, before in snapshots.items():
            mine, base = dict(before[at]), revision
            with store.reading() as reader:
                while rows := reader.changes_since(base, limit=limit):
                    followed(mine, rows, VIEWS[at])
                    base = rows[-1].revision
                if rows is None:
                    assert base < reader.head().oldest_revision
                    continue
            assert mine == tables


@given(steps=st.lists(STEPS, max_size=12), limit=st.integers(0, 3))
@settings(max_examples=40)
def test_any_changes_on_sqlite(
    upgraded_folder: Path, steps: list[list[Put | Remove] | Compact], limit: int
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(upgraded_folder, folder, dirs_exist_ok=True)
        Path(folder).chmod(0o700)
        with Store.open(folder) as store:
            check(store, steps, limit)


def test_a_long_history_on_postgresql(postgres_url: str) -> None:
    east, west = Scope("x", environments=("prod",)), Scope("x")
    steps: list[list[Put | Remove] | Compact] = [
        [Put("a", east, b"1"), Put("b", west, b"1"), Put("c", Scope(), b"1")],
        [Put("a", west, b"1"), Remove("b")],
        [Put("a", east, b"1"), Put("b", east, b"2"), Remove("b")],
        Compact(1),
        [Remove("a"), Put("a", Scope("y"), b"3"), Put("c", Scope(), b"2")],
        [Put("a", Scope(), b"3")],
        Compact(1),
        [Remove("c"), Put("d", west, b"")],
    ]
    with Store.open(postgres_url) as store:
        store.upgrade()
        check(store, steps, 2)
