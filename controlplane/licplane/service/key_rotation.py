# SPDX-License-Identifier: Apache-2.0
"""Retiring an issuer's key without an outage: who must know the next one, what it must sign."""

from __future__ import annotations

from typing import Final

from licplane.errors import ExitCode, PlaneError
from licplane.issuer import issuing
from licplane.issuer.keyring import TRUST_NAME, Keyring
from licplane.issuer.registry import OpenRegistry, Record, Registry
from licplane.service import licensing
from licplane.service.publishing import publish_license, publish_statement
from licplane.service.values import SERVED, Kind
from licplane.service.work import Work
from licplane.store.host_model import Host
from lictoken.keys import SigningKey
from lictoken.revocation import RevocationAction
from lictoken.trust import KeyStatus, TrustedKey
from lictoken.validity import Standing

_HOSTS_AT_ONCE: Final = 500
_NAMED: Final = 10


def check_others_known(work: Work, key: TrustedKey) -> None:
    """Refuse to retire the key that hosts believe while one of them may know no other.

    Raises PlaneError REFUSED. The newest keys came with the catalog's object of trust: a host that
    confirmed its revision has them.
    """
    trust = Keyring(work.transaction).trust()
    others = [
        one
        for one in trust
        if one.status is KeyStatus.ACTIVE and one.kid != key.kid and one.kid in work.keys.counted
    ]
    if not others:
        return  # the last one: nobody goes on from here
    found = work.transaction.object(Kind.TRUST, TRUST_NAME)
    revision = found.revision if found is not None else 0
    behind = [host for host in _served(work) if _acked(work, host) < revision]
    if behind:
        names = ", ".join(host.hostname or host.host_id for host in behind[:_NAMED])
        more = f" and {len(behind) - _NAMED} more" if len(behind) > _NAMED else ""
        raise PlaneError(
            ExitCode.REFUSED,
            f"{names}{more} do not hold revision {revision}, which brought the other keys",
            "Wait until `licplane host list` shows no lag; with --anyway those hosts must enrol"
            " again",
        )


def resign_licenses(work: Work, key: TrustedKey) -> int:
    """Sign every license that counts and was signed by `key` with the issuer's newest other key.

    Terms and end stay, so nothing that is open is cut. How many. Raises PlaneError NOT_FOUND where
    the issuer has no other key.
    """
    registry = OpenRegistry(work.transaction)
    found = [
        record
        for record in list(Registry(work.transaction))
        if record.latest.kid == key.kid and not licensing.is_over(record, work.now_s)
    ]
    if not found:
        return 0
    signer = _other(work, key)
    for record in found:
        _sign_again(work, registry, record, signer)
    return len(found)


def _sign_again(work: Work, registry: OpenRegistry, record: Record, signer: SigningKey) -> None:
    suspended = record.standing is Standing.SUSPENDED
    if suspended:  # a new generation lifts it, so it is said again, of that generation
        _state(work, registry, record, signer, RevocationAction.REINSTATE)
    old = record.latest
    issued = issuing.issue(
        registry,
        signer,
        issuing.terms_of(old, expires_at_s=old.expires_at_s),
        work.now_s,
    )
    publish_license(work.transaction, issued)
    work.audit(
        "license.issue",
        record.jti,
        {
            "number": issued.license.number,
            "generation": issued.license.generation,
            "expires_at_s": issued.license.expires_at_s,
            "kid": signer.kid,
        },
    )
    if suspended:
        _state(work, registry, registry.get(record.jti), signer, RevocationAction.SUSPEND)


def _state(
    work: Work,
    registry: OpenRegistry,
    record: Record,
    signer: SigningKey,
    action: RevocationAction,
) -> None:
    reason = record.statements[-1].revocation.reason if record.statements else ""
    statement = issuing.state(
        registry,
        signer,
        record.jti,
        action,
        reason=reason or "signed again under a new key",
        now_s=work.now_s,
    )
    publish_statement(work.transaction, record.latest, statement)
    work.audit(
        f"license.{action.value}",
        record.jti,
        {
            "generation": statement.revocation.generation,
            "statement": statement.revocation.jti,
            "kid": signer.kid,
        },
    )


def _other(work: Work, key: TrustedKey) -> SigningKey:
    """The issuer's newest active key but for this one."""
    keyring = Keyring(work.transaction)
    others = [
        (one.created_at or "", at, one.kid)
        for at, one in enumerate(keyring.trust())
        if one.status is KeyStatus.ACTIVE and one.issuer == key.issuer and one.kid != key.kid
    ]
    if not others:
        raise PlaneError(
            ExitCode.NOT_FOUND,
            f"{key.issuer} has no other key to sign the licenses with",
            f"Make one first: `licplane keys create --issuer {key.issuer}`",
        )
    return keyring.signing_key(work.keys, kid=max(others)[2])


def _served(work: Work) -> list[Host]:
    found: list[Host] = []
    after = ""
    while page := work.transaction.hosts(after=after, limit=_HOSTS_AT_ONCE):
        found += [host for host in page if host.status in SERVED]
        after = page[-1].host_id
    return found


def _acked(work: Work, host: Host) -> int:
    seen = work.transaction.presence([host.host_id]).get(host.host_id)
    return seen.acked_revision if seen is not None else 0
