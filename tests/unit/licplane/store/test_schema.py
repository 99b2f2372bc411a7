# SPDX-License-Identifier: Apache-2.0
"""The schema's steps: up from nothing, down to nothing, and what they make is what is declared."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Text, create_engine, inspect, text

from licplane.errors import ExitCode, PlaneError
from licplane.store import upgrading
from licplane.store.catalog_model import Kind, ObjectDraft, Scope
from licplane.store.columns import Words
from licplane.store.database import Store
from licplane.store.schema import metadata

pytest_plugins = ["tests.support.postgres"]


def tables(url: str) -> set[str]:
    engine = create_engine(url)
    try:
        with engine.connect() as connection:
            names = set(inspect(connection).get_table_names())
    finally:
        engine.dispose()
    return {name for name in names if not is_part(name)}


def is_part(name: str) -> bool:
    """PostgreSQL's partitions are tables too; those that are declared are their parents."""
    return name.startswith("usage_records_")


def test_up_from_nothing_and_down_to_nothing(url: str) -> None:
    with Store.open(url) as store:
        assert store.current() == ""
        assert store.upgrade()
        assert store.current() == store.newest()
        assert not store.upgrade()
        store.check()
        assert tables(url) == {*metadata.tables, "alembic_version"}
        assert store.downgrade("base")
        assert tables(url) == set()
        assert not store.downgrade("base")
        assert store.upgrade()
        with store.transaction() as transaction:
            transaction.put_object(ObjectDraft(Kind.RESOURCE, "db", Scope(), b"{}"))


def test_each_step_goes_both_ways(url: str) -> None:
    config = Config()
    config.set_main_option("script_location", "licplane.store:migrations")
    config.set_main_option("path_separator", "os")
    steps = [step.revision for step in ScriptDirectory.from_config(config).walk_revisions()]
    assert steps[0] == upgrading.NEWEST
    with Store.open(url) as store:
        for step in reversed(steps):
            assert store.upgrade(step)
            before = tables(url)
            assert store.downgrade("-1")
            assert tables(url) != before
            assert store.upgrade(step)
            assert tables(url) == before


def differs(
    context: MigrationContext, found: object, wanted: object, is_type: Any, want_type: Any
) -> bool | None:
    """Alembic asks a TypeDecorator for its plain type; the collation is in the dialect's."""
    if not isinstance(want_type, Words):
        return None  # Alembic's own comparison
    return not isinstance(is_type, Text) or is_type.collation != (
        "C" if context.dialect.name == "postgresql" else None
    )


def comparison(connection: Connection) -> list[Any]:
    opts = {
        "compare_type": differs,
        "include_name": lambda name, kind, _: kind != "table" or not is_part(name),
    }
    context = MigrationContext.configure(connection, opts=opts)
    found: list[Any] = compare_metadata(context, metadata)
    return found


def test_steps_make_what_is_declared(url: str) -> None:
    with Store.open(url) as store:
        store.upgrade()
    engine = create_engine(url)
    try:
        with engine.connect() as connection:
            assert comparison(connection) == []
    finally:
        engine.dispose()


def test_the_comparison_sees_a_difference(store: Store, url: str) -> None:
    engine = create_engine(url)
    try:
        with engine.begin() as connection:
            connection.execute(text("ALTER TABLE hosts ADD COLUMN extra TEXT"))
        with engine.connect() as connection:
            assert comparison(connection)
    finally:
        engine.dispose()


def test_names_sort_by_code_points_in_both(store: Store) -> None:
    names = ["b", "A", "a", "B", "_", "-", "é", "z", "10", "9"]
    with store.transaction() as transaction:
        transaction.put_objects(
            [ObjectDraft(Kind.RESOURCE, name, Scope(), b"{}") for name in names]
        )
    with store.reading() as reader:
        assert [one.name for one in reader.objects(Kind.RESOURCE)] == sorted(names)
        paged, after = [], ""
        while page := reader.objects(Kind.RESOURCE, after=after, limit=3):
            paged += [one.name for one in page]
            after = page[-1].name
        assert paged == sorted(names)


def test_without_a_schema_it_says_what_to_run(url: str) -> None:
    with Store.open(url) as store:
        with pytest.raises(PlaneError) as refused:
            store.check()
        assert refused.value.code is ExitCode.REFUSED
        assert "licplane db upgrade" in str(refused.value)
        with pytest.raises(PlaneError, match="licplane db upgrade"), store.reading() as reader:
            reader.head()


def test_a_newer_schema_is_left_alone(store: Store, url: str) -> None:
    engine = create_engine(url)
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    engine.dispose()
    for work in (store.check, store.upgrade, lambda: store.downgrade("base")):
        with pytest.raises(PlaneError, match="9999, which this licplane does not know"):
            work()
    assert "hosts" in tables(url)


def test_an_unknown_step_is_refused(store: Store) -> None:
    with pytest.raises(PlaneError) as refused:
        store.upgrade("nowhere")
    assert refused.value.code is ExitCode.USAGE
    assert store.current() == store.newest()


@pytest.mark.parametrize(
    "url", ["mysql://root:geheim@localhost/x", "sqlite://", "sqlite:///:memory:", "://", "http://["]
)
def test_other_databases_are_refused(url: str) -> None:
    with pytest.raises(PlaneError) as refused:
        Store.open(url)
    assert refused.value.code is ExitCode.USAGE
    assert "geheim" not in str(refused.value)


def test_a_server_that_is_not_there() -> None:
    with Store.open("postgresql://nobody:geheim@127.0.0.1:1/x") as store:
        with pytest.raises(PlaneError) as refused:
            store.check()
        assert refused.value.code is ExitCode.BUSY
        assert "geheim" not in str(refused.value)


def test_only_the_owner_reads_the_file(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    with Store.in_folder(folder) as store, store.transaction() as transaction:
        transaction.put_setting("secret", b"x")
        modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}
    assert modes.pop("licplane.db-wal") == 0o600
    assert set(modes.values()) == {0o600}
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_a_folder_that_others_may_change_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    Store.in_folder(folder).close()
    folder.chmod(0o777)
    with pytest.raises(PlaneError, match="Others may change"):
        Store.in_folder(folder)
    with Store.open(str(folder)) as store, pytest.raises(PlaneError, match="Others may change"):
        store.check()


def test_a_new_folder_opens_with_the_newest_schema(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "state"
    with Store.in_folder(folder) as store:
        assert store.current() == store.newest()
        store.downgrade("base")
    with Store.in_folder(folder) as store:
        store.check()


def test_a_folder_with_an_older_schema_keeps_it(tmp_path: Path) -> None:
    """So that whoever keeps back the migration can go back to the licplane of before."""
    folder = tmp_path / "state"
    with Store.in_folder(folder) as store:
        assert store.downgrade("0002")
    with pytest.raises(PlaneError, match="licplane db upgrade") as refused:
        Store.in_folder(folder)
    assert refused.value.code is ExitCode.REFUSED
    with Store.open(str(folder)) as store:
        assert store.current() == "0002"
        assert store.upgrade()
    Store.in_folder(folder).close()
