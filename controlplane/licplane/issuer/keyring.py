# SPDX-License-Identifier: Apache-2.0
"""The issuers' keys: private ones sealed in the store, all public ones in the trust object."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final

from licplane.errors import ExitCode, PlaneError
from licplane.issuer.authority import Authority, open_authority
from licplane.issuer.sealedkey import (
    Cost,
    check_passphrase,
    damaged,
    is_encrypted,
    open_secret,
    read_sealed,
    seal_secret,
)
from licplane.store.catalog_model import EVERYWHERE, Kind, ObjectDraft
from licplane.store.reader import Reader
from licplane.store.record_model import KeyKind, SealedKey
from licplane.store.transaction import Transaction
from lictoken.errors import TokenError
from lictoken.fields import check_text
from lictoken.keys import KEY_BYTES, SigningKey
from lictoken.trust import KeyStatus, TrustedKey, TrustStore
from lictoken.validity import rfc3339

PassphraseSource = Callable[[], str | None]
"""Asked only when a passphrase is needed; None when there is none."""

TRUST_NAME: Final = "trust"
"""Name of the one catalog object of kind TRUST."""

TRUST_SETTING: Final = "trust.jwks"
"""Where a trust file that was taken over from a state folder waits to become that object."""

_PREFIX_MIN: Final = 6


@dataclass(frozen=True, slots=True)
class Keys:
    """The private keys of a store that this process could open, by kid."""

    signing: Mapping[str, SigningKey] = field(repr=False)
    encrypted: frozenset[str]  # kids of those that a passphrase protects
    authority: Authority | None = field(default=None, repr=False)
    """The newest one; which one issues is said by licplane.issuer.roots."""
    authorities: Mapping[str, Authority] = field(
        default_factory=lambda: MappingProxyType({}), repr=False
    )
    """All that count, by the fingerprints of their certificates."""

    @property
    def counted(self) -> frozenset[str]:
        """Kids whose seals count as this control plane's own.

        Where any key is encrypted, only the encrypted ones: whoever can write to the database
        could put a key in the clear beside them, but not one under the passphrase.
        """
        return self.encrypted or frozenset(self.signing)

    def with_key(self, key: SigningKey, *, encrypted: bool) -> Keys:
        """These and one more."""
        return Keys(
            MappingProxyType({**self.signing, key.kid: key}),
            self.encrypted | {key.kid} if encrypted else self.encrypted,
            self.authority,
            self.authorities,
        )

    def with_authority(self, authority: Authority) -> Keys:
        """These, and one more authority that signs certificates."""
        known = MappingProxyType({**self.authorities, authority.fingerprint: authority})
        return Keys(self.signing, self.encrypted, authority, known)


NO_KEYS: Final = Keys(MappingProxyType({}), frozenset())


def open_keys(reader: Reader, passphrase: PassphraseSource) -> Keys:
    """Every private key that opens, issuers' and authority's.

    Those under another passphrase are left out. Raises PlaneError PERMISSION where the
    passphrase is missing, or opens none of the encrypted ones.
    """
    rows = (*reader.keys(KeyKind.ISSUER), *reader.keys(KeyKind.AUTHORITY))
    needed = any(is_encrypted(row.document) for row in rows)
    words = passphrase() if needed else None
    signing: dict[str, SigningKey] = {}
    encrypted: set[str] = set()
    authorities: list[tuple[bool, Authority]] = []
    refusal: PlaneError | None = None
    opened = False
    for row in rows:
        locked = is_encrypted(row.document)
        try:
            if row.kind is KeyKind.AUTHORITY:
                authorities.append((locked, open_authority(row, words)))
            else:
                signing[row.key_id] = load_key(row, words)
        except PlaneError as error:
            if error.code is not ExitCode.PERMISSION:
                raise
            refusal = error
            continue
        opened = opened or locked
        if locked and row.kind is KeyKind.ISSUER:
            encrypted.add(row.key_id)
    if refusal is not None and not opened:
        raise refusal
    # The newest one that is as well protected as any: see Keys.counted.
    best = [one for locked, one in authorities if locked or not needed]
    by_name = MappingProxyType({one.fingerprint: one for one in best})
    newest = best[-1] if best else None
    return Keys(MappingProxyType(signing), frozenset(encrypted), newest, by_name)


def seal_key(key: SigningKey, passphrase: str | None, now_ms: int, cost: Cost | None) -> SealedKey:
    """The key as the store keeps it."""
    public: dict[str, object] = {"kid": key.kid, "issuer": key.issuer}
    document = seal_secret(public, key.secret, passphrase, cost)
    return SealedKey(key.kid, KeyKind.ISSUER, key.issuer, document, now_ms)


def load_key(row: SealedKey, passphrase: str | None) -> SigningKey:
    """Open an issuer's key. Raises PlaneError as `open_secret` does."""
    what = f"The private key {row.key_id}"
    secret = open_secret(row.document, passphrase, what)
    key = SigningKey(issuer=str(read_sealed(row.document, what).get("issuer")), secret=secret)
    if len(secret) != KEY_BYTES or key.kid != row.key_id or key.issuer != row.owner:
        raise damaged(what, "the key does not match its kid and issuer")
    return key


class Keyring:
    """The keys of one store, as a transaction or snapshot sees them."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader

    def trust(self) -> TrustStore:
        """Every public key, retired ones too."""
        found = self._reader.object(Kind.TRUST, TRUST_NAME)
        data = found.payload if found else self._reader.setting(TRUST_SETTING)
        return TrustStore.from_bytes(data) if data else TrustStore()

    def protection(self, kid: str) -> str:
        """How the private key is kept: `encrypted`, `unencrypted` or `absent`."""
        row = self._reader.key(kid)
        if row is None:
            return "absent"
        return "encrypted" if is_encrypted(row.document) else "unencrypted"

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

    def choose(self, *, kid: str | None = None, issuer: str | None = None) -> TrustedKey:
        """The key to sign with: the one named, else the issuer's newest active one."""
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

    def signing_key(
        self, keys: Keys, *, kid: str | None = None, issuer: str | None = None
    ) -> SigningKey:
        """The opened private key to sign with, as `choose` finds it."""
        chosen = self.choose(kid=kid, issuer=issuer)
        found = keys.signing.get(chosen.kid)
        if found is not None:
            return found
        if self._reader.key(chosen.kid) is None:
            raise PlaneError(
                ExitCode.NOT_FOUND,
                f"The private key {chosen.kid} is not in this database",
                "Sign on the host that has it, or restore it from a backup",
            )
        raise PlaneError(
            ExitCode.PERMISSION,
            f"The private key {chosen.kid} was not opened",
            "Give the passphrase that it was made with",
        )


def create_key(
    transaction: Transaction,
    issuer: str,
    passphrase: str | None,
    now_ms: int,
    cost: Cost | None = None,
) -> tuple[SigningKey, TrustedKey]:
    """Make a key and trust it; the caller seals the catalog."""
    try:
        check_text(issuer, "the issuer's name", None)
    except TokenError as error:
        raise PlaneError(ExitCode.USAGE, error.detail, "Choose another --issuer") from error
    check_passphrase(passphrase)
    key = SigningKey.create(issuer)
    while key.kid.startswith("-"):  # it would look like an option on a command line
        key = SigningKey.create(issuer)
    transaction.put_key(seal_key(key, passphrase, now_ms, cost))
    trusted = TrustedKey.of(key.public_key, issuer, created_at=rfc3339(now_ms // 1000))
    put_trust(transaction, Keyring(transaction).trust().with_key(trusted))
    return key, trusted


def retire_key(transaction: Transaction, kid: str, now_ms: int) -> tuple[TrustedKey, bool]:
    """Retire a key, and whether it was not retired before; the caller seals the catalog."""
    keyring = Keyring(transaction)
    key = keyring.find(kid)
    if key.status is KeyStatus.RETIRED:
        return key, False
    retired = key.retired(rfc3339(now_ms // 1000))
    put_trust(transaction, keyring.trust().with_key(retired))
    return retired, True


def put_trust(transaction: Transaction, trust: TrustStore) -> None:
    """Make `trust` what hosts trust."""
    transaction.put_object(ObjectDraft(Kind.TRUST, TRUST_NAME, EVERYWHERE, trust.to_bytes()))
