# SPDX-License-Identifier: Apache-2.0
"""Who stands behind a certificate or a bearer token."""

from __future__ import annotations

import hashlib
import re
from typing import Final

from licplane.errors import Unauthenticated
from licplane.service.core import Core
from licplane.service.values import SERVED, Identity, Role
from licplane.store.identity_model import AdminIdentity, Certificate, Credential

TOKEN_PREFIX: Final = "licadmin1."
_FINGERPRINT: Final = re.compile(r"[0-9a-f]{64}", re.ASCII)
_TOKEN_MAX: Final = 256


class Identities:
    """Looks certificates and tokens up; nothing is believed that has no row."""

    def __init__(self, core: Core) -> None:
        self._core = core

    def of_certificate(self, fingerprint: str) -> Identity:
        """See Plane.authenticate."""
        text = fingerprint.lower().replace(":", "")
        if not _FINGERPRINT.fullmatch(text):
            raise _unknown_certificate()
        digest = bytes.fromhex(text)
        now_ms = self._core.now_ms()
        with self._core.store.reading() as reader:
            row = reader.certificate(digest)
            if row is None or row.not_after_unix_ms <= now_ms:
                raise _unknown_certificate()
            if row.host_id:
                host = reader.host(row.host_id)
                if host is None:
                    raise _unknown_certificate()
                if host.status in SERVED and row.revoked_at_unix_ms is not None:
                    raise _unknown_certificate()
                return Identity(
                    Role.HOST, host.host_id, host.host_id, host.status, text,
                    row.key_fingerprint, row.not_after_unix_ms, row.not_before_unix_ms,
                )  # fmt: skip
            admin = reader.admin(digest)
        return self._admin(admin, row, Credential.CERTIFICATE, now_ms)

    def of_token(self, token: str) -> Identity:
        """See Plane.authenticate_token."""
        if len(token) > _TOKEN_MAX or not token.startswith(TOKEN_PREFIX) or not token.isascii():
            raise _unknown_token()
        with self._core.store.reading() as reader:
            admin = reader.admin(hashlib.sha256(token.encode()).digest())
        return self._admin(admin, None, Credential.TOKEN, self._core.now_ms())

    @staticmethod
    def _admin(
        admin: AdminIdentity | None, row: Certificate | None, means: Credential, now_ms: int
    ) -> Identity:
        if (
            admin is None
            or admin.credential is not means
            or admin.revoked_at_unix_ms is not None
            or admin.expires_at_unix_ms <= now_ms
            or (row is not None and row.revoked_at_unix_ms is not None)
        ):
            raise _unknown_token() if means is Credential.TOKEN else _unknown_certificate()
        return Identity(
            role=admin.role,
            name=admin.name,
            fingerprint=row.fingerprint.hex() if row is not None else "",
            key_fingerprint=row.key_fingerprint if row is not None else b"",
            not_after_unix_ms=admin.expires_at_unix_ms,
        )


def _unknown_certificate() -> Unauthenticated:
    return Unauthenticated(
        "The certificate counts for nobody here", "Enrol the host again, or ask an administrator"
    )


def _unknown_token() -> Unauthenticated:
    return Unauthenticated(
        "The bearer token counts for nobody here", "Ask an administrator for another one"
    )
