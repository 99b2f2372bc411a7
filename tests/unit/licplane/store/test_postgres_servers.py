# SPDX-License-Identifier: Apache-2.0
"""URLs with several hosts, and which lineage is behind which. The servers themselves are in
tests/system/test_usage_failover.py."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import create_engine

from licplane.errors import ExitCode, PlaneError
from licplane.store.engine import parse_url
from licplane.store.history import Lineage


def arguments(text: str) -> dict[str, Any]:
    """What the driver is called with."""
    url = parse_url(text)
    _, found = create_engine(url).dialect.create_connect_args(url)
    wanted = ("host", "port", "user", "password", "dbname", "target_session_attrs", "sslmode")
    return {name: str(found[name]) for name in wanted if name in found}


@pytest.mark.parametrize(
    "text",
    [
        "postgresql://me:pw@a:1,b:2/plane",
        "postgresql+psycopg://me:pw@/plane?host=a:1&host=b:2",
        "postgresql+psycopg://me:pw@/plane?host=a,b&port=1,2",
        "postgresql://me:pw@a:1,b:2/plane?target_session_attrs=read-write",
    ],
)
def test_several_hosts_in_each_form(text: str) -> None:
    assert arguments(text) == {
        "host": "a,b",
        "port": "1,2",
        "user": "me",
        "password": "pw",
        "dbname": "plane",
        "target_session_attrs": "read-write",
    }


def test_ports_addresses_and_options() -> None:
    found = arguments("postgresql://[::1]:5433,b/plane?sslmode=verify-full")
    assert (found["host"], found["port"]) == ("::1,b", "5433,")
    assert found["sslmode"] == "verify-full"
    found = arguments("postgresql://a,b/plane")
    assert (found["host"], found["port"]) == ("a,b", ",")  # empty: libpq's default


def test_what_is_asked_for_stays() -> None:
    assert arguments("postgresql://a/plane")["target_session_attrs"] == "read-write"
    asked = arguments("postgresql://a/plane?target_session_attrs=any")
    assert asked["target_session_attrs"] == "any"


@pytest.mark.parametrize(
    "text",
    ["postgresql://me:secret@a:x,b:2/plane", "postgresql://me:secret@a,b/plane?host=c"],
)
def test_what_is_none_is_refused_without_its_password(text: str) -> None:
    with pytest.raises(PlaneError) as error:
        parse_url(text)
    assert error.value.code is ExitCode.USAGE
    assert "secret" not in f"{error.value}{error.value.__cause__}"


def test_behind_is_only_the_same_cluster_on_an_older_timeline() -> None:
    old, new, other = Lineage(7, 1), Lineage(7, 2), Lineage(8, 3)
    assert old.is_behind(new)
    assert not new.is_behind(old)
    assert not old.is_behind(old)
    assert not old.is_behind(None)
    assert not old.is_behind(other)
