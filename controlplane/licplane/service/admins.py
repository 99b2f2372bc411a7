# SPDX-License-Identifier: Apache-2.0
"""Administrators: client certificates and bearer tokens, of which only hashes are kept."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Mapping
from typing import Any, Final

from licplane.errors import ExitCode, PlaneError
from licplane.issuer.authority import pem_of
from licplane.issuer.peerkeys import new_private_key, private_key_pem
from licplane.service.access import Permission, require
from licplane.service.answers import AdminCreated, AdminView, ChangeResult, Difference
from licplane.service.core import Core
from licplane.service.enrolment import certificate_row
from licplane.service.identities import TOKEN_PREFIX
from licplane.service.requests import Change
from licplane.service.results import change_from, change_to
from licplane.service.texts import ADMIN_NAME, check_pattern, one_of, refuse
from licplane.service.values import Actor, Role
from licplane.service.work import Work, perform
from licplane.store.identity_model import AdminIdentity, Credential

TTL_MAX_S: Final = 366 * 86_400
_TOKEN_BYTES: Final = 32


class Admins:
    """Creating, listing and revoking what administrators sign in with."""

    def __init__(self, core: Core) -> None:
        self._core = core

    def create(
        self, actor: Actor, change: Change, *, name: str, role: Role, means: str, ttl_s: int
    ) -> AdminCreated:
        """See Plane.create_admin."""
        require(actor, Permission.CHANGE_ADMINS)
        check_pattern(
            name, "The administrator's name", ADMIN_NAME, "letters, digits and . _ @ -, at most 64"
        )
        credential = Credential(one_of(means, "The means", [one.value for one in Credential]))
        if role is Role.HOST:
            raise refuse("The role host is for hosts", "Choose admin, issuer or auditor")
        ttl_s = ttl_s or self._core.settings.admin_certificate_ttl_s
        if not 60 <= ttl_s <= TTL_MAX_S:
            raise refuse(f"It would last {ttl_s} s", f"Choose 60 s to {TTL_MAX_S} s (366 days)")
        request: dict[str, object] = {
            "method": "create_admin",
            "name": name,
            "role": role.value,
            "means": means,
            "ttl_s": ttl_s,
            "dry_run": change.dry_run,
        }
        secret: list[str] = []

        def body(work: Work) -> AdminView:
            if credential is Credential.TOKEN:
                admin, text = _token(work, name, role, ttl_s)
            else:
                admin, text = self._certificate(work, name, role, ttl_s)
            secret.append(text)
            work.transaction.put_admin(admin)
            work.audit(
                "admin.create",
                name,
                {"role": role.value, "means": means, "id": admin.fingerprint.hex()[:16]},
            )
            return view_of(admin)

        view = perform(self._core, actor, change, request, body, encode=_view_to, decode=_view_from)
        text = secret[0] if secret and not change.dry_run else ""
        if credential is Credential.TOKEN:
            return AdminCreated(view, token=text)
        return AdminCreated(view, pem=text)

    def list(self, actor: Actor) -> tuple[AdminView, ...]:
        """See Plane.list_admins."""
        require(actor, Permission.READ_ADMINS)
        with self._core.store.reading() as reader:
            return tuple(view_of(one) for one in reader.admins())

    def revoke(self, actor: Actor, change: Change, name: str) -> ChangeResult:
        """See Plane.revoke_admin."""
        require(actor, Permission.CHANGE_ADMINS)
        request: dict[str, object] = {
            "method": "revoke_admin",
            "name": name,
            "dry_run": change.dry_run,
        }

        def body(work: Work) -> ChangeResult:
            mine = [one for one in work.transaction.admins() if one.name == name]
            if not mine:
                raise PlaneError(
                    ExitCode.NOT_FOUND,
                    "There is no administrator of this name",
                    "`licplane admin list` shows all",
                )
            count = work.transaction.revoke_admin(name, work.now_ms)
            for one in mine:
                if one.credential is Credential.CERTIFICATE:
                    work.transaction.revoke_certificate(one.fingerprint, work.now_ms)
            if count:
                work.audit("admin.revoke", name, {"credentials": count})
            difference = Difference("delete" if count else "none", "admin", name)
            return ChangeResult(bool(count), change.dry_run, 0, (difference,))

        return perform(
            self._core, actor, change, request, body, encode=change_to, decode=change_from
        )

    def _certificate(
        self, work: Work, name: str, role: Role, ttl_s: int
    ) -> tuple[AdminIdentity, str]:
        authority = self._core.authority()
        key = new_private_key()
        issued = authority.issue_admin(name, key.public_key(), ttl_s, work.now_ms)
        work.transaction.add_certificate(certificate_row(issued))
        pem = private_key_pem(key) + pem_of(issued.der) + self._core.authorities().pem
        admin = _identity(
            work,
            name,
            role,
            credential=Credential.CERTIFICATE,
            fingerprint=issued.fingerprint,
            ttl_s=ttl_s,
        )
        return admin, pem.decode("ascii")


def view_of(admin: AdminIdentity) -> AdminView:
    """An administrator's credential without any secret."""
    return AdminView(
        name=admin.name,
        role=admin.role.value,
        means=admin.credential.value,
        id=admin.fingerprint.hex()[:16],
        created_at_unix_ms=admin.created_at_unix_ms,
        expires_at_unix_ms=admin.expires_at_unix_ms,
        revoked=admin.revoked_at_unix_ms is not None,
    )


def _token(work: Work, name: str, role: Role, ttl_s: int) -> tuple[AdminIdentity, str]:
    token = TOKEN_PREFIX + secrets.token_urlsafe(_TOKEN_BYTES)
    fingerprint = hashlib.sha256(token.encode()).digest()
    admin = _identity(
        work, name, role, credential=Credential.TOKEN, fingerprint=fingerprint, ttl_s=ttl_s
    )
    return admin, token


def _identity(
    work: Work, name: str, role: Role, *, credential: Credential, fingerprint: bytes, ttl_s: int
) -> AdminIdentity:
    return AdminIdentity(
        name=name,
        role=role,
        credential=credential,
        fingerprint=fingerprint,
        created_by=work.actor.name,
        created_at_unix_ms=work.now_ms,
        expires_at_unix_ms=work.now_ms + ttl_s * 1000,
    )


def _view_to(view: AdminView) -> dict[str, object]:
    return {name: getattr(view, name) for name in AdminView.__dataclass_fields__}


def _view_from(value: Mapping[str, Any]) -> AdminView:
    return AdminView(**value)
