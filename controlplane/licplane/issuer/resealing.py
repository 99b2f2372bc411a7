# SPDX-License-Identifier: Apache-2.0
"""All sealed keys of a database under another passphrase."""

from __future__ import annotations

from dataclasses import dataclass, replace

from licplane.errors import Conflict, ExitCode, PlaneError
from licplane.issuer.authority import open_authority
from licplane.issuer.keyring import load_key
from licplane.issuer.sealedkey import Cost, is_encrypted, reseal_secret
from licplane.store.reader import Reader
from licplane.store.record_model import KeyKind, SealedKey
from licplane.store.transaction import Transaction


@dataclass(frozen=True, slots=True)
class Resealed:
    """Every key before, those that are to be replaced, and the ids of those that stay as they
    are because the old passphrase does not open them."""

    before: tuple[SealedKey, ...]
    after: tuple[SealedKey, ...]
    left: tuple[str, ...]

    def put(self, transaction: Transaction) -> None:
        """Replace them. Raises Conflict where a key was made or changed meanwhile."""
        if _rows(transaction) != self.before:
            raise Conflict("A key was made or changed meanwhile", "Try again")
        for row in self.after:
            transaction.put_key(row)


def resealed(reader: Reader, old: str, new: str, cost: Cost | None = None) -> Resealed:
    """The keys that `old` opens under `new`. It takes about a second, so nothing is locked.

    Keys in the clear stay as they are. Raises PlaneError PERMISSION where `old` opens none of
    the encrypted ones, INTERNAL for a key that is damaged.
    """
    before = _rows(reader)
    after: list[SealedKey] = []
    left: list[str] = []
    refusal: PlaneError | None = None
    for row in before:
        if not is_encrypted(row.document):
            continue
        what = f"The private key {row.key_id}"
        try:
            one = replace(row, document=reseal_secret(row.document, old, new, what, cost))
        except PlaneError as error:
            if error.code is not ExitCode.PERMISSION:
                raise
            refusal = error
            left.append(row.key_id)
            continue
        _check(one, new)
        after.append(one)
    if refusal is not None and not after:
        raise refusal
    return Resealed(before, tuple(after), tuple(left))


def _rows(reader: Reader) -> tuple[SealedKey, ...]:
    return (*reader.keys(KeyKind.ISSUER), *reader.keys(KeyKind.AUTHORITY))


def _check(row: SealedKey, passphrase: str) -> None:
    """What cannot be opened again must not take the place of what could."""
    if row.kind is KeyKind.AUTHORITY:
        open_authority(row, passphrase)
    else:
        load_key(row, passphrase)
