# SPDX-License-Identifier: Apache-2.0
"""A private key at rest: scrypt (RFC 7914) over a passphrase, then AES-256-GCM.

What stands beside the secret (the issuer's name, a certificate, the cost) is bound in as
associated data, so that none of it can be changed without the passphrase.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, cast

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from licplane.errors import ExitCode, PlaneError
from lictoken import base64url
from lictoken.errors import TokenError

PASSPHRASE_MIN_CHARACTERS: Final = 8
_SALT_BYTES: Final = 16
_NONCE_BYTES: Final = 12
_ENCRYPTED: Final = "scrypt+aes-256-gcm"
_CLEAR: Final = "none"
_SEAL: Final = frozenset({"encryption", "n", "r", "p", "salt", "nonce", "sealed", "secret"})
"""Members that say how a secret is kept, and not what of."""


@dataclass(frozen=True, slots=True)
class Cost:
    """scrypt's cost; memory is 128 * n * r bytes."""

    n: int = 2**15
    r: int = 8
    p: int = 3

    def is_sane(self) -> bool:
        """Whether a document that asks for this may be opened (at most 1 GiB)."""
        return (
            2**10 <= self.n <= 2**20
            and self.n & (self.n - 1) == 0
            and self.r == 8
            and 1 <= self.p <= 16
        )


def check_passphrase(passphrase: str | None) -> None:
    """Refuse one that is too short; None (no encryption) is the caller's choice."""
    if passphrase is not None and len(passphrase) < PASSPHRASE_MIN_CHARACTERS:
        raise PlaneError(
            ExitCode.REFUSED,
            f"The passphrase has fewer than {PASSPHRASE_MIN_CHARACTERS} characters",
            "Choose a longer one",
        )


def seal_secret(
    public: Mapping[str, object], secret: bytes, passphrase: str | None, cost: Cost | None = None
) -> str:
    """A JSON object with `public` and the secret; in the clear only when `passphrase` is None."""
    if passphrase is None:
        return _dump({**public, "encryption": _CLEAR, "secret": base64url.encode(secret)})
    cost = cost or Cost()
    header: dict[str, object] = {
        **public,
        "encryption": _ENCRYPTED,
        "n": cost.n,
        "r": cost.r,
        "p": cost.p,
        "salt": base64url.encode(os.urandom(_SALT_BYTES)),
        "nonce": base64url.encode(os.urandom(_NONCE_BYTES)),
    }
    cipher = _cipher(header, cost, passphrase)
    sealed = cipher.encrypt(_bytes(header, "nonce"), secret, _associated(header))
    return _dump({**header, "sealed": base64url.encode(sealed)})


def read_sealed(document: str, what: str) -> dict[str, object]:
    """The members of a sealed key. `what` names it in errors."""
    try:
        value = json.loads(document)
        if not isinstance(value, dict) or "encryption" not in value:
            raise ValueError("not a sealed key")
    except ValueError as error:
        raise damaged(what, str(error)) from error
    value.pop("schema_version", None)
    return cast("dict[str, object]", value)


def is_encrypted(document: str) -> bool:
    """Whether the key needs a passphrase."""
    return read_sealed(document, "a private key").get("encryption") != _CLEAR


def open_secret(document: str, passphrase: str | None, what: str) -> bytes:
    """The secret inside.

    Raises PlaneError: PERMISSION when the passphrase is wrong or missing, INTERNAL when the
    document is damaged.
    """
    members = read_sealed(document, what)
    try:
        return _open(members, passphrase, what)
    except (KeyError, TypeError, ValueError, TokenError) as error:
        raise damaged(what, str(error)) from error


def reseal_secret(document: str, old: str, new: str, what: str, cost: Cost | None = None) -> str:
    """The same key under another passphrase. Raises as `open_secret` does."""
    secret = open_secret(document, old, what)
    public = {k: v for k, v in read_sealed(document, what).items() if k not in _SEAL}
    return seal_secret(public, secret, new, cost)


def damaged(what: str, why: str) -> PlaneError:
    """The error for a key of ours that does not make sense."""
    return PlaneError(
        ExitCode.INTERNAL, f"{what} is damaged: {why}", "Restore the database from a backup"
    )


def _open(document: dict[str, object], passphrase: str | None, what: str) -> bytes:
    if document["encryption"] == _CLEAR:
        return _bytes(document, "secret")
    if document["encryption"] != _ENCRYPTED:
        raise damaged(what, f"its encryption is {document['encryption']!r}")
    if passphrase is None:
        raise PlaneError(
            ExitCode.PERMISSION,
            f"{what} needs its passphrase",
            "Give --passphrase-file, LICPLANE_PASSPHRASE or the systemd credential"
            " licplane.passphrase",
        )
    cost = Cost(*(cast("int", document[name]) for name in ("n", "r", "p")))
    if not cost.is_sane():
        raise damaged(what, f"its cost is {cost}")
    sealed = _bytes(document, "sealed")
    header = {name: value for name, value in document.items() if name != "sealed"}
    cipher = _cipher(header, cost, passphrase)
    try:
        return cipher.decrypt(_bytes(header, "nonce"), sealed, _associated(header))
    except InvalidTag as error:
        raise PlaneError(
            ExitCode.PERMISSION,
            f"The passphrase does not open {what[0].lower()}{what[1:]}",
            "Check the passphrase; if it is right, the key was changed: restore a backup",
        ) from error


def _cipher(header: dict[str, object], cost: Cost, passphrase: str) -> AESGCM:
    kdf = Scrypt(salt=_bytes(header, "salt"), length=32, n=cost.n, r=cost.r, p=cost.p)
    return AESGCM(kdf.derive(passphrase.encode()))


def _associated(header: dict[str, object]) -> bytes:
    return json.dumps(header, sort_keys=True, separators=(",", ":")).encode()


def _bytes(document: dict[str, object], name: str) -> bytes:
    return base64url.decode(str(document[name]), name)


def _dump(value: Mapping[str, object]) -> str:
    return json.dumps({"schema_version": 1, **value}, ensure_ascii=False)
