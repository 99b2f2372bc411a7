# SPDX-License-Identifier: Apache-2.0
"""The schema's steps up and down, each run in one transaction, by one process at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sqlalchemy import Connection, inspect, text

from licplane.errors import ExitCode, PlaneError

if TYPE_CHECKING:
    from alembic.config import Config

NEWEST: Final = "0003"
"""The id of the last step. Alembic knows it too, but takes long to load, and runs rarely."""
_LOCATION: Final = "licplane.store:migrations"
_LOCK: Final = 0x6C6963706C616E65  # "licplane"; an advisory lock of PostgreSQL is a bigint
BASE: Final = "base"


def current(connection: Connection) -> str:
    """The id of the step that the database is at; empty when there is no schema."""
    if not inspect(connection).has_table("alembic_version"):
        return ""
    return connection.scalar(text("SELECT version_num FROM alembic_version")) or ""


def is_known(revision: str) -> bool:
    """Whether this program has the step."""
    from alembic.script import ScriptDirectory
    from alembic.util import CommandError

    try:
        return ScriptDirectory.from_config(_config(None)).get_revision(revision) is not None
    except CommandError:
        return False


def upgrade(connection: Connection, revision: str) -> bool:
    """Go up to `revision`; whether a step was taken."""
    _lock(connection)
    before = current(connection)
    if before == NEWEST and revision in ("head", NEWEST):
        return False
    _check(before)
    _run(connection, "upgrade", revision)
    return current(connection) != before


def downgrade(connection: Connection, revision: str) -> bool:
    """Go down to `revision`; `base` leaves nothing. Whether a step was taken."""
    _lock(connection)
    before = current(connection)
    _check(before)
    if before:
        _run(connection, "downgrade", revision)
    after = current(connection)
    if not after:
        connection.execute(text("DROP TABLE IF EXISTS alembic_version"))
    return after != before


def check(connection: Connection) -> None:
    """Raise PlaneError REFUSED unless the schema is the newest one."""
    found = current(connection)
    _check(found)
    if found == NEWEST:
        return
    what = f"at step {found}" if found else "empty"
    raise PlaneError(
        ExitCode.REFUSED,
        f"The database is {what}, and this licplane needs step {NEWEST}",
        "Back it up with the licplane of before, then run `licplane db upgrade`",
    )


def _check(found: str) -> None:
    if found and found != NEWEST and not is_known(found):
        raise PlaneError(
            ExitCode.REFUSED,
            f"The database is at step {found}, which this licplane does not know",
            "Use the licplane that made it, or a newer one",
        )


def _lock(connection: Connection) -> None:
    """SQLite's BEGIN IMMEDIATE locked already."""
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})


def _run(connection: Connection, direction: str, revision: str) -> None:
    from alembic import command
    from alembic.util import CommandError

    step = command.upgrade if direction == "upgrade" else command.downgrade
    try:
        step(_config(connection), revision)
    except CommandError as error:
        raise PlaneError(
            ExitCode.USAGE,
            f"There is no way to step {revision}: {error}",
            "`licplane db current` shows the database's step and the newest one",
        ) from error


def _config(connection: Connection | None) -> Config:
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", _LOCATION)
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    return config
