# SPDX-License-Identifier: Apache-2.0
"""Writing what administrators decide: one after the other, in the order of their commits.

A transaction first locks the head row (SQLite: the database), so revisions, fleet revisions,
audit sequences and license numbers have no gaps and are seen in order. What it writes is there
whole or not at all; nothing else sees it before the block ends.
"""

from __future__ import annotations

from collections.abc import Sequence

from licplane.store.model import (
    AdminIdentity,
    AuditDraft,
    AuditHead,
    AuditRecord,
    CatalogObject,
    Host,
    JoinToken,
    Kind,
    LicenseRecord,
    ObjectDraft,
    RequestResult,
    SealedKey,
)
from licplane.store.recorder import Recorder
from lictoken.sealed import Seal


class Transaction(Recorder):
    """Made by Store.transaction(). Reads see what it wrote itself, but for `changes_since`."""

    # -- catalog

    def next_revision(self) -> int:
        """The revision that this transaction makes; all its changes share it.

        The first call, or the first change of the catalog, takes it.
        """
        raise NotImplementedError

    def put_objects(self, drafts: Sequence[ObjectDraft]) -> tuple[CatalogObject, ...]:
        """Create or replace objects. Those that are already so keep their revision and etag."""
        raise NotImplementedError

    def put_object(self, draft: ObjectDraft) -> CatalogObject:
        """Create or replace one object."""
        raise NotImplementedError

    def remove_objects(self, kind: Kind, names: Sequence[str]) -> int:
        """Take objects out of the catalog; how many were there."""
        raise NotImplementedError

    def root_before(self) -> bytes:
        """The catalog's digest root as this transaction found it.

        Compare it with the root in the head's seal before signing another: so an altered
        database is never signed. Buckets of changed objects are checked against their rows as
        they are written; PlaneError INTERNAL when they differ.
        """
        raise NotImplementedError

    def root_after(self) -> bytes:
        """The root with this transaction's changes."""
        raise NotImplementedError

    def seal_catalog(self, seal: Seal) -> None:
        """Replace the head's seal, made over catalog_head_payload(next_revision, root_after)."""
        raise NotImplementedError

    def compact_changes(self, before_revision: int) -> int:
        """Forget what deltas from `before_revision` on do not need; how many rows went.

        The newest row of each (kind, name, scope) is kept unless it is a removal of that age.
        """
        raise NotImplementedError

    # -- hosts and identities

    def put_host(self, host: Host) -> Host:
        """Create or replace a host; takes a fleet revision."""
        raise NotImplementedError

    def delete_host(self, host_id: str) -> bool:
        """Forget a host with its counters, presence, report and shadow usage."""
        raise NotImplementedError

    def clear_counters(self, host_id: str) -> None:
        """Forget the host's counter: the next one given starts anew."""
        raise NotImplementedError

    def revoke_certificates(self, host_id: str, now_unix_ms: int) -> int:
        """Revoke all certificates of a host; how many were not revoked before."""
        raise NotImplementedError

    def revoke_certificate(self, fingerprint: bytes, now_unix_ms: int) -> bool:
        """Revoke one certificate; False if there is none or it was revoked."""
        raise NotImplementedError

    def put_join_token(self, token: JoinToken) -> None:
        """Create a join token."""
        raise NotImplementedError

    def use_join_token(self, token_id: str, now_unix_ms: int) -> bool:
        """Count one use; False when there is none left, it has expired or is not there."""
        raise NotImplementedError

    def delete_join_token(self, token_id: str) -> bool:
        """Delete a join token; False if there is none."""
        raise NotImplementedError

    def put_admin(self, admin: AdminIdentity) -> None:
        """Create or replace an administrator's credential (by fingerprint)."""
        raise NotImplementedError

    def revoke_admin(self, name: str, now_unix_ms: int) -> int:
        """Revoke all credentials of an administrator; how many were not revoked before."""
        raise NotImplementedError

    # -- licenses and keys

    def take_number(self) -> int:
        """A license number that no license had before, 1..2**32-1."""
        raise NotImplementedError

    def put_license(self, record: LicenseRecord) -> None:
        """Create or replace the record of a license."""
        raise NotImplementedError

    def put_key(self, key: SealedKey) -> None:
        """Create or replace a sealed private key."""
        raise NotImplementedError

    def delete_key(self, key_id: str) -> bool:
        """Delete a sealed private key; False if there is none."""
        raise NotImplementedError

    # -- audit, requests, settings

    def append_audit(self, draft: AuditDraft) -> AuditRecord:
        """Add an entry at the end of the chain."""
        raise NotImplementedError

    def put_audit_head(self, head: AuditHead) -> None:
        """Keep a seal over the log's end; made over audit_head_payload(sequence, hash)."""
        raise NotImplementedError

    def put_request_result(self, result: RequestResult) -> None:
        """Keep a request's answer."""
        raise NotImplementedError

    def put_setting(self, name: str, value: bytes) -> None:
        """Set a setting."""
        raise NotImplementedError

    def delete_setting(self, name: str) -> bool:
        """Delete a setting; False if there is none."""
        raise NotImplementedError
