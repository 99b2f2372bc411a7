# SPDX-License-Identifier: Apache-2.0
"""A private key on disk: scrypt (RFC 7914) over a passphrase, then AES-256-GCM.

The issuer's name and the cost are bound in as associated data, so that neither can be
changed without the passphrase.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final, cast

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from licplane.errors import ExitCode, PlaneError
from licplane.store.folder import damaged, read_document, write_document
from lictoken import base64url
from lictoken.errors import TokenError
from lictoken.keys import KEY_BYTES, SigningKey

PASSPHRASE_MIN_CHARACTERS: Final = 8
_SALT_BYTES: Final = 16
_NONCE_BYTES: Final = 12


@dataclass(frozen=True, slots=True)
class Cost:
    """scrypt's cost; memory is 128 * n * r bytes."""

    n: int = 2**15
    r: int = 8
    p: int = 3

    def is_sane(self) -> bool:
        """Whether a file that asks for this may be opened (at most 1 GiB)."""
        return (
            2**10 <= self.n <= 2**20
            and self.n & (self.n - 1) == 0
            and self.r == 8
            and 1 <= self.p <= 16
        )


def save_key(path: Path, key: SigningKey, passphrase: str | None, cost: Cost | None = None) -> None:
    """Write `key` to `path` with mode 0600; in the clear only when `passphrase` is None."""
    public: dict[str, object] = {"kid": key.kid, "issuer": key.issuer}
    if passphrase is None:
        secret: dict[str, object] = {
            "encryption": "none",
            "secret": base64url.encode(key.secret),
        }
        write_document(path, {**public, **secret})
        return
    cost = cost or Cost()
    header: dict[str, object] = {
        **public,
        "encryption": "scrypt+aes-256-gcm",
        "n": cost.n,
        "r": cost.r,
        "p": cost.p,
        "salt": base64url.encode(os.urandom(_SALT_BYTES)),
        "nonce": base64url.encode(os.urandom(_NONCE_BYTES)),
    }
    cipher = _cipher(header, cost, passphrase)
    sealed = cipher.encrypt(_bytes(header, "nonce"), key.secret, _associated(header))
    write_document(path, {**header, "sealed": base64url.encode(sealed)})


def is_encrypted(path: Path) -> bool:
    """Whether the key in `path` needs a passphrase."""
    return read_document(path).get("encryption") != "none"


def load_key(path: Path, passphrase: str | None) -> SigningKey:
    """Open the key in `path`.

    Raises PlaneError: PERMISSION when others may read the file or the passphrase is wrong or
    missing, INTERNAL when the file is damaged.
    """
    mode = path.stat().st_mode
    if mode & 0o077:
        raise PlaneError(
            ExitCode.PERMISSION,
            f"Others may read the private key {path} (mode {mode & 0o777:04o})",
            f"Treat it as exposed, or at least: chmod 0600 {path}",
        )
    document = read_document(path)
    document.pop("schema_version")
    try:
        secret = _open(path, document, passphrase)
        key = SigningKey(issuer=str(document["issuer"]), secret=secret)
        if len(secret) != KEY_BYTES or key.kid != document["kid"]:
            raise damaged(path, "the key does not match its kid")
    except (KeyError, TypeError, ValueError, TokenError) as error:
        raise damaged(path, str(error)) from error
    return key


def _open(path: Path, document: dict[str, object], passphrase: str | None) -> bytes:
    if document["encryption"] == "none":
        return _bytes(document, "secret")
    if document["encryption"] != "scrypt+aes-256-gcm":
        raise damaged(path, f"its encryption is {document['encryption']!r}")
    if passphrase is None:
        raise PlaneError(
            ExitCode.PERMISSION,
            f"The private key {document['kid']} needs its passphrase",
            "Give --passphrase-file, LICPLANE_PASSPHRASE or the systemd credential"
            " licplane.passphrase",
        )
    cost = Cost(*(cast("int", document[name]) for name in ("n", "r", "p")))
    if not cost.is_sane():
        raise damaged(path, f"its cost is {cost}")
    sealed = _bytes(document, "sealed")
    header = {name: value for name, value in document.items() if name != "sealed"}
    cipher = _cipher(header, cost, passphrase)
    try:
        return cipher.decrypt(_bytes(header, "nonce"), sealed, _associated(header))
    except InvalidTag as error:
        raise PlaneError(
            ExitCode.PERMISSION,
            f"The passphrase does not open the private key {document['kid']}",
            f"Check the passphrase; if it is right, {path} was changed: restore a backup",
        ) from error


def _cipher(header: dict[str, object], cost: Cost, passphrase: str) -> AESGCM:
    kdf = Scrypt(salt=_bytes(header, "salt"), length=32, n=cost.n, r=cost.r, p=cost.p)
    return AESGCM(kdf.derive(passphrase.encode()))


def _associated(header: dict[str, object]) -> bytes:
    return json.dumps(header, sort_keys=True, separators=(",", ":")).encode()


def _bytes(document: dict[str, object], name: str) -> bytes:
    return base64url.decode(str(document[name]), name)
