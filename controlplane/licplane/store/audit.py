# SPDX-License-Identifier: Apache-2.0
"""The audit log's chain: what is hashed, what is sealed, and how a log is checked.

Entry n's hash is SHA-256 over "licagent-audit-v1", a NUL and the entry's canonical form, which
holds the hash of entry n-1. A head is the last entry's sequence and hash, signed. So an edit, a
deletion or another order breaks the chain, and a log cut at its end is shorter than its head.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

from licplane.store.model import AuditDraft, AuditHead, AuditRecord
from lictoken.sealed import Seal

FIRST_HASH: Final = bytes(32)
"""Stands for the entry before the first."""


def chained(draft: AuditDraft, sequence: int, previous_hash: bytes) -> AuditRecord:
    """The entry that `draft` becomes at this place."""
    raise NotImplementedError


def entry_hash(record: AuditRecord) -> bytes:
    """SHA-256 over the canonical form of an entry (its own `hash` is not part of it)."""
    raise NotImplementedError


def audit_head_payload(sequence: int, entry_hash: bytes) -> bytes:
    """What is sealed with the purpose AUDIT_HEAD."""
    raise NotImplementedError


def verify_log(
    records: Iterable[AuditRecord],
    heads: Iterable[AuditHead],
    unseal: Callable[[Seal], bytes],
    *,
    exported: AuditHead | None = None,
) -> tuple[str, ...]:
    """What is wrong with a log, in words; empty when it is whole.

    `records` and `heads` come by sequence; `unseal` verifies a seal of the purpose AUDIT_HEAD and
    gives its payload or raises TokenError; `exported` is a head that was kept elsewhere.
    """
    raise NotImplementedError
