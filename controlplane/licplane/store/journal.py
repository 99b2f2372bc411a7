# SPDX-License-Identifier: Apache-2.0
"""The rows of the audit log, of answered requests and of settings."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Row, delete, insert, select

from licplane.store.audit import chained
from licplane.store.record_model import AuditDraft, AuditHead, AuditRecord, RequestResult, Setting
from licplane.store.schema import audit, audit_heads, requests, settings
from licplane.store.session import Session, blob, checked, paged
from lictoken.sealed import Seal


class JournalReads(Session):
    """Reading the journal."""

    def audit(self, *, after_sequence: int = 0, limit: int = 0) -> tuple[AuditRecord, ...]:
        """Audit entries by sequence."""
        statement = paged(select(audit), audit.c.sequence, after_sequence, limit)
        return tuple(map(_record, self._all(statement)))

    def last_audit(self) -> AuditRecord | None:
        """The newest audit entry."""
        row = self._one(select(audit).order_by(audit.c.sequence.desc()).limit(1))
        return None if row is None else _record(row)

    def audit_heads(self, *, after_sequence: int = 0, limit: int = 0) -> tuple[AuditHead, ...]:
        """Sealed heads by sequence."""
        statement = paged(select(audit_heads), audit_heads.c.sequence, after_sequence, limit)
        return tuple(map(_head, self._all(statement)))

    def last_audit_head(self) -> AuditHead | None:
        """The newest sealed head."""
        row = self._one(select(audit_heads).order_by(audit_heads.c.sequence.desc()).limit(1))
        return None if row is None else _head(row)

    def request_result(self, actor: str, request_id: str) -> RequestResult | None:
        """What this request was answered, if it was made within the time that results are kept."""
        row = self._one(
            select(requests).where(requests.c.actor == actor, requests.c.request_id == request_id)
        )
        if row is None:
            return None
        return RequestResult(
            row.actor,
            row.request_id,
            blob(row.request_digest),
            blob(row.result),
            row.at_unix_ms,
        )

    def setting(self, name: str) -> bytes | None:
        """A setting's value, or None."""
        row = self._one(select(settings.c.value).where(settings.c.name == name))
        return None if row is None else blob(row.value)

    def settings(self) -> tuple[Setting, ...]:
        """All settings by name."""
        rows = self._all(select(settings).order_by(settings.c.name))
        return tuple(Setting(row.name, blob(row.value)) for row in rows)


class JournalWrites(JournalReads):
    """Writing the journal. Sequence and hash of the last entry are in the head."""

    _audit_sequence: int
    _audit_hash: bytes

    def append_audit(self, draft: AuditDraft) -> AuditRecord:
        """Add an entry at the end of the chain."""
        record = chained(draft, self._audit_sequence + 1, self._audit_hash)
        self._run(
            insert(audit).values(
                sequence=record.sequence,
                at_unix_ms=record.at_unix_ms,
                actor=record.actor,
                role=record.role,
                action=record.action,
                target=record.target,
                reason=record.reason,
                request_id=record.request_id,
                detail=record.detail,
                previous_hash=record.previous_hash,
                hash=record.hash,
            )
        )
        self._audit_sequence, self._audit_hash = record.sequence, record.hash
        return record

    def put_audit_head(self, head: AuditHead) -> None:
        """Keep a seal over the log's end; made over audit_head_payload(sequence, hash)."""
        self._put(
            audit_heads,
            [
                {
                    "sequence": head.sequence,
                    "hash": head.hash,
                    "payload": head.seal.payload,
                    "kid": head.seal.kid,
                    "signature": head.seal.signature,
                }
            ],
        )

    def put_request_result(self, result: RequestResult) -> None:
        """Keep a request's answer."""
        self._put(
            requests,
            [
                {
                    "actor": result.actor,
                    "request_id": result.request_id,
                    "request_digest": result.request_digest,
                    "result": result.result,
                    "at_unix_ms": result.at_unix_ms,
                }
            ],
        )

    def put_setting(self, name: str, value: bytes) -> None:
        """Set a setting."""
        self._put(settings, [{"name": name, "value": value}])

    def delete_setting(self, name: str) -> bool:
        """Delete a setting; False if there is none."""
        return self._run(delete(settings).where(settings.c.name == name)) == 1


@checked
def _record(row: Row[Any]) -> AuditRecord:
    return AuditRecord(
        sequence=row.sequence,
        at_unix_ms=row.at_unix_ms,
        actor=row.actor,
        role=row.role,
        action=row.action,
        target=row.target,
        reason=row.reason,
        request_id=row.request_id,
        detail=row.detail,
        previous_hash=blob(row.previous_hash),
        hash=blob(row.hash),
    )


@checked
def _head(row: Row[Any]) -> AuditHead:
    return AuditHead(
        row.sequence, blob(row.hash), Seal(blob(row.payload), row.kid, blob(row.signature))
    )
