# SPDX-License-Identifier: Apache-2.0
"""The audit log's chain: what is hashed, what is sealed, and how a log is checked.

Entry n's hash is SHA-256 over "licagent-audit-v1", a NUL and the entry's canonical form, which
holds the hash of entry n-1. A head is the last entry's sequence and hash, signed. So an edit, a
deletion or another order breaks the chain, a log cut at its end is shorter than its head, and
what somebody adds who has no key comes after the last head.
What a chain cannot show by itself: a log that was rolled back together with its heads. That
takes a head kept elsewhere.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Final

from licplane.errors import PlaneError
from licplane.store.record_model import AuditDraft, AuditHead, AuditRecord
from licplane.store.session import canonical, inconsistent
from lictoken.errors import TokenError
from lictoken.sealed import Seal

FIRST_HASH: Final = bytes(32)
"""Stands for the entry before the first."""
PROBLEMS_MAX: Final = 100
"""A log that was replaced as a whole would name each entry."""


def chained(draft: AuditDraft, sequence: int, previous_hash: bytes) -> AuditRecord:
    """The entry that `draft` becomes at this place."""
    record = AuditRecord(
        sequence=sequence,
        at_unix_ms=draft.at_unix_ms,
        actor=draft.actor,
        role=draft.role,
        action=draft.action,
        target=draft.target,
        reason=draft.reason,
        request_id=draft.request_id,
        detail=draft.detail,
        previous_hash=previous_hash,
        hash=b"",
    )
    return replace(record, hash=entry_hash(record))


def entry_hash(record: AuditRecord) -> bytes:
    """SHA-256 over the canonical form of an entry (its own `hash` is not part of it)."""
    fields = [
        record.sequence,
        record.at_unix_ms,
        record.actor,
        record.role,
        record.action,
        record.target,
        record.reason,
        record.request_id,
        record.detail,
        record.previous_hash.hex(),
    ]
    text = canonical(fields).encode(errors="surrogatepass")
    return hashlib.sha256(b"licagent-audit-v1\0" + text).digest()


def audit_head_payload(sequence: int, entry_hash: bytes) -> bytes:
    """What is sealed with the purpose AUDIT_HEAD: canonical JSON of both."""
    return canonical({"hash": entry_hash.hex(), "sequence": sequence}).encode()


def parse_audit_head(payload: bytes) -> tuple[int, bytes]:
    """(sequence, hash) of a payload whose seal was verified. Raises PlaneError INTERNAL."""
    try:
        document = json.loads(payload)
        sequence, hash_ = document["sequence"], bytes.fromhex(document["hash"])
        if not isinstance(sequence, int):
            raise TypeError("the sequence is no number")
    except (ValueError, KeyError, TypeError) as error:
        raise inconsistent(f"a sealed head of the audit log is unreadable ({error})") from error
    return sequence, hash_


def verify_log(
    records: Iterable[AuditRecord],
    heads: Iterable[AuditHead],
    unseal: Callable[[Seal], bytes],
    *,
    exported: AuditHead | None = None,
) -> tuple[str, ...]:
    """What is wrong with a log, in words; empty when it is whole.

    `records` and `heads` come by sequence; `unseal` verifies a seal of the purpose AUDIT_HEAD and
    gives its payload or raises TokenError; `exported` is a head that was kept elsewhere. At most
    100 problems are named.
    """
    check = _Check()
    sealed: dict[int, bytes] = {}
    for head in heads:
        check.head(head, unseal, sealed, "the head")
    if exported is not None:
        check.head(exported, unseal, sealed, "the exported head")
    for record in records:
        check.entry(record, sealed)
    check.end(sealed)
    return tuple(check.problems)


class _Check:
    def __init__(self) -> None:
        self.problems: list[str] = []
        self._sequence = 0
        self._hash = FIRST_HASH
        self._sealed = 0  # the last entry that a head stands for
        self._hidden = False

    def head(
        self,
        head: AuditHead,
        unseal: Callable[[Seal], bytes],
        sealed: dict[int, bytes],
        name: str,
    ) -> None:
        """Take a head in, if its seal holds and says what its row says."""
        try:
            sequence, hash_ = parse_audit_head(unseal(head.seal))
        except (TokenError, PlaneError) as error:
            detail = error.detail if isinstance(error, TokenError) else error.message
            self._say(f"{name} at entry {head.sequence} is not signed as it should be: {detail}")
            return
        if (sequence, hash_) != (head.sequence, head.hash):
            self._say(f"{name} at entry {head.sequence} is signed for entry {sequence}, or another")
        if sealed.setdefault(sequence, hash_) != hash_:
            self._say(f"two signed heads at entry {sequence} differ: the log was rewritten")

    def entry(self, record: AuditRecord, sealed: dict[int, bytes]) -> None:
        """Check an entry against the one before it and against a head over it."""
        wanted = self._sequence + 1
        if record.sequence > wanted:
            missing = (
                f"entry {wanted} is"
                if record.sequence == wanted + 1
                else f"entries {wanted} to {record.sequence - 1} are"
            )
            self._say(f"{missing} missing")
        elif record.sequence < wanted:
            self._say(f"entry {record.sequence} comes after entry {self._sequence}")
        if record.previous_hash != self._hash:
            self._say(f"entry {record.sequence} does not follow the one before it")
        if entry_hash(record) != record.hash:
            self._say(f"entry {record.sequence} was changed")
        signed = sealed.pop(record.sequence, None)
        if signed is not None:
            self._sealed = record.sequence
            if signed != record.hash:
                self._say(f"entry {record.sequence} is not the one that was signed")
        self._sequence, self._hash = record.sequence, record.hash

    def end(self, sealed: dict[int, bytes]) -> None:
        """What heads are left: they stand for entries that are gone. And entries without one."""
        beyond = [sequence for sequence in sealed if sequence > self._sequence]
        if beyond:
            self._say(
                f"the log ends with entry {self._sequence}, but a signed head says that it went"
                f" to entry {max(beyond)}"
            )
        elif self._sealed < self._sequence:
            self._say(f"the entries after entry {self._sealed} are not signed")

    def _say(self, problem: str) -> None:
        if len(self.problems) < PROBLEMS_MAX:
            self.problems.append(problem)
        elif not self._hidden:
            self._hidden = True
            self.problems.append("and more")
