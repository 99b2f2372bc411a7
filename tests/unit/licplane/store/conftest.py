# SPDX-License-Identifier: Apache-2.0
"""Each test that asks for `url` or `store` runs on SQLite and on a real PostgreSQL.

The database is empty, or, for tests that ask for `store`, a copy of one with the newest schema:
making that anew would be most of what these tests do.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from licplane.store.database import Store

if TYPE_CHECKING:
    from tests.support.postgres import Postgres


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A database of the test's own."""
    is_upgraded = "store" in request.fixturenames
    if request.param == "postgresql":
        server: Postgres = request.getfixturevalue("postgres")
        template = "template1"
        if is_upgraded:
            template = request.getfixturevalue("upgraded_database")
        with server.database(template) as database:
            yield database
        return
    folder = tmp_path / "state"
    if is_upgraded:
        shutil.copytree(request.getfixturevalue("upgraded_folder"), folder)
    else:
        folder.mkdir(mode=0o700)
    yield f"sqlite:///{folder}/licplane.db"


@pytest.fixture
def store(url: str) -> Iterator[Store]:
    """A store with the newest schema."""
    with Store.open(url) as opened:
        yield opened


@pytest.fixture(scope="session")
def upgraded_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A state folder with the newest schema, to copy."""
    folder = tmp_path_factory.mktemp("upgraded") / "state"
    Store.in_folder(folder).close()
    return folder


@pytest.fixture(scope="session")
def upgraded_database(postgres: Postgres) -> Iterator[str]:
    """The name of a database with the newest schema, to copy."""
    with postgres.database() as url:
        with Store.open(url) as opened:
            assert opened.upgrade()
        yield url.rpartition("/")[2]
