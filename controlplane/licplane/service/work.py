# SPDX-License-Identifier: Apache-2.0
"""One change: a transaction with its audit entry, signed heads and remembered answer."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar

from licplane.errors import Conflict, ExitCode, PlaneError
from licplane.issuer.keyring import TRUST_NAME, TRUST_SETTING, Keyring, Keys, put_trust
from licplane.service.core import Core, control_key
from licplane.service.publishing import publish_register
from licplane.service.requests import Change
from licplane.service.texts import check_words
from licplane.service.values import Actor, Kind
from licplane.store.audit import audit_head_payload
from licplane.store.catalog_model import Head
from licplane.store.database import Transaction
from licplane.store.digest import catalog_head_payload, parse_catalog_head
from licplane.store.record_model import AuditDraft, AuditHead, AuditRecord, RequestResult
from lictoken.errors import Refusal, TokenError
from lictoken.keys import SigningKey
from lictoken.sealed import SealPurpose, unseal
from lictoken.trust import TrustStore

Result = TypeVar("Result")

REQUEST_LIFE_MS: Final = 7 * 86_400_000
"""How long answers are remembered."""
REQUEST_ID_MAX: Final = 64
REASON_MAX: Final = 512


class Work:
    """What the body of a change works on."""

    def __init__(self, core: Core, transaction: Transaction, actor: Actor, change: Change) -> None:
        self.core = core
        self.transaction = transaction
        self.actor = actor
        self.change = change
        self.now_ms = core.now_ms()
        self.keys: Keys = core.keys
        self.before = transaction.head()
        self._last: AuditRecord | None = None

    @property
    def now_s(self) -> int:
        """Seconds since 1970."""
        return self.now_ms // 1000

    def audit(self, action: str, target: str, detail: Mapping[str, object]) -> None:
        """Write down what was done."""
        self._last = self.transaction.append_audit(
            AuditDraft(
                at_unix_ms=self.now_ms,
                actor=self.actor.name,
                role=self.actor.role.value,
                action=action,
                target=target,
                reason=self.change.reason,
                request_id=self.change.request_id,
                detail=canonical(detail),
            )
        )

    def revision(self) -> int:
        """The catalog's revision after this change; 0 when it did not touch the catalog."""
        now = self.transaction.head().revision
        return now if now != self.before.revision else 0

    def finish(self) -> None:
        """Sign what changed."""
        after = self.transaction.head()
        moved = after.revision != self.before.revision
        if not moved and self._last is None:
            return
        sealer = self.core.sealer_of(self._control_key())
        if moved:
            self._check_base()
            payload = catalog_head_payload(after.revision, self.transaction.root_after())
            self.transaction.seal_catalog(sealer.seal(SealPurpose.CATALOG_HEAD, payload))
        if self._last is not None:
            last = self._last
            payload = audit_head_payload(last.sequence, last.hash)
            head = AuditHead(last.sequence, last.hash, sealer.seal(SealPurpose.AUDIT_HEAD, payload))
            self.transaction.put_audit_head(head)

    def _control_key(self) -> SigningKey:
        try:
            return control_key(self.keys, Keyring(self.transaction).trust())
        except PlaneError as error:
            # The last act of the last key is to sign its own retirement.
            if error.code is not ExitCode.NOT_FOUND or self.before.seal is None:
                raise
            found = self.keys.signing.get(self.before.seal.kid)
            if found is None:
                raise
            return found

    def _check_base(self) -> None:
        """Never sign on top of rows that were not signed."""
        problem = head_problem(self.core, self.before, self.transaction.root_before())
        if problem:
            raise PlaneError(
                ExitCode.INTERNAL,
                f"The catalog was altered outside licplane: {problem}",
                "Restore the database from a backup; nothing was changed",
            )


def head_problem(
    core: Core, head: Head, root: bytes, *, published: TrustStore | None = None
) -> str:
    """Why `head` does not vouch for a catalog of this root; "" when it does."""
    if head.seal is None:
        return "" if head.revision == 0 else f"revision {head.revision} was never signed"
    try:
        payload = unseal(SealPurpose.CATALOG_HEAD, head.seal, core.own_trust(published))
    except TokenError as error:
        if error.refusal is Refusal.UNKNOWN_KEY and core.look_for_key(head.seal.kid):
            return head_problem(core, head, root, published=published)
        return f"its head is not signed by a key of this control plane ({error.detail})"
    revision, signed = parse_catalog_head(payload)
    if revision != head.revision:
        return f"it says revision {head.revision}, and {revision} was signed"
    if signed != root:
        return f"its rows are not those signed at revision {revision}"
    return ""


def perform(
    core: Core,
    actor: Actor,
    change: Change,
    request: Mapping[str, object],
    body: Callable[[Work], Result],
    *,
    encode: Callable[[Result], Mapping[str, object]] | None,
    decode: Callable[[Mapping[str, Any]], Result],
) -> Result:
    """Run `body` in one transaction. The same request id again answers the first result.

    `request` is what was asked, for telling an id that is used for two things.
    """
    _check_change(change)
    core.keys  # noqa: B018 - refuse before anything is locked
    digest = hashlib.sha256(canonical({**request, "etag": change.etag}).encode()).digest()
    with core.store.transaction(dry_run=change.dry_run) as transaction:
        if change.request_id and encode is not None:
            known = transaction.request_result(actor.name, change.request_id)
            if known is not None:
                if known.request_digest != digest:
                    raise Conflict(
                        f"The request id {change.request_id} was used for something else",
                        "Choose a new one for each thing that is asked",
                    )
                return decode(json.loads(known.result))
        work = Work(core, transaction, actor, change)
        if work.before.revision == 0:
            adopt(work)
        result = body(work)
        work.finish()
        if change.request_id and encode is not None:
            transaction.put_request_result(
                RequestResult(
                    actor.name,
                    change.request_id,
                    digest,
                    canonical(encode(result)).encode(),
                    work.now_ms,
                )
            )
    if not change.dry_run and work.keys is not core.keys:
        core.take_keys(work.keys)
    return result


def run_once(core: Core, actor: Actor, change: Change, body: Callable[[Work], Result]) -> Result:
    """A change whose answer cannot be asked for again, with or without a request id."""
    result: list[Result] = []

    def keep(work: Work) -> None:
        result.append(body(work))

    # The id is for the audit log alone: an answer that holds secrets is not kept.
    perform(core, actor, change, {}, keep, encode=None, decode=lambda _: None)
    return result[0]


def perform_once(
    core: Core, actor: Actor, body: Callable[[Work], Result], reason: str = ""
) -> Result:
    """As `run_once`, for what nobody asked for by request."""
    return run_once(core, actor, Change(reason=reason), body)


def adopt(work: Work) -> None:
    """Bring what was taken over from a state folder's files into the catalog."""
    transaction = work.transaction
    waiting = transaction.setting(TRUST_SETTING)
    if waiting is None or transaction.object(Kind.TRUST, TRUST_NAME) is not None:
        return
    put_trust(transaction, TrustStore.from_bytes(waiting))
    count = publish_register(transaction)
    work.audit("catalog.adopt", "catalog", {"licenses": count})


def canonical(value: Mapping[str, object]) -> str:
    """JSON with sorted keys and no spaces."""
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )


def _check_change(change: Change) -> None:
    if change.request_id:
        check_words(change.request_id, "The request id", REQUEST_ID_MAX)
    if change.reason:
        check_words(change.reason, "The reason", REASON_MAX)
    if change.etag:
        check_words(change.etag, "The etag", 128)
