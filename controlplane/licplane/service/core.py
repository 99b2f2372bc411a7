# SPDX-License-Identifier: Apache-2.0
"""What every part of the service stands on: store, keys, settings, clock."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from licplane.errors import ExitCode, PlaneError
from licplane.issuer.authority import Authority
from licplane.issuer.keyring import Keyring, Keys
from licplane.issuer.roots import ROOTS_SETTING, Roots, opened_roots
from licplane.service.counters import Counters
from licplane.service.requests import PlaneSettings
from licplane.store.database import Store
from licplane.store.reader import Reader
from lictoken.keys import SigningKey
from lictoken.sealed import Sealer
from lictoken.trust import KeyStatus, TrustedKey, TrustStore

PUT_BACK_SETTING: Final = "put-back"
"""Set by a restore until `licplane db advance`: JSON of when, and of which moment the copy is."""

PASSPHRASE_SETTING: Final = "passphrase-changed"
"""When the keys were put under another passphrase: Unix ms, in decimal digits."""

_log = logging.getLogger("licplane.keys")


@dataclass(frozen=True, slots=True)
class Authorities:
    """The certification authorities that this process opened, and what each is for."""

    roots: Roots
    issuing: Authority
    trusted: tuple[Authority, ...]  # the issuing one first
    every: tuple[Authority, ...]  # also those that are retired
    document: bytes | None  # what the store says of it

    @property
    def certificates(self) -> tuple[bytes, ...]:
        """What hosts verify servers with, DER."""
        return tuple(one.der for one in self.trusted)

    @property
    def pem(self) -> bytes:
        """The same as PEM."""
        return b"".join(one.pem for one in self.trusted)


class Core:
    """Store, opened keys, settings and clock of one Plane."""

    def __init__(
        self,
        store: Store,
        keys: Keys | None,
        settings: PlaneSettings,
        now_ms: Callable[[], int],
        reopen: Callable[[], Keys] | None = None,
    ) -> None:
        self.store = store
        self.settings = settings
        self.now_ms = now_ms
        self._keys = keys
        self._reopen = reopen
        self._looked_for: set[str] = set()
        self._sealers: dict[str, Sealer] = {}
        self._control: str | None = None
        self._counters: Counters | None = None
        self._authorities: Authorities | None = None
        self._put_back = False
        self._passphrase_at: bytes | None = None
        self._has_looked = False
        self._lock = threading.Lock()

    @property
    def keys(self) -> Keys:
        """The opened keys. Raises PlaneError PERMISSION where there are none."""
        if self._keys is None:
            raise PlaneError(
                ExitCode.PERMISSION,
                "A change must be signed, and no key was opened",
                "Give the passphrase: --passphrase-file, LICPLANE_PASSPHRASE or the systemd"
                " credential licplane.passphrase",
            )
        return self._keys

    @property
    def has_keys(self) -> bool:
        """Whether changes can be signed."""
        return self._keys is not None

    def take_keys(self, keys: Keys) -> None:
        """Use these from now on."""
        with self._lock:
            self._keys = keys
            self._control = None
            self._counters = None
            self._authorities = None

    def look_for_key(self, kid: str) -> bool:
        """Open the keys again for one that was made since; whether it counts now.

        Once a key: what does not open with our passphrase never will.
        """
        with self._lock:
            if self._reopen is None or kid in self._looked_for:
                return False
            self._looked_for.add(kid)
        try:
            keys = self._reopen()
        except PlaneError:
            return False
        self.take_keys(keys)
        return kid in keys.counted

    def authority(self) -> Authority:
        """The certification authority that issues. Raises PlaneError where there is none."""
        return self.authorities().issuing

    def authorities(self) -> Authorities:
        """All authorities, as `look_at_roots` found them last. Raises PlaneError."""
        with self._lock:
            known = self._authorities
        return known if known is not None else self.look_at_roots()

    def look_at_roots(self) -> Authorities:
        """Read which authority issues and which are trusted; those that are new are opened.

        A server's workers do it every second or so, for another process may have changed it.
        """
        with self.store.reading() as reader:
            data = reader.setting(ROOTS_SETTING)
            put_back = reader.setting(PUT_BACK_SETTING) is not None
            passphrase_at = reader.setting(PASSPHRASE_SETTING)
        with self._lock:
            self._put_back = put_back
            known = self._authorities
            is_new = self._has_looked and passphrase_at != self._passphrase_at
            self._passphrase_at, self._has_looked = passphrase_at, True
        if is_new and self._reopen is not None:
            self._follow_passphrase(self._reopen)
        if known is not None and known.document == data:
            return known
        found: Authorities | None = None
        try:
            found = _authorities(self.keys, data)
        except PlaneError:
            if self._reopen is None:
                raise
        if found is None and self._reopen is not None:  # of keys that were made since
            keys = self._reopen()
            found = _authorities(keys, data)
            self.take_keys(keys)
        if found is None:
            raise PlaneError(
                ExitCode.NOT_FOUND,
                "There is no certification authority in this database that this passphrase opens",
                "It is made by the first `licplane serve`; check the passphrase",
            )
        with self._lock:
            self._authorities = found
            self._counters = None
        return found

    @staticmethod
    def _follow_passphrase(reopen: Callable[[], Keys]) -> None:
        """Say whether this process could open the keys again. Those that it has stay good."""
        try:
            reopen()
        except PlaneError:
            _log.warning(
                "the keys were put under another passphrase, which this server does not have: it"
                " goes on with those that it has opened; start it anew with the new passphrase,"
                " before another key or authority is made"
            )
        else:
            _log.info("the keys were put under another passphrase, which this server has")

    @property
    def is_put_back(self) -> bool:
        """Whether this database is a copy that was put back, and nobody has looked at it yet."""
        self.authorities()
        with self._lock:
            return self._put_back

    def check_looked_at(self) -> None:
        """Refuse what a copy must not grant. Raises PlaneError BUSY."""
        if self.is_put_back:
            raise PlaneError(
                ExitCode.BUSY,
                "The control plane was put back from a backup, and gives no leases and lets nobody"
                " in until somebody has looked at it",
                "There: `licplane db advance`",
            )

    def counters(self) -> Counters:
        """Who makes and judges the hosts' counters."""
        authorities = self.authorities()
        with self._lock:
            if self._counters is None:
                self._counters = Counters(authorities.issuing, authorities.every)
            return self._counters

    def sealer(self, reader: Reader) -> Sealer:
        """Who seals the control plane's messages: see `control_key`."""
        return self.sealer_of(control_key(self.keys, Keyring(reader).trust()))

    def sealer_of(self, key: SigningKey) -> Sealer:
        """The sealer of a key, made once."""
        kid = key.kid
        with self._lock:
            if kid not in self._sealers:
                self._sealers[kid] = Sealer(key)
            return self._sealers[kid]

    def current_sealer(self) -> Sealer:
        """As `sealer`, without asking the database again (see `forget_sealer`)."""
        with self._lock:
            if self._control is not None:
                return self._sealers[self._control]
        with self.store.reading() as reader:
            found = self.sealer(reader)
        with self._lock:
            self._control = found.kid
        return found

    def forget_sealer(self) -> None:
        """The trust changed: ask again which key seals."""
        with self._lock:
            self._control = None

    def own_trust(self, published: TrustStore | None) -> TrustStore:
        """The keys whose seals this process believes: those it opened itself.

        Not those that the database calls trusted: whoever altered it could add one. Keys that
        `published` calls retired no longer count; None lets them.
        """
        keys = self.keys
        found: list[TrustedKey] = []
        for kid in keys.counted:
            known = published.get(kid) if published is not None else None
            if known is not None and known.status is KeyStatus.RETIRED:
                continue
            key = keys.signing[kid]
            found.append(TrustedKey.of(key.public_key, key.issuer))
        return TrustStore(found)


def _authorities(keys: Keys, data: bytes | None) -> Authorities | None:
    """None where one that is needed was not opened."""
    if data is None:
        only = keys.authority
        if only is None:
            return None
        return Authorities(Roots(only.fingerprint), only, (only,), (only,), None)
    trust = TrustStore(
        TrustedKey.of(keys.signing[kid].public_key, keys.signing[kid].issuer)
        for kid in sorted(keys.counted)
    )
    roots = opened_roots(data, trust)
    if any(name not in keys.authorities for name in roots.trusted):
        return None
    trusted = tuple(keys.authorities[name] for name in roots.trusted)
    every = tuple(keys.authorities[name] for name in roots.every if name in keys.authorities)
    return Authorities(roots, trusted[0], trusted, every, data)


def control_key(keys: Keys, trust: TrustStore) -> SigningKey:
    """The oldest active key of the opened ones that count.

    Hosts believe a new key on the word of one that they believe already. So a new one seals
    nothing until those before it are retired; by then the hosts have it from the catalog.
    """
    oldest = min(
        (
            (key.created_at or "", at, key.kid)
            for at, key in enumerate(trust)
            if key.status is KeyStatus.ACTIVE and key.kid in keys.counted
        ),
        default=None,
    )
    if oldest is None:
        raise PlaneError(
            ExitCode.NOT_FOUND,
            "There is no active key to sign with",
            "Make one with `licplane keys create --issuer NAME`, or check the passphrase",
        )
    return keys.signing[oldest[2]]
