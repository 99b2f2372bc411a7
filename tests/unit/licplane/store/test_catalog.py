# SPDX-License-Identifier: Apache-2.0
"""Catalog, change log, compaction and digest."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import text

from licplane.errors import ExitCode, PlaneError
from licplane.store.catalog_model import CatalogChange, Kind, ObjectDraft, Scope, View
from licplane.store.database import Store
from licplane.store.digest import CatalogDigest, catalog_root
from lictoken.sealed import Seal

pytest_plugins = ["tests.support.postgres"]

EAST = Scope("acme", "web", ("prod",), ("east",))
WEST = Scope("acme", "web", ("prod",), ("west",))


def draft(
    name: str, payload: bytes = b"{}", scope: Scope = EAST, document: str = ""
) -> ObjectDraft:
    return ObjectDraft(Kind.BINDING, name, scope, payload, document)


def put(store: Store, *drafts: ObjectDraft) -> int:
    with store.transaction() as transaction:
        transaction.put_objects(drafts)
        return transaction.head().revision


def changes(store: Store, since: int = 0) -> list[tuple[int, str, Scope, bytes | None]]:
    with store.reading() as reader:
        found = reader.changes_since(since)
        assert found is not None
        return [(row.revision, row.name, row.scope, row.payload) for row in found]


def test_what_was_put_comes_back(store: Store) -> None:
    wanted = ObjectDraft(
        Kind.RESOURCE, "db/é 'x' \"y\"", EAST, bytes(range(256)), '{"a": "\u2028"}'
    )
    with store.transaction() as transaction:
        made = transaction.put_object(wanted)
        assert transaction.object(Kind.RESOURCE, wanted.name) == made
    with store.reading() as reader:
        found = reader.object(Kind.RESOURCE, wanted.name)
        assert found == made
        assert reader.object(Kind.BINDING, wanted.name) is None
        assert reader.objects_named(Kind.RESOURCE, ["no", wanted.name]) == {wanted.name: made}
        assert list(reader.every_object()) == [made]
    assert (made.name, made.scope, made.payload, made.document, made.revision) == (
        wanted.name,
        wanted.scope,
        wanted.payload,
        wanted.document,
        1,
    )


def test_a_transaction_is_one_revision(store: Store) -> None:
    assert put(store, draft("a"), draft("b")) == 1
    assert put(store, draft("c")) == 2
    assert [row[:2] for row in changes(store)] == [(1, "a"), (1, "b"), (2, "c")]
    assert [row[:2] for row in changes(store, 1)] == [(2, "c")]
    assert changes(store, 2) == []


def test_the_same_again_is_no_change(store: Store) -> None:
    put(store, draft("a", b"1", document="{}"))
    assert put(store, draft("a", b"1", document="{}")) == 1
    with store.transaction() as transaction:
        before = transaction.object(Kind.BINDING, "a")
        after = transaction.put_object(draft("a", b"1", document='{"x": 1}'))
        assert before is not None
        assert after.etag != before.etag
        assert (after.revision, transaction.head().revision) == (1, 1)
    assert len(changes(store)) == 1


def test_a_moved_object_leaves_its_old_scope_first(store: Store) -> None:
    put(store, draft("a", b"1", EAST))
    put(store, draft("a", b"1", WEST))
    assert changes(store, 1) == [(2, "a", EAST, None), (2, "a", WEST, b"1")]
    with store.transaction() as transaction:
        assert transaction.remove_objects(Kind.BINDING, ["a", "a", "never"]) == 1
    assert changes(store, 2) == [(3, "a", WEST, None)]
    with store.reading() as reader:
        assert reader.object(Kind.BINDING, "a") is None


def test_the_last_row_about_an_object_is_how_it_stands(store: Store) -> None:
    put(store, draft("a", b"1", EAST))
    with store.transaction() as transaction:
        for scope in (WEST, EAST, WEST, EAST):
            transaction.put_object(draft("a", b"2", scope))
    assert changes(store, 1) == [(2, "a", WEST, None), (2, "a", EAST, b"2")]
    with store.transaction() as transaction:
        transaction.remove_objects(Kind.BINDING, ["a"])
        transaction.put_object(draft("a", b"3", EAST))
    assert changes(store, 2) == [(3, "a", EAST, b"3")]
    with store.reading() as reader:
        assert reader.compute_catalog_root() == reader.catalog_root()


def test_pages_end_with_a_whole_revision(store: Store) -> None:
    put(store, *(draft(f"a{at}") for at in range(3)))
    put(store, draft("b"))
    put(store, draft("c"))
    with store.reading() as reader:
        seen: list[CatalogChange] = []
        sizes = []
        while page := reader.changes_since(seen[-1].revision if seen else 0, limit=2):
            seen += page
            sizes.append(len(page))
        assert sizes == [3, 2]
        assert tuple(seen) == reader.changes_since(0)


def test_compaction_keeps_what_deltas_need(store: Store) -> None:
    for payload in (b"1", b"2", b"3"):
        put(store, draft("a", payload))
    put(store, draft("gone"))
    with store.transaction() as transaction:
        transaction.remove_objects(Kind.BINDING, ["gone"])
    put(store, draft("late"))
    with store.transaction() as transaction:
        transaction.remove_objects(Kind.BINDING, ["late"])
    with store.transaction() as transaction:
        assert transaction.compact_changes(5) == 4
        assert transaction.head().oldest_revision == 5
    with store.reading() as reader:
        assert reader.changes_since(4) is None
        assert reader.changes_since(5) is not None
    assert [row[:2] for row in changes(store, 5)] == [(6, "late"), (7, "late")]
    with store.transaction() as transaction:
        transaction.compact_changes(99)
        assert transaction.head().oldest_revision == 7
    with store.reading() as reader:
        assert reader.changes_since(6) is None
        assert reader.changes_since(7) == ()
        assert [one.name for one in reader.every_object()] == ["a"]


def test_compaction_without_removals_forbids_no_delta(store: Store) -> None:
    for payload in (b"1", b"2"):
        put(store, draft("a", payload))
    with store.transaction() as transaction:
        assert transaction.compact_changes(2) == 1
    assert changes(store) == [(2, "a", EAST, b"2")]


def test_a_dry_run_leaves_nothing(store: Store) -> None:
    put(store, draft("a"))
    with store.transaction(dry_run=True) as transaction:
        transaction.put_object(draft("b"))
        transaction.take_number()
        assert transaction.head().revision == 2
        assert transaction.object(Kind.BINDING, "b") is not None
    with store.transaction() as transaction:
        assert transaction.head().revision == 1
        assert transaction.object(Kind.BINDING, "b") is None
        assert transaction.take_number() == 1


def test_an_error_leaves_nothing(store: Store) -> None:
    def work() -> None:
        with store.transaction() as transaction:
            transaction.put_object(draft("b"))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        work()
    assert changes(store) == []
    assert put(store, draft("a")) == 1


def test_the_seal_is_kept_with_the_head(store: Store) -> None:
    seal = Seal(b"payload", "kid", bytes(64))
    with store.transaction() as transaction:
        transaction.put_object(draft("a"))
        transaction.seal_catalog(seal)
        assert transaction.head().seal == seal
    with store.reading() as reader:
        assert reader.head().seal == seal


def test_the_root_follows_the_changes(store: Store) -> None:
    roots = []
    with store.reading() as reader:
        roots.append(reader.catalog_root())
        assert roots[0] == catalog_root(())
    for work in (
        [draft("a", b"1")],
        [draft("a", b"2")],
        [draft("a", b"2", WEST)],
        [draft(f"n{at}") for at in range(300)],
    ):
        with store.transaction() as transaction:
            assert transaction.root_before() == roots[-1]
            transaction.put_objects(work)
            assert transaction.root_before() == roots[-1]
            roots.append(transaction.root_after())
        with store.reading() as reader:
            assert reader.catalog_root() == roots[-1]
            assert reader.compute_catalog_root() == roots[-1]
    assert len(set(roots)) == len(roots)
    with store.transaction() as transaction:
        transaction.remove_objects(Kind.BINDING, ["a", *(f"n{at}" for at in range(300))])
        assert transaction.root_after() == roots[0]


def test_a_digest_in_memory_follows_the_log(store: Store) -> None:
    digest = CatalogDigest()
    put(store, draft("a", b"1"), draft("b"))
    put(store, draft("a", b"1", WEST))
    with store.transaction() as transaction:
        transaction.remove_objects(Kind.BINDING, ["b"])
    with store.reading() as reader:
        for change in reader.changes_since(0) or ():
            digest.apply(change)
        assert digest.root() == reader.catalog_root()


@pytest.mark.parametrize(
    "tampering",
    [
        "UPDATE objects SET payload = 'other'",
        'UPDATE objects SET scope = \'["","",[],[]]\'',
        "DELETE FROM objects",
        "UPDATE objects SET name = 'z' || name",
        "INSERT INTO objects SELECT 1, name, scope, payload, '', '', 1, bucket FROM objects",
    ],
)
def test_altered_rows_are_found(store: Store, tampering: str) -> None:
    put(store, draft("a", b"1"), draft("b", b"1"))
    with store.reading() as reader:
        signed = reader.catalog_root()
    statement = tampering.replace("'other'", "X'00'") if store.folder else tampering
    with store._engine.begin() as connection:
        connection.execute(text(statement))
    with store.reading() as reader:
        assert reader.catalog_root() == signed
        assert reader.compute_catalog_root() != signed
    with pytest.raises(PlaneError) as refused, store.transaction() as transaction:
        transaction.put_object(draft("a", b"2"))
    assert refused.value.code is ExitCode.INTERNAL


@pytest.mark.parametrize(
    "column", ["scope = '{'", "scope = '[1]'", "scope = '[[], 1, 2, 3]'", "kind = 77"]
)
def test_rows_that_make_no_sense(store: Store, column: str) -> None:
    put(store, draft("a", b"1"))
    with store._engine.begin() as connection:
        connection.execute(text(f"UPDATE objects SET {column}"))
    with pytest.raises(PlaneError) as refused, store.reading() as reader:
        reader.compute_catalog_root()
    assert refused.value.code is ExitCode.INTERNAL


def test_text_where_bytes_should_be(tmp_path: Path) -> None:
    with Store.in_folder(tmp_path / "state") as store:
        put(store, draft("a", b"1"))
        with store._engine.begin() as connection:
            connection.execute(text("UPDATE objects SET payload = 'text'"))
        with pytest.raises(PlaneError) as refused, store.reading() as reader:
            reader.compute_catalog_root()
        assert refused.value.code is ExitCode.INTERNAL


def test_a_root_altered_to_fit_is_not_the_one_that_was_signed(store: Store) -> None:
    put(store, draft("a", b"1"))
    with store.reading() as reader:
        signed = reader.catalog_root()
    with store.transaction() as other:  # as somebody would who has the database, but no key
        other.put_object(draft("mine"))
    with store.transaction() as transaction:
        assert transaction.root_before() != signed


@pytest.mark.parametrize("name", ["a\0b", "\ud800", "x" * 1025])
def test_names_no_database_holds(store: Store, name: str) -> None:
    for work in (
        lambda transaction: transaction.put_object(draft(name)),
        lambda transaction: transaction.object(Kind.BINDING, name),
        lambda transaction: transaction.objects(Kind.BINDING, after=name),
        lambda transaction: transaction.remove_objects(Kind.BINDING, [name]),
    ):
        with pytest.raises(PlaneError) as refused, store.transaction() as transaction:
            work(transaction)
        assert refused.value.code is ExitCode.USAGE
    assert changes(store) == []


@pytest.mark.parametrize(
    ("scope", "view", "visible"),
    [
        (Scope(), View(), True),
        (Scope("acme"), View(), False),
        (Scope("acme"), View("acme", "web", "prod", "east"), True),
        (Scope("acme", "web"), View("acme", "db"), False),
        (Scope(environments=("prod",)), View("acme", "web", "prod"), True),
        (Scope(environments=("prod",)), View("acme", "web", ""), False),
        (Scope(regions=("east", "west")), View(region="west"), True),
        (Scope(regions=("east",)), View(region="west"), False),
    ],
)
def test_visibility(scope: Scope, view: View, visible: bool) -> None:
    assert scope.visible_in(view) is visible
