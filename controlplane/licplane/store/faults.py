# SPDX-License-Identifier: Apache-2.0
"""What a database says when something is wrong, in words that say what to do next."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from sqlalchemy.exc import (
    DataError,
    DBAPIError,
    IntegrityError,
    SQLAlchemyError,
    StatementError,
)
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from licplane.errors import ExitCode, PlaneError

_BUSY: Final = ("database is locked", "lock timeout", "could not serialize", "deadlock detected")
_NO_SCHEMA: Final = ("no such table", "no such column", 'relation "', 'column "')
_FULL: Final = ("disk is full", "No space left", "could not extend file")
_DAMAGED: Final = ("malformed", "not a database", "corrupted", "invalid page")


@contextmanager
def in_our_words() -> Iterator[None]:
    """Turns the database's errors into PlaneErrors; others pass as they are."""
    try:
        yield
    except PoolTimeoutError as error:
        raise PlaneError(
            ExitCode.BUSY, "All connections to the database are in use", "Try again shortly"
        ) from error
    except StatementError as error:
        if isinstance(error.orig, PlaneError):  # a value that a column refused (columns.Words)
            raise error.orig from None
        raise _translated(error) from error
    except SQLAlchemyError as error:
        raise _translated(error) from error


def _translated(error: SQLAlchemyError) -> PlaneError:
    said = str(error.orig).strip() if isinstance(error, DBAPIError) else str(error)
    short = said.splitlines()[0] if said else type(error).__name__
    if isinstance(error, IntegrityError):
        return PlaneError(
            ExitCode.REFUSED,
            f"Something else in the database has that name, key or number already ({short})",
            "Choose another one",
        )
    if isinstance(error, DataError):
        return PlaneError(
            ExitCode.USAGE, f"The database cannot hold a value ({short})", "Correct the value"
        )
    if any(word in said for word in _BUSY):
        return PlaneError(
            ExitCode.BUSY,
            "Another licplane has been changing the database for too long",
            "Try again when it is done",
        )
    if any(word in said for word in _NO_SCHEMA):
        return PlaneError(
            ExitCode.REFUSED,
            f"The database's schema is not the one this licplane needs ({short})",
            "Back it up with the licplane of before, then run `licplane db upgrade`",
        )
    if any(word in said for word in _FULL):
        return PlaneError(
            ExitCode.BUSY, f"The database's disk is full ({short})", "Make room and try again"
        )
    if any(word in said for word in _DAMAGED):
        return PlaneError(
            ExitCode.INTERNAL, f"The database is damaged ({short})", "Restore a backup"
        )
    return PlaneError(
        ExitCode.BUSY,
        f"The database does not answer as it should ({short})",
        "See that it runs, that its address and password are right, and try again",
    )
