# SPDX-License-Identifier: Apache-2.0
"""The issuer's keys: private ones in keys/, all public ones in trust.jwks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

from licplane.errors import ExitCode, PlaneError
from licplane.issuer.keyfile import (
    PASSPHRASE_MIN_CHARACTERS,
    Cost,
    is_encrypted,
    load_key,
    save_key,
)
from licplane.store.folder import PUBLIC_MODE, StateFolder, write_atomically
from lictoken.errors import TokenError
from lictoken.fields import check_text
from lictoken.keys import SigningKey
from lictoken.trust import KeyStatus, TrustedKey, TrustStore
from lictoken.validity import rfc3339

PassphraseSource = Callable[[], str | None]
"""Asked only when a passphrase is needed; None when there is none."""

_PREFIX_MIN: Final = 6


class Keyring:
    """Keys of one state folder. Callers hold the folder's lock around changes."""

    def __init__(self, folder: StateFolder) -> None:
        self._folder = folder

    def trust(self) -> TrustStore:
        """Every public key, retired ones too."""
        if not self._folder.trust.exists():
            return TrustStore()
        return TrustStore.load(self._folder.trust)

    def protection(self, kid: str) -> str:
        """How the private key is kept: `encrypted`, `unencrypted` or `absent`."""
        path = self._path(kid)
        if not path.exists():
            return "absent"
        return "encrypted" if is_encrypted(path) else "unencrypted"

    def create(
        self, issuer: str, passphrase: str | None, now_s: int, cost: Cost | None = None
    ) -> TrustedKey:
        """Make a key and trust it. The private key is stored before the public one is trusted."""
        try:
            check_text(issuer, "the issuer's name", None)
        except TokenError as error:
            raise PlaneError(ExitCode.USAGE, error.detail, "Choose another --issuer") from error
        if passphrase is not None and len(passphrase) < PASSPHRASE_MIN_CHARACTERS:
            raise PlaneError(
                ExitCode.REFUSED,
                f"The passphrase has fewer than {PASSPHRASE_MIN_CHARACTERS} characters",
                "Choose a longer one",
            )
        key = SigningKey.create(issuer)
        while key.kid.startswith("-"):  # it would look like an option on a command line
            key = SigningKey.create(issuer)
        save_key(self._path(key.kid), key, passphrase, cost)
        trusted = TrustedKey.of(key.public_key, issuer, created_at=rfc3339(now_s))
        self._write(self.trust().with_key(trusted))
        return trusted

    def find(self, kid: str) -> TrustedKey:
        """The key whose kid is, or begins with, `kid` (at least 6 characters)."""
        found = [
            key
            for key in self.trust()
            if key.kid == kid or (len(kid) >= _PREFIX_MIN and key.kid.startswith(kid))
        ]
        if len(found) == 1:
            return found[0]
        message = f"{len(found)} keys begin with {kid}" if found else f"There is no key {kid}"
        raise PlaneError(ExitCode.NOT_FOUND, message, "`licplane keys list` shows all")

    def retire(self, kid: str, now_s: int) -> TrustedKey:
        """Retire a key. Retiring it again changes nothing."""
        key = self.find(kid)
        if key.status is KeyStatus.RETIRED:
            return key
        retired = key.retired(rfc3339(now_s))
        self._write(self.trust().with_key(retired))
        return retired

    def signing_key(
        self, passphrase: PassphraseSource, *, kid: str | None = None, issuer: str | None = None
    ) -> SigningKey:
        """The private key to sign with: the one named, else the issuer's newest active one."""
        chosen = self._choose(kid, issuer)
        path = self._path(chosen.kid)
        if not path.exists():
            raise PlaneError(
                ExitCode.NOT_FOUND,
                f"The private key {chosen.kid} is not in {self._folder.keys}",
                "Sign on the host that has it, or restore it from a backup",
            )
        return load_key(path, passphrase() if is_encrypted(path) else None)

    def _choose(self, kid: str | None, issuer: str | None) -> TrustedKey:
        if kid is not None:
            key = self.find(kid)
            if key.status is KeyStatus.RETIRED:
                raise PlaneError(
                    ExitCode.REFUSED,
                    f"The key {key.kid} is retired: no host would accept what it signs",
                    "Name an active key; `licplane keys list` shows all",
                )
            return key
        active = [
            key
            for key in self.trust()
            if key.status is KeyStatus.ACTIVE and issuer in (None, key.issuer)
        ]
        if not active:
            whose = f" of {issuer}" if issuer else ""
            raise PlaneError(
                ExitCode.NOT_FOUND,
                f"There is no active key{whose}",
                "Make one with `licplane keys create --issuer NAME`",
            )
        issuers = sorted({key.issuer for key in active})
        if len(issuers) > 1:
            raise PlaneError(
                ExitCode.USAGE,
                f"There are keys of several issuers: {', '.join(issuers)}",
                "Name one with --issuer or --key",
            )
        # Later entries of the trust file are newer; times of one second may be equal.
        return max(enumerate(active), key=lambda item: (item[1].created_at or "", item[0]))[1]

    def _path(self, kid: str) -> Path:
        return self._folder.keys / f"{kid}.json"

    def _write(self, trust: TrustStore) -> None:
        write_atomically(self._folder.trust, trust.to_bytes(), PUBLIC_MODE)
