# SPDX-License-Identifier: Apache-2.0
"""Who may speak: certificates, join tokens, administrators, and what counts once."""

from __future__ import annotations

from typing import Any, Final

from sqlalchemy import Row, delete, select, update

from licplane.store.identity_model import AdminIdentity, Certificate, Credential, JoinToken, Role
from licplane.store.schema import admins, certificates, join_tokens, requests, spent
from licplane.store.session import Session, blob, canonical, checked, labels_from, paged

CERTIFICATE_KEPT_MS: Final = 30 * 24 * 3600 * 1000
"""How long the row of a certificate outlives it."""


class IdentityReads(Session):
    """Reading identities."""

    def certificate(self, fingerprint: bytes) -> Certificate | None:
        """The certificate with this SHA-256 of its DER."""
        row = self._one(select(certificates).where(certificates.c.fingerprint == fingerprint))
        return None if row is None else _certificate(row)

    def certificates_of(self, host_id: str) -> tuple[Certificate, ...]:
        """A host's certificates, the one that ends last first."""
        statement = select(certificates).where(certificates.c.host_id == host_id)
        order = (certificates.c.not_after_unix_ms.desc(), certificates.c.serial)
        return tuple(map(_certificate, self._all(statement.order_by(*order))))

    def join_token(self, token_id: str) -> JoinToken | None:
        """A join token by id."""
        row = self._one(select(join_tokens).where(join_tokens.c.token_id == token_id))
        return None if row is None else _join_token(row)

    def join_tokens(self, *, after: str = "", limit: int = 0) -> tuple[JoinToken, ...]:
        """Join tokens by id."""
        statement = paged(select(join_tokens), join_tokens.c.token_id, after, limit)
        return tuple(map(_join_token, self._all(statement)))

    def admin(self, fingerprint: bytes) -> AdminIdentity | None:
        """The administrator with this credential, revoked or expired ones too."""
        row = self._one(select(admins).where(admins.c.fingerprint == fingerprint))
        return None if row is None else _admin(row)

    def admins(self) -> tuple[AdminIdentity, ...]:
        """All administrators' credentials by name."""
        order = (admins.c.name, admins.c.created_at_unix_ms, admins.c.fingerprint)
        return tuple(map(_admin, self._all(select(admins).order_by(*order))))


class IdentityRecords(IdentityReads):
    """Writing what enrolment and renewal make."""

    def add_certificate(self, certificate: Certificate) -> None:
        """Note a certificate that was issued."""
        self._put(
            certificates,
            [
                {
                    "fingerprint": certificate.fingerprint,
                    "serial": certificate.serial,
                    "subject": certificate.subject,
                    "key_fingerprint": certificate.key_fingerprint,
                    "not_before_unix_ms": certificate.not_before_unix_ms,
                    "not_after_unix_ms": certificate.not_after_unix_ms,
                    "host_id": certificate.host_id,
                    "revoked_at_unix_ms": certificate.revoked_at_unix_ms,
                }
            ],
        )

    def spend(self, digest: bytes, until_unix_ms: int) -> bool:
        """True the first time, False afterwards: for signatures that count once.

        Kept until `purge` is called with a later time than `until_unix_ms`. `digest`: 32 bytes.
        """
        row = {"digest": digest, "until_unix_ms": until_unix_ms}
        return self._put(spent, [row], skip=True) == 1

    def purge(self, now_unix_ms: int, *, requests_before_unix_ms: int) -> int:
        """Delete results of old requests, spent digests, and certificates that are over.

        Certificates are kept for 30 days after their end. Gives the number of rows deleted.
        """
        ended = certificates.c.not_after_unix_ms < max(0, now_unix_ms - CERTIFICATE_KEPT_MS)
        return (
            self._run(delete(requests).where(requests.c.at_unix_ms < requests_before_unix_ms))
            + self._run(delete(spent).where(spent.c.until_unix_ms < now_unix_ms))
            + self._run(delete(certificates).where(ended))
        )


class IdentityWrites(IdentityRecords):
    """Changing identities."""

    def revoke_certificates(self, host_id: str, now_unix_ms: int) -> int:
        """Revoke all certificates of a host; how many were not revoked before."""
        return self._revoke(certificates.c.host_id == host_id, now_unix_ms)

    def revoke_certificate(self, fingerprint: bytes, now_unix_ms: int) -> bool:
        """Revoke one certificate; False if there is none or it was revoked."""
        return self._revoke(certificates.c.fingerprint == fingerprint, now_unix_ms) == 1

    def put_join_token(self, token: JoinToken) -> None:
        """Create a join token, or replace it with its uses."""
        self._put(
            join_tokens,
            [
                {
                    "token_id": token.token_id,
                    "secret_hash": token.secret_hash,
                    "labels": canonical(dict(token.labels)),
                    "uses": token.uses,
                    "uses_max": token.uses_max,
                    "expires_at_unix_ms": token.expires_at_unix_ms,
                    "created_by": token.created_by,
                    "created_at_unix_ms": token.created_at_unix_ms,
                }
            ],
        )

    def use_join_token(self, token_id: str, now_unix_ms: int) -> bool:
        """Count one use; False when there is none left, it has expired or is not there."""
        statement = update(join_tokens).where(
            join_tokens.c.token_id == token_id,
            join_tokens.c.uses < join_tokens.c.uses_max,
            join_tokens.c.expires_at_unix_ms > now_unix_ms,
        )
        return self._run(statement.values(uses=join_tokens.c.uses + 1)) == 1

    def delete_join_token(self, token_id: str) -> bool:
        """Delete a join token; False if there is none."""
        return self._run(delete(join_tokens).where(join_tokens.c.token_id == token_id)) == 1

    def put_admin(self, admin: AdminIdentity) -> None:
        """Create or replace an administrator's credential (by fingerprint)."""
        self._put(
            admins,
            [
                {
                    "fingerprint": admin.fingerprint,
                    "name": admin.name,
                    "role": admin.role.value,
                    "credential": admin.credential.value,
                    "created_by": admin.created_by,
                    "created_at_unix_ms": admin.created_at_unix_ms,
                    "expires_at_unix_ms": admin.expires_at_unix_ms,
                    "revoked_at_unix_ms": admin.revoked_at_unix_ms,
                }
            ],
        )

    def revoke_admin(self, name: str, now_unix_ms: int) -> int:
        """Revoke all credentials of an administrator; how many were not revoked before.

        Certificates among them are revoked as certificates too.
        """
        live = select(admins.c.fingerprint).where(
            admins.c.name == name, admins.c.revoked_at_unix_ms.is_(None)
        )
        self._revoke(certificates.c.fingerprint.in_(live), now_unix_ms)
        statement = update(admins).where(
            admins.c.name == name, admins.c.revoked_at_unix_ms.is_(None)
        )
        return self._run(statement.values(revoked_at_unix_ms=now_unix_ms))

    def _revoke(self, which: Any, now_unix_ms: int) -> int:
        statement = update(certificates).where(which, certificates.c.revoked_at_unix_ms.is_(None))
        return self._run(statement.values(revoked_at_unix_ms=now_unix_ms))


@checked
def _certificate(row: Row[Any]) -> Certificate:
    return Certificate(
        fingerprint=blob(row.fingerprint),
        serial=row.serial,
        subject=row.subject,
        key_fingerprint=blob(row.key_fingerprint),
        not_before_unix_ms=row.not_before_unix_ms,
        not_after_unix_ms=row.not_after_unix_ms,
        host_id=row.host_id,
        revoked_at_unix_ms=row.revoked_at_unix_ms,
    )


@checked
def _join_token(row: Row[Any]) -> JoinToken:
    return JoinToken(
        token_id=row.token_id,
        secret_hash=blob(row.secret_hash),
        labels=labels_from(row.labels),
        uses_max=row.uses_max,
        expires_at_unix_ms=row.expires_at_unix_ms,
        created_by=row.created_by,
        created_at_unix_ms=row.created_at_unix_ms,
        uses=row.uses,
    )


@checked
def _admin(row: Row[Any]) -> AdminIdentity:
    return AdminIdentity(
        name=row.name,
        role=Role(row.role),
        credential=Credential(row.credential),
        fingerprint=blob(row.fingerprint),
        created_by=row.created_by,
        created_at_unix_ms=row.created_at_unix_ms,
        expires_at_unix_ms=row.expires_at_unix_ms,
        revoked_at_unix_ms=row.revoked_at_unix_ms,
    )
