# SPDX-License-Identifier: Apache-2.0
"""Documents of licenses: terms that an issuer signs when they change.

    {"id": "acme-orders", "subject": "Acme Ltd", "scope": {"org": "acme"},
     "entitlements": [{"resource": "orders-db"}], "expires": "2026-12-31T00:00:00Z"}

Also: not_before, selectors, hosts, grace (seconds, or a text such as "15m"), failure_mode, issuer.
Entitlements are written as in a token (docs/reference/license-token.md); `actions` is
["connect"] if left out.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, cast

from licplane.issuer.issuing import Terms
from licplane.service.reading import Table, attempt, canonical_payload
from licplane.service.selectors import SelectorProblem, check_selector
from licplane.service.texts import shown
from licplane.service.values import Scope
from lictoken.claims import (
    AUDIENCE,
    FAILURE_MODES,
    TIME_MAX_S,
    U32_MAX,
    License,
)
from lictoken.fields import ID
from lictoken.payload import license_from_claims, license_to_claims
from lictoken.validity import rfc3339

_KEYS: Final = (
    "id",
    "subject",
    "scope",
    "entitlements",
    "expires",
    "not_before",
    "selectors",
    "hosts",
    "grace",
    "failure_mode",
    "issuer",
)
_TIME: Final = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(Z|[+-]\d\d:\d\d)", re.ASCII)
_DURATION: Final = re.compile(r"(\d{1,9})([smhdw])", re.ASCII)
_UNITS_S: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}


@dataclass(frozen=True, slots=True)
class Wanted:
    """A license as its document wants it."""

    license: License  # number, generation, issued_at and kid stand for nothing
    not_before_given: bool
    issuer: str | None  # in whose name it is to be signed; None: as before, or the only one

    def terms(self, not_before_s: int) -> Terms:
        """The terms to issue, with this start."""
        one = self.license
        return Terms(
            jti=one.jti,
            subject=one.subject,
            not_before_s=not_before_s,
            expires_at_s=one.expires_at_s,
            scope=one.scope,
            entitlements=one.entitlements,
            selectors=one.selectors,
            hosts=one.hosts,
            grace_s=one.grace_s,
            failure_mode=one.failure_mode,
        )


def read_license(table: Table, now_s: int) -> Wanted | None:
    """What a license document asks for; None where the table's problems say why not."""
    before = len(table.problems)
    table.keys(_KEYS)
    jti = table.name("id", ID)
    subject = table.text("subject")
    expires_at_s = _time(table, "expires")
    not_before_s = _time(table, "not_before") if "not_before" in table.value else None
    grace_s = _grace(table)
    failure_mode = table.choice("failure_mode", FAILURE_MODES, "closed")
    issuer = table.text("issuer") if "issuer" in table.value else None
    scope = table.table("scope") if "scope" in table.value else None
    if scope is None:
        table.problem("scope", "is missing", 'write {"org": "..."}, where the license counts')
    for at, text in enumerate(table.names("selectors", None)):
        try:
            check_selector(text)
        except SelectorProblem as error:
            table.problems.add(f"{table.at('selectors')}[{at}]", str(error))
    if len(table.problems) != before or scope is None:
        return None
    start_s = min(now_s, expires_at_s - 1) if not_before_s is None else not_before_s
    claims: dict[str, object] = {
        "iss": issuer or "licplane",
        "sub": subject,
        "aud": AUDIENCE,
        "jti": jti,
        "iat": 0,
        "nbf": max(start_s, 0),
        "exp": expires_at_s,
        "lic": {
            "ver": 1,
            "number": 1,
            "generation": 1,
            "scope": dict(scope.value),
            "entitlements": [_entitlement(one) for one in table.items("entitlements")],
            "selectors": table.value.get("selectors", []),
            "hosts": table.value.get("hosts", []),
            "grace": grace_s,
            "failure_mode": failure_mode,
        },
    }
    license = attempt(
        table,
        table.place,
        lambda: license_from_claims(claims, audience=AUDIENCE, issuer=issuer or "licplane", kid=""),
    )
    return Wanted(license, not_before_s is not None, issuer) if license else None


def same_terms(wanted: Wanted, license: License) -> bool:
    """Whether a license already says what its document asks for."""
    asked = wanted.terms(wanted.license.not_before_s)
    has = (
        license.subject,
        license.expires_at_s,
        license.scope,
        license.entitlements,
        license.selectors,
        license.hosts,
        license.grace_s,
        license.failure_mode,
    )
    return (
        has
        == (
            asked.subject,
            asked.expires_at_s,
            asked.scope,
            asked.entitlements,
            asked.selectors,
            asked.hosts,
            asked.grace_s,
            asked.failure_mode,
        )
        and (not wanted.not_before_given or license.not_before_s == asked.not_before_s)
        and wanted.issuer in (None, license.issuer)
    )


def license_document(license: License) -> str:
    """The document of a license that was issued: applied again, it changes nothing."""
    claims = license_to_claims(license)
    terms = cast("dict[str, object]", claims["lic"])
    document: dict[str, object] = {
        "id": license.jti,
        "issuer": license.issuer,
        "subject": license.subject,
        "scope": terms["scope"],
        "entitlements": terms["entitlements"],
        "not_before": rfc3339(license.not_before_s),
        "expires": rfc3339(license.expires_at_s),
    }
    if license.selectors:
        document["selectors"] = list(license.selectors)
    if license.hosts:
        document["hosts"] = list(license.hosts)
    if license.grace_s:
        document["grace"] = license.grace_s
    if license.failure_mode != "closed":
        document["failure_mode"] = license.failure_mode
    return canonical_payload(document).decode()


def license_scope(license: License) -> Scope:
    """Where a license's object is visible."""
    scope = license.scope
    return Scope(
        scope.org,
        scope.project or "",
        tuple(sorted(scope.environments)),
        tuple(sorted(scope.regions)),
    )


def _entitlement(value: object) -> object:
    if isinstance(value, dict) and "actions" not in value:
        return {**value, "actions": ["connect"]}
    return value


def _time(table: Table, key: str) -> int:
    text = table.text(key)
    if not text:
        return 1
    hint = "write it with its zone, as in 2026-12-31T00:00:00Z"
    if not _TIME.fullmatch(text):
        table.problem(key, f"{shown(text)} is no time", hint)
        return 1
    try:
        found = int(datetime.fromisoformat(text).astimezone(UTC).timestamp())
    except (ValueError, OverflowError):
        found = -1
    if not 0 < found <= TIME_MAX_S:
        table.problem(key, f"{shown(text)} is no time within 1970..2262", hint)
        return 1
    return found


def _grace(table: Table) -> int:
    value = table.value.get("grace", 0)
    if not isinstance(value, str):
        return table.integer("grace", 0, U32_MAX, 0)
    match = _DURATION.fullmatch(value)
    seconds = int(match[1]) * _UNITS_S[match[2]] if match else -1
    if not 0 <= seconds <= U32_MAX:
        table.problem("grace", f"{shown(value)} is no duration", "write seconds, or 20s, 15m, 12h")
        return 0
    return seconds
