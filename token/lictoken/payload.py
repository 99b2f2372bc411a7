# SPDX-License-Identifier: Apache-2.0
"""A license's claims: from JSON with every check, and back to JSON."""

from __future__ import annotations

import re
from typing import Final

from lictoken.claims import (
    ACTIONS,
    EXHAUSTIONS,
    FAILURE_MODES,
    FORMAT_VERSION,
    I64_MAX,
    TIME_MAX_S,
    U32_MAX,
    WINDOWS,
    Condition,
    Entitlement,
    License,
    LicenseScope,
    Limit,
)
from lictoken.conditions import is_kind, problem_of
from lictoken.errors import Refusal, TokenError, shown
from lictoken.fields import (
    HOST,
    ID,
    NAME,
    WORD,
    Fields,
    check_choice,
    check_text,
    check_unique,
)

REGISTERED: Final = ("iss", "sub", "aud", "jti", "iat", "nbf", "exp")

_LIC: Final = (
    "ver",
    "number",
    "generation",
    "scope",
    "entitlements",
    "selectors",
    "hosts",
    "grace",
    "failure_mode",
)
_SELECTOR: Final = re.compile(r"host|[a-z0-9]+:[a-z0-9]+:.+", re.ASCII)


def check_audience(fields: Fields, audience: str) -> str:
    """The `aud` claim, which must be exactly `audience` (one text, not a list)."""
    found = fields.get("aud")
    if found != audience:
        raise TokenError(Refusal.WRONG_AUDIENCE, f"aud is {shown(found)}, not {shown(audience)}")
    return audience


def check_issuer(fields: Fields, issuer: str) -> str:
    """The `iss` claim, which must be the issuer that the signing key belongs to."""
    found = fields.get("iss")
    if found != issuer:
        raise TokenError(
            Refusal.WRONG_ISSUER, f"iss is {shown(found)}, but the key belongs to {shown(issuer)}"
        )
    return issuer


def license_from_claims(
    claims: dict[str, object], *, audience: str, issuer: str, kid: str
) -> License:
    """Check every claim and make a License of them. Raises TokenError."""
    top = Fields(claims, "", (*REGISTERED, "lic"))
    check_audience(top, audience)
    check_issuer(top, issuer)
    raw = top.get("lic")
    _check_version(raw)
    lic = Fields(raw, "lic", _LIC)
    not_before_s = top.integer("nbf", 0, TIME_MAX_S)
    expires_at_s = top.integer("exp", 0, TIME_MAX_S)
    if expires_at_s <= not_before_s:
        raise TokenError(
            Refusal.BAD_VALUE, f"exp is {expires_at_s}, not after nbf, which is {not_before_s}"
        )
    return License(
        jti=top.text("jti", ID),
        issuer=issuer,
        subject=top.text("sub"),
        audience=audience,
        number=lic.integer("number", 1, U32_MAX),
        generation=lic.integer("generation", 1, U32_MAX),
        issued_at_s=top.integer("iat", 0, TIME_MAX_S),
        not_before_s=not_before_s,
        expires_at_s=expires_at_s,
        scope=_scope(lic.get("scope")),
        entitlements=_entitlements(lic.items("entitlements")),
        selectors=lic.texts("selectors", _SELECTOR),
        hosts=lic.texts("hosts", HOST),
        grace_s=lic.integer("grace", 0, U32_MAX, default=0),
        failure_mode=lic.choice("failure_mode", FAILURE_MODES, default="closed"),
        kid=kid,
    )


def _check_version(lic: object) -> None:
    """The version first: a later format may have members this code does not know."""
    version = lic.get("ver", FORMAT_VERSION) if isinstance(lic, dict) else FORMAT_VERSION
    if isinstance(version, bool) or version != FORMAT_VERSION:
        raise TokenError(
            Refusal.UNSUPPORTED_VERSION, f"lic.ver is {shown(version)}, not {FORMAT_VERSION}"
        )
    Fields(lic, "lic", tuple(lic) if isinstance(lic, dict) else ()).get("ver")


def _scope(value: object) -> LicenseScope:
    scope = Fields(value, "lic.scope", ("org", "project", "environments", "regions"))
    return LicenseScope(
        org=scope.text("org", NAME),
        project=scope.optional_text("project", NAME),
        environments=scope.texts("environments", NAME),
        regions=scope.texts("regions", NAME),
    )


def _entitlements(items: list[object]) -> tuple[Entitlement, ...]:
    place = "lic.entitlements"
    if not items:
        raise TokenError(Refusal.BAD_VALUE, f"{place} is empty: the license would grant nothing")
    found = tuple(_entitlement(item, f"{place}[{at}]") for at, item in enumerate(items))
    check_unique([entitlement.resource for entitlement in found], place)
    return found


def _entitlement(value: object, place: str) -> Entitlement:
    fields = Fields(value, place, ("resource", "actions", "limits", "conditions"))
    actions = tuple(
        check_choice(item, f"{place}.actions[{at}]", ACTIONS)
        for at, item in enumerate(fields.items("actions"))
    )
    if not actions:
        raise TokenError(Refusal.BAD_VALUE, f"{place}.actions is empty")
    check_unique(actions, f"{place}.actions")
    limits = tuple(
        _limit(item, f"{place}.limits[{at}]")
        for at, item in enumerate(fields.items("limits", default=()))
    )
    check_unique([f"{one.meter} per {one.window}" for one in limits], f"{place}.limits")
    return Entitlement(
        resource=fields.text("resource", NAME),
        actions=actions,
        limits=limits,
        conditions=_conditions(fields.get("conditions", {}), f"{place}.conditions"),
    )


def _limit(value: object, place: str) -> Limit:
    fields = Fields(value, place, ("meter", "limit", "window", "on_exhaustion"))
    return Limit(
        meter=fields.text("meter", WORD),
        limit=fields.integer("limit", 0, I64_MAX),
        window=fields.choice("window", WINDOWS),
        on_exhaustion=fields.choice("on_exhaustion", EXHAUSTIONS, default="deny"),
    )


def _conditions(value: object, place: str) -> tuple[Condition, ...]:
    """Kinds and values are not judged here (`check_conditions`): a later version may know more,
    and the agent refuses an entitlement whose condition it cannot judge."""
    fields = Fields(value, place, tuple(value) if isinstance(value, dict) else ())
    kinds = sorted(value) if isinstance(value, dict) else []
    found: list[Condition] = []
    for kind in kinds:
        check_text(kind, f"a key of {place}", None)
        if not is_kind(kind):
            raise TokenError(
                Refusal.BAD_VALUE, f"a key of {place} is {shown(kind)}, which is no kind"
            )
        values = fields.texts(kind)
        if not values:
            raise TokenError(Refusal.BAD_VALUE, f"{place}.{kind} is empty: it could never hold")
        found.append(Condition(kind, values))
    return tuple(found)


def check_conditions(license: License) -> None:
    """What an issuer must not sign: conditions that no agent of this version can judge.

    Raises TokenError, with what was meant perhaps.
    """
    for at, entitlement in enumerate(license.entitlements):
        for condition in entitlement.conditions:
            problem = problem_of(condition.kind, condition.values)
            if problem:
                raise TokenError(Refusal.BAD_VALUE, f"lic.entitlements[{at}].conditions: {problem}")


def license_to_claims(license: License) -> dict[str, object]:
    """The JSON object that `license_from_claims` reads back to an equal License."""
    scope: dict[str, object] = {"org": license.scope.org}
    if license.scope.project is not None:
        scope["project"] = license.scope.project
    if license.scope.environments:
        scope["environments"] = list(license.scope.environments)
    if license.scope.regions:
        scope["regions"] = list(license.scope.regions)
    lic: dict[str, object] = {
        "ver": FORMAT_VERSION,
        "number": license.number,
        "generation": license.generation,
        "scope": scope,
        "entitlements": [_entitlement_claims(one) for one in license.entitlements],
    }
    if license.selectors:
        lic["selectors"] = list(license.selectors)
    if license.hosts:
        lic["hosts"] = list(license.hosts)
    lic["grace"] = license.grace_s
    lic["failure_mode"] = license.failure_mode
    return {
        "iss": license.issuer,
        "sub": license.subject,
        "aud": license.audience,
        "jti": license.jti,
        "iat": license.issued_at_s,
        "nbf": license.not_before_s,
        "exp": license.expires_at_s,
        "lic": lic,
    }


def _entitlement_claims(entitlement: Entitlement) -> dict[str, object]:
    result: dict[str, object] = {
        "resource": entitlement.resource,
        "actions": list(entitlement.actions),
    }
    if entitlement.limits:
        result["limits"] = [
            {
                "meter": limit.meter,
                "limit": limit.limit,
                "window": limit.window,
                "on_exhaustion": limit.on_exhaustion,
            }
            for limit in entitlement.limits
        ]
    if entitlement.conditions:
        result["conditions"] = {one.kind: list(one.values) for one in entitlement.conditions}
    return result
