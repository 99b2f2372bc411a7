# SPDX-License-Identifier: Apache-2.0
"""The rows of licenses and of the keys that sign."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Final

from sqlalchemy import Row, delete, select

from licplane.errors import ExitCode, PlaneError
from licplane.store.record_model import (
    KeyKind,
    LicenseIssue,
    LicenseRecord,
    LicenseStatement,
    SealedKey,
)
from licplane.store.schema import keys, license_tokens, licenses
from licplane.store.session import Session, Values, canonical, checked, chunks, paged
from lictoken.claims import U32_MAX

_ISSUE: Final = "issue"
_STATEMENT: Final = "statement"


class SigningReads(Session):
    """Reading licenses and keys."""

    def license(self, jti: str) -> LicenseRecord | None:
        """All that was signed about a license."""
        rows = self._all(select(licenses).where(licenses.c.jti == jti))
        return next(iter(self._records(rows)), None)

    def licenses(self, *, after: str = "", limit: int = 0) -> tuple[LicenseRecord, ...]:
        """Licenses by id."""
        return self._records(self._all(paged(select(licenses), licenses.c.jti, after, limit)))

    def license_ids(self) -> list[str]:
        """The ids of all licenses, sorted."""
        return list(self._connection.scalars(select(licenses.c.jti).order_by(licenses.c.jti)))

    def license_issues(self, ids: Sequence[str]) -> dict[str, list[LicenseIssue]]:
        """All issues of these licenses, in the order of signing; those without are left out."""
        found: dict[str, list[LicenseIssue]] = {}
        for part in chunks(ids):
            table = license_tokens
            statement = select(table).where(table.c.license.in_(part), table.c.type == _ISSUE)
            for row in self._all(statement.order_by(table.c.license, table.c.position)):
                one = _signed(row)
                if isinstance(one, LicenseIssue):
                    found.setdefault(row.license, []).append(one)
        return found

    def key(self, key_id: str) -> SealedKey | None:
        """A sealed private key."""
        row = self._one(select(keys).where(keys.c.key_id == key_id))
        return None if row is None else _key(row)

    def keys(self, kind: KeyKind) -> tuple[SealedKey, ...]:
        """Sealed private keys of a kind, oldest first."""
        statement = select(keys).where(keys.c.kind == kind.value)
        return tuple(
            map(_key, self._all(statement.order_by(keys.c.created_at_unix_ms, keys.c.key_id)))
        )

    def _records(self, rows: Sequence[Row[Any]]) -> tuple[LicenseRecord, ...]:
        issues: dict[str, list[LicenseIssue]] = {}
        statements: dict[str, list[LicenseStatement]] = {}
        for part in chunks([row.jti for row in rows]):
            tokens = select(license_tokens).where(license_tokens.c.license.in_(part))
            order = (license_tokens.c.license, license_tokens.c.position)
            for token in self._all(tokens.order_by(*order)):
                one = _signed(token)
                if isinstance(one, LicenseIssue):
                    issues.setdefault(token.license, []).append(one)
                else:
                    statements.setdefault(token.license, []).append(one)
        return tuple(
            LicenseRecord(
                row.jti,
                row.number,
                row.generation,
                tuple(issues.get(row.jti, ())),
                tuple(statements.get(row.jti, ())),
            )
            for row in rows
        )


class SigningWrites(SigningReads):
    """Changing licenses and keys."""

    _next_number: int

    def take_number(self) -> int:
        """A license number that no license had before, 1..2**32-1."""
        if self._next_number > U32_MAX:
            raise PlaneError(
                ExitCode.REFUSED,
                "There is no license number left",
                "Issue under an --id that exists, or start another control plane",
            )
        self._next_number += 1
        return self._next_number - 1

    def start_numbers(self, next_number: int) -> None:
        """Give out no number below `next_number` from now on."""
        self._next_number = max(self._next_number, next_number)

    def put_license(self, record: LicenseRecord) -> None:
        """Create or replace the record of a license. `claims` must be JSON.

        Raises PlaneError REFUSED when another license has the number.
        """
        self._put(
            licenses,
            [{"jti": record.jti, "number": record.number, "generation": record.generation}],
        )
        rows = [
            *(
                _token(record.jti, at, _ISSUE, one.token, _issue_document(one))
                for at, one in enumerate(record.issues)
            ),
            *(
                _token(record.jti, at, _STATEMENT, one.token, _statement_document(one))
                for at, one in enumerate(record.statements)
            ),
        ]
        self._run(delete(license_tokens).where(license_tokens.c.license == record.jti))
        self._put(license_tokens, rows)

    def put_key(self, key: SealedKey) -> None:
        """Create or replace a sealed private key."""
        self._put(
            keys,
            [
                {
                    "key_id": key.key_id,
                    "kind": key.kind.value,
                    "owner": key.owner,
                    "document": key.document,
                    "created_at_unix_ms": key.created_at_unix_ms,
                }
            ],
        )

    def delete_key(self, key_id: str) -> bool:
        """Delete a sealed private key; False if there is none."""
        return self._run(delete(keys).where(keys.c.key_id == key_id)) == 1


def _issue_document(issue: LicenseIssue) -> dict[str, object]:
    return {"kid": issue.kid, "claims": json.loads(issue.claims)}


def _statement_document(statement: LicenseStatement) -> dict[str, object]:
    return {
        "jti": statement.jti,
        "issuer": statement.issuer,
        "kid": statement.kid,
        "issued_at_s": statement.issued_at_s,
        "action": statement.action,
        "generation": statement.generation,
        "reason": statement.reason,
    }


def _token(jti: str, position: int, what: str, token: str, document: dict[str, object]) -> Values:
    return {
        "license": jti,
        "position": position,
        "type": what,
        "document": canonical(document),
        "token": token,
    }


@checked
def _signed(row: Row[Any]) -> LicenseIssue | LicenseStatement:
    document = json.loads(row.document)
    if row.type == _STATEMENT:
        return LicenseStatement(**document, token=row.token)
    return LicenseIssue(document["kid"], canonical(document["claims"]), row.token)


@checked
def _key(row: Row[Any]) -> SealedKey:
    return SealedKey(row.key_id, KeyKind(row.kind), row.owner, row.document, row.created_at_unix_ms)
