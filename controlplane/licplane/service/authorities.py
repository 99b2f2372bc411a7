# SPDX-License-Identifier: Apache-2.0
"""Changing the certification authority without an outage: one more, the new one, without the old.

Each step is refused until every host that is served can take it; `anyway` names the price instead.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from licplane.errors import ExitCode, PlaneError
from licplane.issuer.authority import create_authority, is_issuer_of, root_certificate
from licplane.issuer.keyring import Keyring
from licplane.issuer.roots import (
    ROOTS_SETTING,
    Roots,
    RootStatus,
    opened_roots,
    sealed_roots,
    unverified_roots,
)
from licplane.issuer.sealedkey import Cost, check_passphrase
from licplane.service.access import Permission, require
from licplane.service.core import Core, control_key
from licplane.service.protection import check_protection
from licplane.service.reports import kept
from licplane.service.requests import Change
from licplane.service.values import SERVED, Actor
from licplane.service.work import Work, run_once
from licplane.store.host_model import Host
from licplane.store.identity_model import AdminIdentity
from licplane.store.reader import Reader
from licplane.store.record_model import KeyKind

_STALE_MS: Final = 6_000
"""So long after a change another process may still give out what was before."""
_HOSTS_AT_ONCE: Final = 500
_PREFIX_MIN: Final = 6
_NAMED: Final = 10


@dataclass(frozen=True, slots=True)
class RootView:
    """One authority, and who is not ready for the step that concerns it."""

    fingerprint: str  # SHA-256 of the certificate, hexadecimal
    status: RootStatus
    created_unix_ms: int
    not_after_unix_ms: int
    hosts: int
    """Served hosts: for one that is coming those that trust it; for the one that issues those
    that have a certificate of it."""
    missing: tuple[str, ...] = ()
    """The other served hosts, by name or id; and join tokens and administrators, in words."""


class AuthorityRotation:
    """Listing and changing the authorities."""

    def __init__(self, core: Core, cost: Cost | None = None) -> None:
        self._core = core
        self._cost = cost

    def views(self, actor: Actor) -> tuple[RootView, ...]:
        """Every authority, the oldest first. Needs no key. Raises PlaneError."""
        require(actor, Permission.READ_HOSTS)
        with self._core.store.reading() as reader:
            roots = self._displayed(reader)
            served = _served(reader)
            found = []
            for row in reader.keys(KeyKind.AUTHORITY):
                certificate = root_certificate(row)
                status = roots.status_of(row.key_id)
                missing = self._missing(reader, roots, status, row.key_id, served)
                hosts = len(served) - sum(not one.startswith("!") for one in missing)
                found.append(
                    RootView(
                        row.key_id,
                        status,
                        row.created_at_unix_ms,
                        int(certificate.not_valid_after_utc.timestamp()) * 1000,
                        hosts if status in (RootStatus.ACTIVE, RootStatus.COMING) else 0,
                        tuple(one.lstrip("!") for one in missing),
                    )
                )
        return tuple(found)

    def create(self, actor: Actor, change: Change, passphrase: str | None) -> str:
        """Make the next authority; hosts begin to trust it. Its fingerprint."""
        require(actor, Permission.CHANGE_KEYS)
        check_passphrase(passphrase)

        def body(work: Work) -> str:
            roots = self._roots(work)
            if roots.coming:
                raise PlaneError(
                    ExitCode.REFUSED,
                    f"The authority {roots.coming[:16]} is coming already",
                    "Let it issue with `licplane ca promote`, or drop it with `licplane ca retire`",
                )
            check_protection(work, passphrase)
            authority, row = create_authority(passphrase, work.now_ms, self._cost)
            work.transaction.put_key(row)
            work.keys = work.keys.with_authority(authority)
            self._put(work, roots.with_coming(authority.fingerprint, work.now_ms))
            work.audit("authority.create", row.key_id, {"status": "coming"})
            return authority.fingerprint

        return run_once(self._core, actor, change, body)

    def promote(self, actor: Actor, change: Change, *, anyway: bool) -> str:
        """Let the coming authority issue; the old one stays trusted. Its fingerprint."""
        require(actor, Permission.CHANGE_KEYS)

        def body(work: Work) -> str:
            roots = self._roots(work)
            if not roots.coming:
                raise PlaneError(
                    ExitCode.REFUSED,
                    "There is no authority that could take over",
                    "Make one with `licplane ca create`",
                )
            missing = self._missing(
                work.transaction,
                roots,
                RootStatus.COMING,
                roots.coming,
                _served(work.transaction),
            )
            if missing and not anyway:
                raise _not_ready(
                    "could not verify a server of the new authority",
                    missing,
                    "They take it within half of their certificate's life while they are"
                    " connected; with --anyway those that lack it must enrol again",
                )
            self._put(work, roots.promoted(work.now_ms))
            work.audit(
                "authority.promote",
                roots.coming,
                {"before": roots.active, "unready": [one.lstrip("!") for one in missing]},
            )
            return roots.coming

        return run_once(self._core, actor, change, body)

    def retire(self, actor: Actor, change: Change, fingerprint: str, *, anyway: bool) -> str:
        """End the trust in an authority that does not issue. Its fingerprint."""
        require(actor, Permission.CHANGE_KEYS)

        def body(work: Work) -> str:
            roots = self._roots(work)
            name = _found(roots, fingerprint)
            status = roots.status_of(name)
            if status is RootStatus.ACTIVE:
                raise PlaneError(
                    ExitCode.REFUSED,
                    f"The authority {name[:16]} is the one that issues",
                    "Let another take over first: `licplane ca create`, `licplane ca promote`",
                )
            if status is RootStatus.RETIRED:
                raise PlaneError(
                    ExitCode.REFUSED, f"{name[:16]} is retired already", "There is nothing to do"
                )
            missing: Sequence[str] = ()
            if status is RootStatus.LEAVING:
                missing = self._missing(
                    work.transaction,
                    roots,
                    RootStatus.ACTIVE,
                    roots.active,
                    _served(work.transaction),
                )
            if missing and not anyway:
                raise _not_ready(
                    f"still depend on the authority {name[:16]}",
                    missing,
                    "Hosts take a new certificate within half of the old one's life while they are"
                    " connected; with --anyway the others must enrol again",
                )
            self._put(work, roots.without(name, work.now_ms))
            work.audit("authority.retire", name, {"unready": [one.lstrip("!") for one in missing]})
            return name

        return run_once(self._core, actor, change, body)

    # ---

    def _roots(self, work: Work) -> Roots:
        data = work.transaction.setting(ROOTS_SETTING)
        if data is None:
            return Roots(self._core.authority().fingerprint)
        return opened_roots(data, self._core.own_trust(None))

    def _displayed(self, reader: Reader) -> Roots:
        data = reader.setting(ROOTS_SETTING)
        if data is not None:
            return unverified_roots(data)
        rows = reader.keys(KeyKind.AUTHORITY)
        return Roots(rows[-1].key_id if rows else "")

    def _put(self, work: Work, roots: Roots) -> None:
        key = control_key(work.keys, Keyring(work.transaction).trust())
        work.transaction.put_setting(ROOTS_SETTING, sealed_roots(roots, self._core.sealer_of(key)))

    def _missing(
        self,
        reader: Reader,
        roots: Roots,
        status: RootStatus,
        fingerprint: str,
        served: Sequence[Host],
    ) -> list[str]:
        """Who is not ready, hosts by their names; what is no host begins with "!"."""
        now_ms = self._core.now_ms()
        if status is RootStatus.COMING:
            found = [_name(host) for host in served if fingerprint not in _trusted_by(reader, host)]
            row = reader.key(fingerprint)
            since_ms = row.created_at_unix_ms if row is not None else 0
            found += [
                f"!join token {one.token_id}"
                for one in reader.join_tokens()
                if one.uses < one.uses_max
                and one.expires_at_unix_ms > now_ms
                and one.created_at_unix_ms < since_ms + _STALE_MS
            ]
            return found + _admins(reader, since_ms, now_ms)
        if status is not RootStatus.ACTIVE or not roots.active_since_unix_ms:
            return []
        found = [
            _name(host) for host in served if not _is_certified(reader, host, fingerprint, now_ms)
        ]
        for one in reader.admins():
            shown = reader.certificate(one.fingerprint)
            if shown is None or not _is_live(one, now_ms):
                continue  # a bearer token's file was seen to when the authority took over
            if not is_issuer_of(fingerprint, shown.serial):
                found.append(f"!the certificate of the administrator {one.name}")
        return found


def _served(reader: Reader) -> list[Host]:
    found: list[Host] = []
    after = ""
    while page := reader.hosts(after=after, limit=_HOSTS_AT_ONCE):
        found += [host for host in page if host.status in SERVED]
        after = page[-1].host_id
    return found


def _trusted_by(reader: Reader, host: Host) -> Sequence[str]:
    """The roots that the host says it trusts."""
    row = reader.report(host.host_id)
    text = kept(row.report).json if row else ""
    try:
        found = (json.loads(text).get("state") or {}).get("authorities") if text else None
    except (ValueError, AttributeError):
        return ()
    return [one for one in found if isinstance(one, str)] if isinstance(found, list) else ()


def _is_certified(reader: Reader, host: Host, authority: str, now_ms: int) -> bool:
    return any(
        is_issuer_of(authority, one.serial)
        and one.not_after_unix_ms > now_ms
        and one.revoked_at_unix_ms is None
        for one in reader.certificates_of(host.host_id)
    )


def _admins(reader: Reader, since_ms: int, now_ms: int) -> list[str]:
    """Administrators whose file names only the root of before."""
    return [
        f"!the {one.credential.value} of the administrator {one.name}"
        for one in reader.admins()
        if _is_live(one, now_ms) and one.created_at_unix_ms < since_ms + _STALE_MS
    ]


def _is_live(one: AdminIdentity, now_ms: int) -> bool:
    return one.revoked_at_unix_ms is None and one.expires_at_unix_ms > now_ms


def _found(roots: Roots, fingerprint: str) -> str:
    text = fingerprint.lower().replace(":", "")
    found = [
        one
        for one in roots.every
        if one == text or (len(text) >= _PREFIX_MIN and one.startswith(text))
    ]
    if len(found) == 1:
        return found[0]
    message = (
        f"{len(found)} authorities begin with {text}" if found else f"There is no authority {text}"
    )
    raise PlaneError(ExitCode.NOT_FOUND, message, "`licplane ca list` shows all")


def _not_ready(what: str, missing: Sequence[str], hint: str) -> PlaneError:
    names = ", ".join(one.lstrip("!") for one in missing[:_NAMED])
    more = f" and {len(missing) - _NAMED} more" if len(missing) > _NAMED else ""
    return PlaneError(ExitCode.REFUSED, f"{names}{more} {what}", hint)


def _name(host: Host) -> str:
    return host.hostname or host.host_id
