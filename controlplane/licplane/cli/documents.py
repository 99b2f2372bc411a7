# SPDX-License-Identifier: Apache-2.0
"""Licenses and statements as JSON objects and as lines for people."""

from __future__ import annotations

from licplane.issuer.registry import Issue, Record, Statement
from lictoken.claims import Entitlement, License
from lictoken.payload import license_to_claims
from lictoken.validity import Standing, rfc3339


def state_of(record: Record, now_s: int) -> str:
    """revoked, suspended, not-yet-valid, expired or active."""
    if record.standing is not Standing.ACTIVE:
        return record.standing.value
    if now_s < record.latest.not_before_s:
        return "not-yet-valid"
    return "expired" if now_s >= record.latest.expires_at_s else "active"


def issue_document(issue: Issue) -> dict[str, object]:
    """One generation of a license."""
    license = issue.license
    return {
        "id": license.jti,
        "number": license.number,
        "generation": license.generation,
        "issuer": license.issuer,
        "kid": license.kid,
        "subject": license.subject,
        "issued_at": rfc3339(license.issued_at_s),
        "not_before": rfc3339(license.not_before_s),
        "expires_at": rfc3339(license.expires_at_s),
        "claims": license_to_claims(license),
    }


def statement_document(statement: Statement) -> dict[str, object]:
    """One statement about a license."""
    revocation = statement.revocation
    return {
        "id": revocation.jti,
        "license": revocation.license,
        "action": revocation.action.value,
        "generation": revocation.generation,
        "reason": revocation.reason,
        "issued_at": rfc3339(revocation.issued_at_s),
        "issuer": revocation.issuer,
        "kid": revocation.kid,
    }


def record_document(record: Record, now_s: int) -> dict[str, object]:
    """Everything about one license."""
    return {
        **issue_document(record.issues[-1]),
        "state": state_of(record, now_s),
        "generations": [issue.license.generation for issue in record.issues],
        "statements": [statement_document(one) for one in record.statements],
    }


def license_rows(record: Record, now_s: int) -> list[tuple[str, str]]:
    """Name and value, in the order people ask for them."""
    license = record.latest
    rows = [
        ("id", license.jti),
        ("state", state_of(record, now_s)),
        ("number", str(license.number)),
        ("generation", str(license.generation)),
        ("subject", license.subject),
        ("issuer", f"{license.issuer} ({license.kid})"),
        ("issued", rfc3339(license.issued_at_s)),
        ("starts", rfc3339(license.not_before_s)),
        ("expires", rfc3339(license.expires_at_s)),
        ("scope", _scope(license)),
        *(("grants", _grant(one)) for one in license.entitlements),
        *(("selector", one) for one in license.selectors),
        ("hosts", ", ".join(license.hosts) or "all of the scope"),
        ("grace", f"{license.grace_s} s"),
        ("failure mode", license.failure_mode),
    ]
    for statement in record.statements:
        said = statement.revocation
        rows.append((said.action.value, f"{rfc3339(said.issued_at_s)}: {said.reason}"))
    return rows


def _scope(license: License) -> str:
    scope = license.scope
    parts = [f"org {scope.org}"]
    if scope.project:
        parts.append(f"project {scope.project}")
    if scope.environments:
        parts.append(f"environments {', '.join(scope.environments)}")
    if scope.regions:
        parts.append(f"regions {', '.join(scope.regions)}")
    return "; ".join(parts)


def _grant(entitlement: Entitlement) -> str:
    parts = [f"{entitlement.resource}: {', '.join(entitlement.actions)}"]
    parts += [
        f"{limit.meter} <= {limit.limit} per {limit.window}, then {limit.on_exhaustion}"
        for limit in entitlement.limits
    ]
    parts += [f"{one.kind} in {', '.join(one.values)}" for one in entitlement.conditions]
    return "; ".join(parts)
