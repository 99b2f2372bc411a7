# SPDX-License-Identifier: Apache-2.0
"""Takes over what licplane kept in files before it had a database.

keys/*.json are sealed keys, licenses/*.json what was signed about each license, numbers.json the
next license number, trust.jwks the public keys. All come over in one transaction, or none. Then
the files are moved to imported/, so that an older licplane finds nothing to go on from: it would
give out license numbers that the database has given already. trust.jwks stays: it is public.
"""

from __future__ import annotations

import contextlib
import json
from datetime import datetime
from pathlib import Path
from typing import Final, cast

from licplane.errors import ExitCode, PlaneError
from licplane.store.folder import StateFolder, damaged, read_document, sync_folder
from licplane.store.reader import Reader
from licplane.store.record_model import (
    KeyKind,
    LicenseIssue,
    LicenseRecord,
    LicenseStatement,
    SealedKey,
)
from licplane.store.session import canonical
from licplane.store.transaction import Transaction
from lictoken.claims import U32_MAX
from lictoken.errors import TokenError
from lictoken.trust import TrustStore

TRUST_SETTING: Final = "trust.jwks"
"""The setting that holds the issuers' public keys, a JWKS."""
_DONE_SETTING: Final = "files.imported"
_ASIDE: Final = "imported"


class FolderImport:
    """The files of one state folder. Callers hold its lock."""

    def __init__(self, folder: StateFolder) -> None:
        self._folder = folder

    def exists(self) -> bool:
        """Whether there is anything to take over."""
        return bool(self._keys() or self._licenses() or self._folder.numbers.exists())

    def is_done(self, reader: Reader) -> bool:
        """Whether the database has taken these files over."""
        return reader.setting(_DONE_SETTING) == str(self._folder.root.absolute()).encode()

    def run(self, transaction: Transaction) -> None:
        """Write all of it. Raises PlaneError INTERNAL when a file is damaged."""
        if transaction.license_ids() or transaction.keys(KeyKind.ISSUER):
            raise PlaneError(
                ExitCode.REFUSED,
                f"The database has keys or licenses already, so {self._folder.root} stays as it is",
                "Import into an empty database",
            )
        trust = self._trust()
        created = {key.kid: key.created_at for key in trust}
        for path in self._keys():
            transaction.put_key(_key(path, created))
        records = [(path, _record(path)) for path in self._licenses()]
        for path, record in records:
            if path.stem != record.jti:
                raise damaged(path, f"it is about {record.jti}")
            transaction.put_license(record)
        transaction.start_numbers(self._next_number([record.number for _, record in records]))
        if len(trust):
            transaction.put_setting(TRUST_SETTING, trust.to_bytes())
        transaction.put_setting(_DONE_SETTING, str(self._folder.root.absolute()).encode())

    def set_aside(self) -> None:
        """Move the files to imported/. Cut off in between, it goes on the next time."""
        aside = self._folder.root / _ASIDE
        aside.mkdir(mode=0o700, exist_ok=True)
        for source in (*self._keys(), *self._licenses(), self._folder.numbers):
            target = aside / source.relative_to(self._folder.root)
            target.parent.mkdir(mode=0o700, exist_ok=True)
            with contextlib.suppress(FileNotFoundError):
                source.rename(target)
        for folder in (self._folder.keys, self._folder.licenses):
            with contextlib.suppress(OSError):  # absent, or with files that are not ours
                folder.rmdir()
        sync_folder(aside)
        sync_folder(self._folder.root)

    def _keys(self) -> list[Path]:
        return sorted(self._folder.keys.glob("*.json"))

    def _licenses(self) -> list[Path]:
        return sorted(self._folder.licenses.glob("*.json"))

    def _trust(self) -> TrustStore:
        if not self._folder.trust.exists():
            return TrustStore()
        try:
            return TrustStore.load(self._folder.trust)
        except TokenError as error:
            raise damaged(self._folder.trust, error.detail) from error

    def _next_number(self, numbers: list[int]) -> int:
        path = self._folder.numbers
        try:
            number = read_document(path).get("next")
        except FileNotFoundError as error:
            if numbers:
                raise damaged(path, "it is missing, although licenses exist") from error
            number = 1
        if not isinstance(number, int) or not 1 <= number <= U32_MAX + 1:
            raise damaged(path, f"the next number is {number!r}")
        if numbers and number <= max(numbers):
            raise damaged(path, f"the next number is {number}, but {max(numbers)} is in use")
        return number


def _key(path: Path, created: dict[str, str | None]) -> SealedKey:
    document = read_document(path)
    document.pop("schema_version")
    kid, issuer = document.get("kid"), document.get("issuer")
    if not isinstance(kid, str) or not isinstance(issuer, str) or path.stem != kid:
        raise damaged(path, "it does not say which key it is")
    # The members stay as they are: the sealed ones are what their seal is over.
    created_at = created.get(kid)
    return SealedKey(kid, KeyKind.ISSUER, issuer, json.dumps(document), _unix_ms(created_at))


def _unix_ms(rfc3339: str | None) -> int:
    return 0 if rfc3339 is None else int(datetime.fromisoformat(rfc3339).timestamp()) * 1000


def _record(path: Path) -> LicenseRecord:
    document = read_document(path)
    try:
        issues = cast("list[dict[str, object]]", document["issues"])
        statements = cast("list[dict[str, object]]", document["statements"])
        if not issues:
            raise ValueError("a license without an issue")
        return LicenseRecord(
            jti=str(document["jti"]),
            number=_whole(document["number"]),
            generation=_whole(document["generation"]),
            issues=tuple(
                LicenseIssue(str(one["kid"]), canonical(one["claims"]), str(one["token"]))
                for one in issues
            ),
            statements=tuple(_statement(one) for one in statements),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise damaged(path, str(error)) from error


def _statement(document: dict[str, object]) -> LicenseStatement:
    return LicenseStatement(
        jti=str(document["jti"]),
        issuer=str(document["issuer"]),
        kid=str(document["kid"]),
        issued_at_s=_whole(document["issued_at_s"]),
        action=str(document["action"]),
        generation=_whole(document["generation"]),
        reason=str(document["reason"]),
        token=str(document["token"]),
    )


def _whole(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"{value!r} is not a number of 0 and up")
    return value
