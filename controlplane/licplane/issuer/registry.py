# SPDX-License-Identifier: Apache-2.0
"""The register of issued licenses: one record a license, with all that was signed about it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from licplane.errors import ExitCode, PlaneError
from licplane.store.reader import Reader
from licplane.store.record_model import LicenseIssue, LicenseRecord, LicenseStatement
from licplane.store.transaction import Transaction
from lictoken.claims import AUDIENCE, License
from lictoken.errors import TokenError
from lictoken.fields import ID, suggestion
from lictoken.payload import license_from_claims, license_to_claims
from lictoken.revocation import Revocation, RevocationAction
from lictoken.validity import Standing, standing


@dataclass(frozen=True, slots=True)
class Issue:
    """One generation of a license, as it was handed out."""

    license: License
    token: str  # armoured


@dataclass(frozen=True, slots=True)
class Statement:
    """One signed statement about a license, as it was handed out."""

    revocation: Revocation
    token: str  # armoured


@dataclass(frozen=True, slots=True)
class Record:
    """Everything that was signed about one license."""

    jti: str
    number: int
    generation: int  # highest one used, by an issue or a statement
    issues: tuple[Issue, ...] = ()
    statements: tuple[Statement, ...] = field(default=())

    @property
    def latest(self) -> License:
        """The newest issue."""
        return self.issues[-1].license

    @property
    def standing(self) -> Standing:
        """What the statements leave of the newest issue."""
        return standing(self.latest, [one.revocation for one in self.statements])


class Registry:
    """Records, as a snapshot or transaction of the store sees them."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader

    def __iter__(self) -> Iterator[Record]:
        return (_record(row) for row in self._reader.licenses())

    def page(self, after: str, limit: int) -> list[Record]:
        """At most `limit` records of ids after `after`."""
        return [_record(row) for row in self._reader.licenses(after=after, limit=limit)]

    def ids(self) -> list[str]:
        """The ids of all licenses, sorted."""
        return self._reader.license_ids()

    def find(self, jti: str) -> Record | None:
        """The record of a license, or None."""
        row = self._reader.license(jti)
        return _record(row) if row is not None else None

    def get(self, jti: str) -> Record:
        """The record of a license. Raises PlaneError NOT_FOUND, with the nearest id."""
        record = self.find(jti) if ID.fullmatch(jti) else None
        if record is None:
            shown = jti if ID.fullmatch(jti) else ascii(jti[:80])
            raise PlaneError(
                ExitCode.NOT_FOUND,
                f"There is no license {shown}{suggestion(jti, self.ids())}",
                "`licplane license list` shows all",
            )
        return record


class OpenRegistry(Registry):
    """The register, open for one transaction."""

    def __init__(self, transaction: Transaction) -> None:
        super().__init__(transaction)
        self._transaction = transaction

    def take_number(self) -> int:
        """A license number that no license had before, 1..U32_MAX."""
        return self._transaction.take_number()

    def put(self, record: Record) -> None:
        """Write a record."""
        self._transaction.put_license(
            LicenseRecord(
                record.jti,
                record.number,
                record.generation,
                tuple(_issue_row(issue) for issue in record.issues),
                tuple(_statement_row(one) for one in record.statements),
            )
        )


def _issue_row(issue: Issue) -> LicenseIssue:
    claims = json.dumps(license_to_claims(issue.license), ensure_ascii=False)
    return LicenseIssue(issue.license.kid, claims, issue.token)


def _statement_row(statement: Statement) -> LicenseStatement:
    revocation = statement.revocation
    return LicenseStatement(
        jti=revocation.jti,
        issuer=revocation.issuer,
        kid=revocation.kid,
        issued_at_s=revocation.issued_at_s,
        action=revocation.action.value,
        generation=revocation.generation,
        reason=revocation.reason,
        token=statement.token,
    )


def _record(row: LicenseRecord) -> Record:
    try:
        if not row.issues:
            raise ValueError("a license without an issue")
        return Record(
            jti=row.jti,
            number=row.number,
            generation=row.generation,
            issues=tuple(_issue(one) for one in row.issues),
            statements=tuple(_statement(one, row.jti) for one in row.statements),
        )
    except (KeyError, TypeError, ValueError, TokenError) as error:
        raise PlaneError(
            ExitCode.INTERNAL,
            f"The record of the license {row.jti} is damaged: {error}",
            "Restore the database from a backup",
        ) from error


def issues_of(jti: str, rows: Iterable[LicenseIssue]) -> list[License]:
    """What was issued of one license. Raises PlaneError INTERNAL for rows that are damaged."""
    try:
        return [_issue(row).license for row in rows]
    except (KeyError, TypeError, ValueError, TokenError) as error:
        raise PlaneError(
            ExitCode.INTERNAL,
            f"The record of the license {jti} is damaged: {error}",
            "Restore the database from a backup",
        ) from error


def _issue(row: LicenseIssue) -> Issue:
    claims = json.loads(row.claims)
    license = license_from_claims(
        claims, audience=str(claims["aud"]), issuer=str(claims["iss"]), kid=row.kid
    )
    return Issue(license, row.token)


def _statement(row: LicenseStatement, license: str) -> Statement:
    revocation = Revocation(
        jti=row.jti,
        issuer=row.issuer,
        audience=AUDIENCE,
        issued_at_s=row.issued_at_s,
        license=license,
        action=RevocationAction(row.action),
        generation=row.generation,
        reason=row.reason,
        kid=row.kid,
    )
    return Statement(revocation, row.token)
