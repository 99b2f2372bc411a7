# SPDX-License-Identifier: Apache-2.0
"""Reading the audit log, and finding out whether it is whole."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Final

from licplane.errors import ExitCode, PlaneError
from licplane.issuer.keyring import Keyring
from licplane.service import paging
from licplane.service.access import Permission, require
from licplane.service.answers import AuditCheck, AuditView
from licplane.service.core import Core
from licplane.service.values import Actor
from licplane.service.work import canonical
from licplane.store.audit import verify_log
from licplane.store.reader import Reader
from licplane.store.record_model import AuditHead, AuditRecord
from lictoken import base64url
from lictoken.claims import I64_MAX
from lictoken.errors import TokenError
from lictoken.sealed import Seal, SealPurpose, unseal
from lictoken.trust import KeyStatus, TrustedKey, TrustStore

_PAGE: Final = 1_000
_HEAD_MAX: Final = 16 * 1024


class Auditing:
    """The audit log as auditors see it."""

    def __init__(self, core: Core) -> None:
        self._core = core

    def list(self, actor: Actor, after: int, size: int) -> tuple[AuditView, ...]:
        """See Plane.list_audit."""
        require(actor, Permission.READ_AUDIT)
        limit = min(size, paging.MAX_SIZE) if size > 0 else paging.DEFAULT_SIZE
        with self._core.store.reading() as reader:
            rows = reader.audit(after_sequence=min(max(after, 0), I64_MAX), limit=limit)
        return tuple(_view(one) for one in rows)

    def verify(self, actor: Actor, head: bytes | None) -> AuditCheck:
        """See Plane.verify_audit."""
        require(actor, Permission.READ_AUDIT)
        exported = _parse_head(head) if head is not None else None
        with self._core.store.reading() as reader:
            trust = self._trust(reader)
            last = reader.last_audit_head()
            problems = list(
                verify_log(
                    _records(reader),
                    _heads(reader),
                    lambda seal: unseal(SealPurpose.AUDIT_HEAD, seal, trust),
                    exported=exported,
                )
            )
            told = reader.head().audit_sequence
        count = last.sequence if last is not None else told
        if last is None and told:
            problems.append("no head is left that vouches for the log's end")
        return AuditCheck(told or count, tuple(problems))

    def head(self, actor: Actor) -> bytes:
        """See Plane.audit_head."""
        require(actor, Permission.READ_AUDIT)
        with self._core.store.reading() as reader:
            found = reader.last_audit_head()
        if found is None:
            raise PlaneError(
                ExitCode.NOT_FOUND, "The audit log is empty", "There is nothing to keep yet"
            )
        document = {
            "schema_version": 1,
            "sequence": found.sequence,
            "hash": found.hash.hex(),
            "payload": base64url.encode(found.seal.payload),
            "kid": found.seal.kid,
            "signature": base64url.encode(found.seal.signature),
        }
        return canonical(document).encode() + b"\n"

    def _trust(self, reader: Reader) -> TrustStore:
        """Keys whose heads count: also retired ones, for what they signed when they were not.

        Where this process has no keys open, those that hosts trust: whoever could exchange them
        all could as well sign another log, so an auditor gives a head that was kept elsewhere.
        """
        if self._core.has_keys:
            return self._core.own_trust(None)
        return TrustStore(
            TrustedKey(one.kid, one.public_key, one.issuer, KeyStatus.ACTIVE, one.purposes)
            for one in Keyring(reader).trust()
        )


def _records(reader: Reader) -> Iterator[AuditRecord]:
    after = 0
    while rows := reader.audit(after_sequence=after, limit=_PAGE):
        yield from rows
        after = rows[-1].sequence


def _heads(reader: Reader) -> Iterator[AuditHead]:
    after = 0
    while rows := reader.audit_heads(after_sequence=after, limit=_PAGE):
        yield from rows
        after = rows[-1].sequence


def _parse_head(data: bytes) -> AuditHead:
    try:
        if len(data) > _HEAD_MAX:
            raise ValueError("too long")
        value = json.loads(data)
        return AuditHead(
            int(value["sequence"]),
            bytes.fromhex(value["hash"]),
            Seal(
                base64url.decode(str(value["payload"]), "payload"),
                str(value["kid"]),
                base64url.decode(str(value["signature"]), "signature"),
            ),
        )
    except (ValueError, KeyError, TypeError, RecursionError, TokenError) as error:
        raise PlaneError(
            ExitCode.USAGE,
            "The head is none that licplane exported",
            "Give the file that `licplane audit head` wrote",
        ) from error


def _view(one: AuditRecord) -> AuditView:
    return AuditView(
        sequence=one.sequence,
        at_unix_ms=one.at_unix_ms,
        actor=one.actor,
        role=one.role,
        action=one.action,
        target=one.target,
        reason=one.reason,
        request_id=one.request_id,
        detail_json=one.detail,
        previous_hash=one.previous_hash,
        hash=one.hash,
    )
