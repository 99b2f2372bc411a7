# SPDX-License-Identifier: Apache-2.0
"""Issues, renews, suspends, reinstates and revokes licenses."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, replace

from licplane.errors import ExitCode, PlaneError
from licplane.issuer.registry import Issue, OpenRegistry, Record, Statement
from lictoken.claims import AUDIENCE, U32_MAX, Entitlement, License, LicenseScope
from lictoken.keys import SigningKey
from lictoken.revocation import Revocation, RevocationAction, sign_revocation
from lictoken.sign import sign_license
from lictoken.validity import Standing


@dataclass(frozen=True, slots=True)
class Terms:
    """What an issuer decides about a license; the rest is assigned."""

    jti: str
    subject: str
    not_before_s: int
    expires_at_s: int
    scope: LicenseScope
    entitlements: tuple[Entitlement, ...]
    selectors: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()
    grace_s: int = 0
    failure_mode: str = "closed"


def issue(
    registry: OpenRegistry,
    key: SigningKey,
    terms: Terms,
    now_s: int,
    *,
    after_revocation: bool = False,
) -> Issue:
    """Sign a license by `terms`; issued again, the same id gets the next generation.

    Raises TokenError for terms that no host would accept, PlaneError REFUSED for an id that
    is suspended, revoked (unless `after_revocation`) or another issuer's.
    """
    draft = _license(terms, key.issuer, now_s, number=1, generation=1)
    sign_license(draft, key)  # refuses bad terms before a number is spent on them
    record = registry.find(terms.jti)
    if record is None:
        record = Record(terms.jti, registry.take_number(), 0)
    else:
        _check_again(record, key, after_revocation=after_revocation)
    generation = _next_generation(record)
    license = replace(draft, number=record.number, generation=generation, kid=key.kid)
    issued = Issue(license, sign_license(license, key))
    registry.put(replace(record, generation=generation, issues=(*record.issues, issued)))
    return issued


def renew(
    registry: OpenRegistry, key: SigningKey, jti: str, *, expires_at_s: int, now_s: int
) -> Issue:
    """Issue the license again with a later end and all else as it was."""
    old = registry.get(jti).latest
    if expires_at_s <= old.expires_at_s:
        raise PlaneError(
            ExitCode.REFUSED,
            f"{jti} would not last longer than it does",
            "Choose a later --expires; to end it, use `licplane license revoke`",
        )
    return issue(registry, key, terms_of(old, expires_at_s=expires_at_s), now_s)


def terms_of(license: License, *, expires_at_s: int) -> Terms:
    """The terms of a license, with another end."""
    return Terms(
        jti=license.jti,
        subject=license.subject,
        not_before_s=license.not_before_s,
        expires_at_s=expires_at_s,
        scope=license.scope,
        entitlements=license.entitlements,
        selectors=license.selectors,
        hosts=license.hosts,
        grace_s=license.grace_s,
        failure_mode=license.failure_mode,
    )


def state(
    registry: OpenRegistry,
    key: SigningKey,
    jti: str,
    action: RevocationAction,
    *,
    reason: str,
    now_s: int,
) -> Statement:
    """Sign a statement about a license. It concerns every generation issued so far."""
    record = registry.get(jti)
    _check_issuer(record, key)
    now = record.standing
    if now is Standing.REVOKED:
        raise PlaneError(
            ExitCode.REFUSED,
            f"{jti} is revoked, which is final",
            "Print the statement again with `licplane license show --revocation`, or issue"
            " the license anew with --after-revocation",
        )
    if action is RevocationAction.REINSTATE and now is not Standing.SUSPENDED:
        raise PlaneError(ExitCode.REFUSED, f"{jti} is not suspended", "There is nothing to do")
    generation = _next_generation(record)
    statement = Revocation(
        jti=f"rev-{secrets.token_hex(12)}",
        issuer=key.issuer,
        audience=AUDIENCE,
        issued_at_s=now_s,
        license=jti,
        action=action,
        generation=generation,
        reason=reason,
        kid=key.kid,
    )
    signed = Statement(statement, sign_revocation(statement, key))
    registry.put(replace(record, generation=generation, statements=(*record.statements, signed)))
    return signed


def _license(terms: Terms, issuer: str, now_s: int, *, number: int, generation: int) -> License:
    return License(
        jti=terms.jti,
        issuer=issuer,
        subject=terms.subject,
        audience=AUDIENCE,
        number=number,
        generation=generation,
        issued_at_s=now_s,
        not_before_s=terms.not_before_s,
        expires_at_s=terms.expires_at_s,
        scope=terms.scope,
        entitlements=terms.entitlements,
        selectors=terms.selectors,
        hosts=terms.hosts,
        grace_s=terms.grace_s,
        failure_mode=terms.failure_mode,
    )


def _check_again(record: Record, key: SigningKey, *, after_revocation: bool) -> None:
    _check_issuer(record, key)
    if record.standing is Standing.SUSPENDED:
        raise PlaneError(
            ExitCode.REFUSED,
            f"{record.jti} is suspended, and a new generation would lift that",
            "Reinstate it first with `licplane license reinstate`",
        )
    if record.standing is Standing.REVOKED and not after_revocation:
        raise PlaneError(
            ExitCode.REFUSED,
            f"{record.jti} is revoked, and a new generation would lift that",
            "Choose another --id, or confirm with --after-revocation",
        )


def _check_issuer(record: Record, key: SigningKey) -> None:
    if record.latest.issuer != key.issuer:
        raise PlaneError(
            ExitCode.REFUSED,
            f"{record.jti} was issued by {record.latest.issuer}, not by {key.issuer}",
            "Name a key of that issuer with --key",
        )


def _next_generation(record: Record) -> int:
    if record.generation >= U32_MAX:
        raise PlaneError(
            ExitCode.REFUSED, f"{record.jti} has no generation left", "Choose another --id"
        )
    return record.generation + 1
