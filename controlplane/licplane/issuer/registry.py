# SPDX-License-Identifier: Apache-2.0
"""The register of issued licenses.

One document a license in licenses/, and numbers.json with the next free license number. A
number is taken durably before anything is signed with it, so a crash may leave a number
unused, never used twice.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from licplane.errors import ExitCode, PlaneError
from licplane.store.folder import StateFolder, damaged, read_document, write_document
from lictoken.claims import AUDIENCE, U32_MAX, License
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
    """Records of one state folder. Callers hold the folder's lock around changes."""

    def __init__(self, folder: StateFolder) -> None:
        self._folder = folder

    def __iter__(self) -> Iterator[Record]:
        for jti in self.ids():
            yield self.get(jti)

    def ids(self) -> list[str]:
        """The ids of all licenses, sorted."""
        return sorted(path.stem for path in self._folder.licenses.glob("*.json"))

    def find(self, jti: str) -> Record | None:
        """The record of a license, or None."""
        path = self._path(jti)
        try:
            document = read_document(path)
        except FileNotFoundError:
            return None
        try:
            return _record(document)
        except (KeyError, TypeError, ValueError, TokenError) as error:
            raise damaged(path, str(error)) from error

    def get(self, jti: str) -> Record:
        """The record of a license. Raises PlaneError NOT_FOUND, with the nearest id."""
        record = self.find(jti) if ID.fullmatch(jti) else None
        if record is None:
            raise PlaneError(
                ExitCode.NOT_FOUND,
                f"There is no license {jti}{suggestion(jti, self.ids())}",
                "`licplane license list` shows all",
            )
        return record

    def take_number(self) -> int:
        """A license number that no license had before, 1..U32_MAX."""
        path = self._folder.numbers
        try:
            number = read_document(path).get("next")
        except FileNotFoundError as error:
            if self.ids():
                raise damaged(path, "it is missing, although licenses exist") from error
            number = 1
        if not isinstance(number, int) or not 1 <= number <= U32_MAX:
            raise damaged(path, f"the next number is {number!r}")
        write_document(path, {"next": number + 1})
        return number

    def put(self, record: Record) -> None:
        """Write a record durably."""
        write_document(
            self._path(record.jti),
            {
                "jti": record.jti,
                "number": record.number,
                "generation": record.generation,
                "issues": [
                    {
                        "kid": issue.license.kid,
                        "claims": license_to_claims(issue.license),
                        "token": issue.token,
                    }
                    for issue in record.issues
                ],
                "statements": [_statement_document(one) for one in record.statements],
            },
        )

    def _path(self, jti: str) -> Path:
        return self._folder.licenses / f"{jti}.json"


def _statement_document(statement: Statement) -> dict[str, object]:
    revocation = statement.revocation
    return {
        "jti": revocation.jti,
        "issuer": revocation.issuer,
        "kid": revocation.kid,
        "issued_at_s": revocation.issued_at_s,
        "action": revocation.action.value,
        "generation": revocation.generation,
        "reason": revocation.reason,
        "token": statement.token,
    }


def _record(document: dict[str, object]) -> Record:
    jti = str(document["jti"])
    issues = cast("list[dict[str, object]]", document["issues"])
    statements = cast("list[dict[str, object]]", document["statements"])
    if not issues:
        raise ValueError("a license without an issue")
    return Record(
        jti=jti,
        number=cast("int", document["number"]),
        generation=cast("int", document["generation"]),
        issues=tuple(_issue(one) for one in issues),
        statements=tuple(_statement(one, jti) for one in statements),
    )


def _issue(document: dict[str, object]) -> Issue:
    claims = cast("dict[str, object]", document["claims"])
    license = license_from_claims(
        claims,
        audience=str(claims["aud"]),
        issuer=str(claims["iss"]),
        kid=str(document["kid"]),
    )
    return Issue(license, str(document["token"]))


def _statement(document: dict[str, object], jti: str) -> Statement:
    revocation = Revocation(
        jti=str(document["jti"]),
        issuer=str(document["issuer"]),
        audience=AUDIENCE,
        issued_at_s=cast("int", document["issued_at_s"]),
        license=jti,
        action=RevocationAction(str(document["action"])),
        generation=cast("int", document["generation"]),
        reason=str(document["reason"]),
        kid=str(document["kid"]),
    )
    return Statement(revocation, str(document["token"]))
