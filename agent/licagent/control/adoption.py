# SPDX-License-Identifier: Apache-2.0
"""Becoming the host that a control plane's answer says, whichever way the answer came."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from licagent.control.hostkey import check_certificate, fingerprint, new_key
from licagent.control.join import EnrolmentFailed
from licagent.domain.catalog import SignedBytes
from licagent.domain.hostidentity import Identity

if TYPE_CHECKING:
    from licagent.control.interface import Assignment, CatalogStorage, IdentityStorage


class EnrolmentMode(StrEnum):
    """What is to become of an identity that the host has."""

    KEEP = "keep"  # use its key; the same host again changes nothing
    AGAIN = "again"  # the same, and it must stay the same host (the machine to keep, after a clone)
    NEW = "new"  # a new key and a new host_id (the clone; another control plane)


@dataclass(frozen=True, slots=True)
class EnrolmentResult:
    """What an enrolment came to."""

    host_id: str
    changed: bool  # False: the host was enrolled already, and is the same one
    labels: dict[str, str]
    not_after_unix_ms: int  # end of the certificate
    control_address: str


@dataclass(frozen=True, slots=True)
class Answer:
    """EnrollResponse, or the same from a bundle; not verified."""

    host_id: str
    certificate_chain: tuple[bytes, ...]
    ca_certificates: tuple[bytes, ...]
    trust: bytes
    assignment: SignedBytes
    counter: bytes
    changed: bool
    not_after_unix_ms: int
    control_address: str
    public_address: str


def key_for(
    identities: IdentityStorage,
    old: Identity | None,
    roots: tuple[bytes, ...],
    mode: EnrolmentMode,
) -> bytes:
    """The key to enrol with; kept durably. Raises EnrolmentFailed (code exists)."""
    if mode is EnrolmentMode.AGAIN and old is None:
        raise EnrolmentFailed(
            "this host has no identity to keep: run `licagent enroll JOIN`", code="exists"
        )
    if mode is not EnrolmentMode.NEW and old is not None:
        is_other = roots and not set(roots) & set(old.ca_certificates)
        if is_other and mode is not EnrolmentMode.AGAIN:
            raise EnrolmentFailed(
                f"this host is {old.host_id} of another control plane ({old.control_address}). "
                "If it has changed its root while this host was away: `licagent enroll --again "
                "JOIN`. To leave it for good: `licagent enroll --new JOIN`",
                code="exists",
            )
        return old.key_pem
    pending = identities.pending_key()
    if pending is not None and (old is None or pending != old.key_pem):
        return pending
    key = new_key()
    identities.keep_pending_key(key)
    return key


def adopt(
    answer: Answer,
    key_pem: bytes,
    identities: IdentityStorage,
    catalogs: CatalogStorage,
    *,
    mode: EnrolmentMode,
    keep: Callable[[Identity], None] | None = None,
) -> EnrolmentResult:
    """Verify an answer and become what it says. Blocking. Raises EnrolmentFailed.

    `keep` puts down what came along with it (a catalog), after the old one was cleared and
    before the identity counts.
    """
    from licagent.domain.catalog import Refused

    old = identities.load()
    assignment = verified_assignment(answer, key_pem)
    _check_mode(answer.host_id, old, mode)
    if mode is EnrolmentMode.AGAIN and old is not None:
        _check_issuer(answer, old)
    is_same = old is not None and old.host_id == answer.host_id
    identity = Identity(
        key_pem=key_pem,
        host_id=answer.host_id,
        certificate_chain=answer.certificate_chain,
        ca_certificates=answer.ca_certificates,
        trust=answer.trust,
        assignment=answer.assignment,
        counter=answer.counter,
        control_address=answer.control_address,
        public_address=answer.public_address,
        not_after_unix_ms=answer.not_after_unix_ms,
    )
    try:
        # In this order a crash leaves an identity without a catalog, which comes by itself; the
        # other way round it would leave one with the catalog of another host.
        if not is_same:
            catalogs.clear()
        if keep is not None:
            keep(identity)
        identities.save(identity)
        identities.drop_pending_key()
    except Refused as error:
        raise EnrolmentFailed(error.detail, code="disk") from error
    return EnrolmentResult(
        answer.host_id,
        answer.changed or not is_same,
        dict(assignment.labels),
        answer.not_after_unix_ms,
        answer.control_address,
    )


def verified_assignment(answer: Answer, key_pem: bytes) -> Assignment:
    """The assignment of an answer that fits together. Raises EnrolmentFailed (code answer)."""
    from licagent.control.trust import opened, trust_of
    from licagent.control.wire import assignment as parse_assignment
    from licagent.domain.catalog import Refused
    from lictoken.sealed import SealPurpose

    check_certificate(answer.certificate_chain, answer.ca_certificates, key_pem, answer.host_id)
    try:
        trust = trust_of(answer.trust)
        assignment = parse_assignment(opened(SealPurpose.ASSIGNMENT, answer.assignment, trust))
    except Refused as error:
        raise EnrolmentFailed(
            f"the control plane's answer is refused: {error.detail}. Nothing was changed",
            code="answer",
        ) from error
    if assignment.host_id != answer.host_id:
        raise EnrolmentFailed(
            f"the control plane's answer is for the host {answer.host_id}, its assignment for "
            f"{assignment.host_id}. Nothing was changed",
            code="answer",
        )
    return assignment


def _check_mode(host_id: str, old: Identity | None, mode: EnrolmentMode) -> None:
    if old is None:
        return
    if mode is EnrolmentMode.AGAIN and host_id != old.host_id:
        raise EnrolmentFailed(
            f"this join token makes another host ({host_id}), and this one is to stay "
            f"{old.host_id}: use the token that `licplane host split {old.host_id}` printed, or "
            "`licagent enroll --new JOIN`",
            code="other-host",
        )
    if mode is EnrolmentMode.NEW and host_id == old.host_id:
        raise EnrolmentFailed(
            f"this join token gives the old identity {host_id} back: use one from `licplane token "
            "create`, or `licagent enroll --again JOIN`",
            code="other-host",
        )


def _check_issuer(answer: Answer, old: Identity) -> None:
    """A root that this host does not know is taken on the word of an issuer that it does know."""
    from licagent.control.trust import opened, trust_of
    from licagent.domain.catalog import Refused
    from lictoken.sealed import SealPurpose

    if set(answer.ca_certificates) & set(old.ca_certificates):
        return
    try:
        opened(SealPurpose.ASSIGNMENT, answer.assignment, trust_of(old.trust))
    except Refused as error:
        raise EnrolmentFailed(
            f"the answer is of another control plane than that of {old.host_id}: {error.detail}. "
            "Nothing was changed. To leave the old one for good: `licagent enroll --new JOIN`",
            code="exists",
        ) from error


def lease_nonce(key_pem: bytes) -> bytes:
    """What an offline lease must repeat: it follows from the key, so the file tells it."""
    return hashlib.sha256(b"licagent-offline-lease-v1\0" + fingerprint(key_pem)).digest()[:16]
