# SPDX-License-Identifier: Apache-2.0
"""One passphrase for all private keys of a database, or none."""

from __future__ import annotations

from licplane.errors import ExitCode, PlaneError
from licplane.issuer import keyring
from licplane.issuer.sealedkey import is_encrypted
from licplane.service.work import Work
from licplane.store.record_model import KeyKind


def check_protection(work: Work, passphrase: str | None) -> None:
    """One passphrase opens every key, or none has one.

    A key in the clear beside encrypted ones would never count (see Keys.counted), and what one
    under another passphrase signed would be believed by half of the processes.
    """
    rows = work.transaction.keys(KeyKind.ISSUER)
    if rows and not work.keys.signing:
        raise PlaneError(
            ExitCode.PERMISSION,
            "There are keys in this database, and none was opened",
            "Give their passphrase",
        )
    encrypted = [row for row in rows if is_encrypted(row.document)]
    if not encrypted:
        return
    refusal = PlaneError(
        ExitCode.REFUSED,
        "The other keys of this database are encrypted, under another passphrase"
        if passphrase is not None
        else "The other keys of this database are encrypted, and this one would not be",
        "Give the passphrase of the others",
    )
    if passphrase is None:
        raise refusal
    try:
        keyring.load_key(encrypted[-1], passphrase)
    except PlaneError as error:
        if error.code is ExitCode.PERMISSION:
            raise refusal from error
        raise
