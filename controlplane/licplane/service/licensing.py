# SPDX-License-Identifier: Apache-2.0
"""Issuing and ending licenses as changes of the catalog."""

from __future__ import annotations

from typing import Final

from licplane.issuer import issuing
from licplane.issuer.issuing import Terms
from licplane.issuer.keyring import Keyring
from licplane.issuer.registry import Issue, OpenRegistry, Record, Statement
from licplane.service.impact import Cut, everything
from licplane.service.license_documents import license_scope
from licplane.service.publishing import publish_license, publish_statement
from licplane.service.reports import Use
from licplane.service.work import Work
from licplane.store.host_model import Host
from lictoken.claims import License
from lictoken.keys import SigningKey
from lictoken.revocation import RevocationAction
from lictoken.validity import Standing

DEFAULT_REASON: Final = {
    RevocationAction.REVOKE: "ended by the issuer",
    RevocationAction.SUSPEND: "suspended by the issuer",
    RevocationAction.REINSTATE: "reinstated by the issuer",
}


def issue(
    work: Work,
    terms: Terms,
    *,
    kid: str | None = None,
    issuer: str | None = None,
    after_revocation: bool = False,
) -> Issue:
    """Sign a license and put it into the catalog. Raises TokenError for terms nobody accepts."""
    registry = OpenRegistry(work.transaction)
    known = registry.find(terms.jti)
    if kid is None and issuer is None and known is not None:
        issuer = known.latest.issuer
    key = _key(work, kid, issuer)
    issued = issuing.issue(registry, key, terms, work.now_s, after_revocation=after_revocation)
    publish_license(work.transaction, issued)
    _audit_issue(work, issued)
    return issued


def renew(
    work: Work, jti: str, *, expires_at_s: int, kid: str | None = None, issuer: str | None = None
) -> Issue:
    """Issue a license again with a later end."""
    registry = OpenRegistry(work.transaction)
    key = _key(work, kid, issuer or registry.get(jti).latest.issuer)
    issued = issuing.renew(registry, key, jti, expires_at_s=expires_at_s, now_s=work.now_s)
    publish_license(work.transaction, issued)
    _audit_issue(work, issued)
    return issued


def state(
    work: Work,
    jti: str,
    action: RevocationAction,
    *,
    kid: str | None = None,
    issuer: str | None = None,
) -> Statement:
    """Sign a statement about a license and put it into the catalog."""
    registry = OpenRegistry(work.transaction)
    record = registry.get(jti)
    key = _key(work, kid, issuer or record.latest.issuer)
    reason = work.change.reason or DEFAULT_REASON[action]
    statement = issuing.state(registry, key, jti, action, reason=reason, now_s=work.now_s)
    publish_license(
        work.transaction, record.issues[-1]
    )  # one that was taken over from files is not there yet
    publish_statement(work.transaction, record.latest, statement)
    work.audit(
        f"license.{action.value}",
        jti,
        {"generation": statement.revocation.generation, "statement": statement.revocation.jti},
    )
    return statement


def etag_of(record: Record) -> str:
    """Changes with every issue and statement of a license."""
    return f"g{record.generation}"


def ended(jti: str) -> Cut:
    """What ends with a license."""
    return Cut(jti, everything)


def narrowed(old: License, new: License) -> Cut:
    """What ends where a license is issued again with other terms."""
    kept = {grant.resource for grant in new.entitlements}
    scope = license_scope(new)
    conditions = {grant.resource: grant.conditions for grant in new.entitlements}
    before = {grant.resource: grant.conditions for grant in old.entitlements}

    def ends(use: Use, host: Host) -> bool:
        return (
            use.resource not in kept
            or not scope.visible_in(host.view)
            or conditions[use.resource] != before.get(use.resource)
            or (new.selectors != old.selectors and bool(new.selectors))
            or (new.hosts != old.hosts and bool(new.hosts))
        )

    return Cut(old.jti, lambda _reader: ends)


def is_over(record: Record, now_s: int) -> bool:
    """Whether a license ended by itself or for good, so that nothing need be said about it."""
    return record.standing is Standing.REVOKED or now_s >= record.latest.expires_at_s


def _key(work: Work, kid: str | None, issuer: str | None) -> SigningKey:
    return Keyring(work.transaction).signing_key(work.keys, kid=kid, issuer=issuer)


def _audit_issue(work: Work, issued: Issue) -> None:
    license = issued.license
    work.audit(
        "license.issue",
        license.jti,
        {
            "number": license.number,
            "generation": license.generation,
            "expires_at_s": license.expires_at_s,
            "kid": license.kid,
        },
    )
