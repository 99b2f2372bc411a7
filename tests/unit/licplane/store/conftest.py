# SPDX-License-Identifier: Apache-2.0
"""Each test that asks for `url` or `store` runs on SQLite and on a real PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from licplane.store.database import Store


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database."""
    if request.param == "postgresql":
        found: str = request.getfixturevalue("postgres_url")
        return found
    folder = tmp_path / "state"
    folder.mkdir(mode=0o700)
    return f"sqlite:///{folder}/licplane.db"


@pytest.fixture
def store(url: str) -> Iterator[Store]:
    """A store with the newest schema."""
    with Store.open(url) as opened:
        assert opened.upgrade()
        yield opened
