# SPDX-License-Identifier: Apache-2.0
"""Whose license a record names: a host bills only licenses that it was ever given.

What a host was given is what was issued for its labels. Any issue of a license counts, also one
that has ended or was revoked since: usage comes late.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Final

from licplane.errors import PlaneError
from licplane.issuer.registry import issues_of
from licplane.service.license_documents import license_scope
from licplane.service.remembering import Remembered
from licplane.service.usage.values import ReadRecords
from licplane.store.catalog_model import View
from licplane.store.reader import Reader
from licplane.store.usage_model import SetAside
from lictoken.fields import ID

NOT_GIVEN: Final = "its license was not issued for this host"
"""Why a record is both among those set aside and, without its license, among the rows."""
_BYTES_MAX: Final = 16 * 1024 * 1024
_ENTRY_BYTES: Final = 1024


class UsageLicenses:
    """Which licenses hosts may name. Threads may share it.

    Only what may be is remembered: it stays so. A license that is not known may be issued at any
    moment, so those are asked for once in each batch, all together.
    """

    def __init__(self) -> None:
        self._given: Remembered[tuple[View, str], bool] = Remembered(_BYTES_MAX)

    def not_given(self, reader: Reader, view: View, names: Collection[str]) -> set[str]:
        """Those of `names` that were never issued for a host with these labels."""
        asked = {name for name in names if name and self._given.get((view, name)) is None}
        if not asked:
            return set()
        rows = reader.license_issues([name for name in sorted(asked) if ID.fullmatch(name)])
        for name, issues in rows.items():
            try:
                given = any(license_scope(one).visible_in(view) for one in issues_of(name, issues))
            except PlaneError:  # the record is damaged: nothing is billed under it
                continue
            if given:
                self._given.put((view, name), True, _ENTRY_BYTES)
                asked.discard(name)
        return asked


def without(read: ReadRecords, names: Collection[str]) -> tuple[ReadRecords, Sequence[SetAside]]:
    """The records with these licenses taken off, and what to note of each. The batch has them as
    they were signed."""
    noted = [SetAside(row.sequence, NOT_GIVEN, b"") for row in read.rows if row.license in names]
    rows = [row._replace(license="") if row.license in names else row for row in read.rows]
    return replace(read, rows=rows), noted
