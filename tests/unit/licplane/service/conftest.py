# SPDX-License-Identifier: Apache-2.0
"""A control plane on a database of its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.unit.licplane.service.usage_sender import Sender
from tests.unit.licplane.service.world import World, license, make_world, resource

from licplane.store.database import Store


@pytest.fixture
def state(tmp_path: Path) -> Path:
    folder = tmp_path / "state"
    folder.mkdir(mode=0o700)
    return folder


@pytest.fixture
def world(state: Path) -> Iterator[World]:
    """On SQLite."""
    with Store.in_folder(state) as store:
        yield make_world(store)


@pytest.fixture(params=["sqlite", "postgresql"])
def both(request: pytest.FixtureRequest, state: Path) -> Iterator[World]:
    """On SQLite, and on a real PostgreSQL."""
    if request.param == "postgresql":
        opened = Store.open(request.getfixturevalue("postgres_url"))
        opened.upgrade()
    else:
        opened = Store.in_folder(state)
    with opened as store:
        yield make_world(store)


@pytest.fixture
def sender(both: World) -> Sender:
    both.apply(resource(), license())
    return Sender(both, both.host(org="acme", project="shop", environment="prod", region="eu"))
