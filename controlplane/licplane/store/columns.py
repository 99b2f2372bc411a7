# SPDX-License-Identifier: Apache-2.0
"""Types of columns: text and numbers that SQLite and PostgreSQL keep alike, or refuse alike."""

from __future__ import annotations

from typing import Final

from sqlalchemy import BigInteger, Dialect, Text, TypeDecorator
from sqlalchemy.types import TypeEngine

from licplane.errors import ExitCode, PlaneError

I64_MAX: Final = 2**63 - 1
NAME_MAX_BYTES: Final = 1024


class Words(TypeDecorator[str]):
    """Text that both databases keep as it is, sorted by its bytes' code points.

    A NUL (which PostgreSQL cannot hold) and halves of surrogate pairs are refused.
    """

    impl = Text
    cache_ok = True

    def __init__(self, max_bytes: int | None = None) -> None:
        super().__init__()
        self.max_bytes = max_bytes

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[str]:
        """Without the collation, PostgreSQL would sort by its locale, and pages would differ."""
        return dialect.type_descriptor(
            Text(collation="C") if dialect.name == "postgresql" else Text()
        )

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        """Refuse what would not come back as it went."""
        del dialect
        if value is None:
            return None
        try:
            size = len(value.encode())
        except UnicodeEncodeError as error:
            raise _refused("Text holds half of a surrogate pair") from error
        if "\0" in value:
            raise _refused("Text holds a NUL character")
        if self.max_bytes is not None and size > self.max_bytes:
            raise _refused(f"A name has {size} bytes, and {self.max_bytes} are the most")
        return value


class Whole(TypeDecorator[int]):
    """A number of 0..2**63-1."""

    impl = BigInteger
    cache_ok = True

    def process_bind_param(self, value: int | None, dialect: Dialect) -> int | None:
        """Refuse what does not fit, on both databases alike."""
        del dialect
        if value is not None and not 0 <= value <= I64_MAX:
            raise _refused(f"The number {value} is not within 0 and {I64_MAX}")
        return value


def _refused(message: str) -> PlaneError:
    return PlaneError(ExitCode.USAGE, message, "Correct the value and try again")
