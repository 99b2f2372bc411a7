# SPDX-License-Identifier: Apache-2.0
"""A database in trouble: what is said, and that nothing is half done."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import event, text

from licplane.errors import ExitCode, PlaneError
from licplane.store.catalog_model import Kind, ObjectDraft, Scope
from licplane.store.database import Store

pytest_plugins = ["tests.support.postgres"]


def fill(store: Store, name: str, size: int) -> None:
    with store.transaction() as transaction:
        transaction.put_object(ObjectDraft(Kind.RESOURCE, name, Scope(), os.urandom(size)))


def test_a_full_disk(tmp_path: Path) -> None:
    Store.in_folder(tmp_path / "s").close()
    with Store.open(str(tmp_path / "s"), pool_size=1) as store:

        @event.listens_for(store._engine, "connect")
        def limit(connection: object, record: object) -> None:
            connection.execute("PRAGMA max_page_count=300").close()  # type: ignore[attr-defined]

        with pytest.raises(PlaneError) as refused:
            fill(store, "big", 2_000_000)
        assert "disk is full" in refused.value.message
        fill(store, "small", 10)
        with store.reading() as reader:
            assert [one.name for one in reader.every_object()] == ["small"]
            assert reader.head().revision == 1


def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    folder.mkdir(mode=0o700)
    (folder / "licplane.db").write_bytes(b"something else" * 1000)
    with pytest.raises(PlaneError) as refused:
        Store.in_folder(folder)
    assert refused.value.code is ExitCode.INTERNAL
    assert "Restore a backup" in refused.value.hint


def test_a_head_that_is_gone(store: Store) -> None:
    with store._engine.begin() as connection:
        connection.execute(text("DELETE FROM head"))
    for work in (store.reading, store.transaction):
        with pytest.raises(PlaneError) as refused, work() as opened:
            opened.head()
        assert refused.value.code is ExitCode.INTERNAL


def test_all_connections_in_use(url: str) -> None:
    with Store.open(url) as upgraded:
        upgraded.upgrade()
    with Store.open(url, pool_size=1, lock_wait_s=0.01) as store:
        with store.reading():
            with pytest.raises(PlaneError) as refused, store.reading():
                pass
            assert refused.value.code is ExitCode.BUSY
        fill(store, "a", 1)


@given(name=st.text(st.characters(), min_size=1, max_size=40), value=st.binary(max_size=40))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
def test_any_name_comes_back_or_is_refused(store: Store, name: str, value: bytes) -> None:
    scope = Scope(name, name, (name,), (name,))
    draft = ObjectDraft(Kind.RESOURCE, name, scope, value, name)

    def put() -> None:
        with store.transaction() as transaction:
            transaction.put_object(draft)
            transaction.put_setting(name, value)

    if "\0" in name or any(0xD800 <= ord(one) < 0xE000 for one in name):
        with pytest.raises(PlaneError) as refused:
            put()
        assert refused.value.code is ExitCode.USAGE
        return
    put()
    with store.reading() as reader:
        found = reader.object(Kind.RESOURCE, name)
        assert found is not None
        assert (found.scope, found.payload, found.document) == (scope, value, name)
        assert reader.setting(name) == value
        assert found in reader.objects(Kind.RESOURCE)
