# SPDX-License-Identifier: Apache-2.0
"""What a control plane is made of first: an issuer's key, and an authority for certificates."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from licplane.errors import ExitCode, PlaneError
from licplane.issuer import keyring
from licplane.issuer.authority import create_authority, pem_of
from licplane.issuer.peerkeys import new_private_key, private_key_pem
from licplane.issuer.resealing import resealed
from licplane.issuer.sealedkey import Cost, check_passphrase
from licplane.service.access import Permission, require
from licplane.service.answers import ServerCredentials
from licplane.service.core import PASSPHRASE_SETTING, PUT_BACK_SETTING, Core
from licplane.service.key_rotation import check_others_known, resign_licenses
from licplane.service.protection import check_protection
from licplane.service.requests import Change
from licplane.service.values import Actor
from licplane.service.work import Work, perform_once, run_once
from licplane.store.record_model import KeyKind
from lictoken.trust import KeyStatus, TrustedKey

ADVANCE_MAX: Final = 100_000
ASSIGNMENTS_BEYOND: Final = 1_000
"""Changes of one host's labels that a backup may lack, and hosts still take ours as newer."""
_HOSTS_AT_ONCE: Final = 500


class Foundations:
    """Keys of issuers, the authority, and the server's own credentials."""

    def __init__(self, core: Core, cost: Cost | None = None) -> None:
        self._core = core
        self._cost = cost

    def create_key(
        self, actor: Actor, change: Change, issuer: str, passphrase: str | None
    ) -> TrustedKey:
        """See Plane.create_key."""
        require(actor, Permission.CHANGE_KEYS)
        check_passphrase(passphrase)

        def body(work: Work) -> TrustedKey:
            check_protection(work, passphrase)
            key, trusted = keyring.create_key(
                work.transaction, issuer, passphrase, work.now_ms, self._cost
            )
            work.keys = work.keys.with_key(key, encrypted=passphrase is not None)
            work.audit("key.create", key.kid, {"issuer": issuer})
            return trusted

        return run_once(self._core, actor, change, body)

    def change_passphrase(
        self, actor: Actor, change: Change, old: str, new: str
    ) -> tuple[int, tuple[str, ...]]:
        """See Plane.change_passphrase."""
        require(actor, Permission.CHANGE_KEYS)
        check_passphrase(new)
        if new == old:
            raise PlaneError(
                ExitCode.USAGE, "The new passphrase is the old one", "Choose another one"
            )

        with self._core.store.reading() as reader:
            made = resealed(reader, old, new, self._cost)
        if not made.after:
            raise PlaneError(
                ExitCode.REFUSED,
                "No key of this database is encrypted: there is no passphrase to change",
                "Make an encrypted key and retire those in the clear",
            )

        def body(work: Work) -> tuple[int, tuple[str, ...]]:
            made.put(work.transaction)
            work.transaction.put_setting(PASSPHRASE_SETTING, str(work.now_ms).encode())
            work.audit("key.passphrase", "keys", {"keys": len(made.after), "left": list(made.left)})
            return len(made.after), made.left

        return run_once(self._core, actor, change, body)

    def retire_key(
        self, actor: Actor, change: Change, kid: str, *, resign: bool, anyway: bool
    ) -> tuple[TrustedKey, bool, int]:
        """See Plane.retire_key."""
        require(actor, Permission.CHANGE_KEYS)

        def body(work: Work) -> tuple[TrustedKey, bool, int]:
            found = keyring.Keyring(work.transaction).find(kid)
            if found.status is not KeyStatus.RETIRED and not anyway:
                check_others_known(work, found)
            signed = resign_licenses(work, found) if resign else 0
            key, changed = keyring.retire_key(work.transaction, kid, work.now_ms)
            if changed:
                work.audit("key.retire", key.kid, {"issuer": key.issuer, "signed_again": signed})
            return key, changed, signed

        return run_once(self._core, actor, change, body)

    def ensure(self, actor: Actor, issuer: str, passphrase: str | None) -> bool:
        """See Plane.ensure_foundations."""
        require(actor, Permission.CHANGE_KEYS)
        with self._core.store.reading() as reader:
            has_key = bool(reader.keys(KeyKind.ISSUER))
            has_authority = bool(reader.keys(KeyKind.AUTHORITY))
        if not has_key:
            self.create_key(actor, Change(reason="the first start"), issuer, passphrase)
        if has_authority:
            self._core.authority()  # refuse to go on beside one that does not open
            return not has_key

        def body(work: Work) -> bool:
            if work.transaction.keys(KeyKind.AUTHORITY):
                raise PlaneError(
                    ExitCode.BUSY, "Another process is making the authority", "Start again"
                )
            check_protection(work, passphrase)
            authority, row = create_authority(passphrase, work.now_ms, self._cost)
            work.transaction.put_key(row)
            work.keys = work.keys.with_authority(authority)
            work.audit("authority.create", row.key_id, {})
            return True

        return perform_once(self._core, actor, body, "the first start")

    def advance(self, actor: Actor, change: Change, beyond: int) -> int:
        """See Plane.advance."""
        require(actor, Permission.CHANGE_KEYS)
        with self._core.store.reading() as reader:
            start = reader.head().revision
        if not start <= beyond <= start + ADVANCE_MAX:
            raise PlaneError(
                ExitCode.USAGE,
                f"The catalog is at revision {start}, and {beyond} was asked for",
                f"Name what the hosts hold (`licplane host list`), at most {ADVANCE_MAX} more",
            )

        def body(work: Work) -> int:
            _advance_assignments(work)
            detail: dict[str, object] = {"from": work.before.revision, "beyond": beyond}
            note = work.transaction.setting(PUT_BACK_SETTING)
            if note is not None:
                detail["put_back"] = json.loads(note)
                work.transaction.delete_setting(PUT_BACK_SETTING)
            work.audit("catalog.advance", "catalog", detail)
            return work.transaction.next_revision(beyond=beyond)

        reached = run_once(self._core, actor, change, body)
        self._core.look_at_roots()
        return reached

    def server_credentials(self, names: Sequence[str]) -> ServerCredentials:
        """See Plane.server_credentials."""
        authority = self._core.authority()
        key = new_private_key()
        issued = authority.issue_server(
            names,
            key.public_key(),
            self._core.settings.server_certificate_ttl_s,
            self._core.now_ms(),
        )
        return ServerCredentials(
            private_key_pem(key),
            pem_of(issued.der),
            self._core.authorities().pem,
            issued.not_after_unix_ms,
        )


def _advance_assignments(work: Work) -> None:
    """Labels that were set after the copy was made are gone; hosts take ours as newer ones."""
    after = ""
    while page := work.transaction.hosts(after=after, limit=_HOSTS_AT_ONCE):
        for host in page:
            sequence = host.assignment_sequence + ASSIGNMENTS_BEYOND
            work.transaction.put_host(replace(host, assignment_sequence=sequence))
        after = page[-1].host_id
