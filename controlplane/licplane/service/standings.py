# SPDX-License-Identifier: Apache-2.0
"""What the catalog's licenses and statements come to: which licenses may be leased."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, cast

from licplane.service.payloads import LeaseTerms
from licplane.service.values import Kind, Scope, View
from lictoken import base64url
from lictoken.claims import AUDIENCE, TIME_MAX_S, License
from lictoken.errors import TokenError
from lictoken.payload import license_from_claims
from lictoken.revocation import Revocation, RevocationAction
from lictoken.validity import Standing, standing

_JUDGED: Final = (Kind.LICENSE, Kind.REVOCATION)
_VIEWS_MAX: Final = 1_000


@dataclass(frozen=True, slots=True)
class Leasable:
    """A license of the catalog and where it counts."""

    license: License
    scope: Scope


@dataclass(frozen=True, slots=True)
class _Leases:
    """What a view's hosts may be leased, from the moment it was worked out to the first end."""

    from_s: int
    until_s: int
    terms: tuple[LeaseTerms, ...]


class Standings:
    """Licenses and statements of a catalog whose rows were verified; follows its changes."""

    def __init__(self) -> None:
        self._licenses: dict[str, Leasable] = {}
        self._statements: dict[str, dict[str, Revocation]] = {}  # license -> jti -> statement
        self._concerns: dict[str, str] = {}  # statement's jti -> license
        self._leases: dict[View, _Leases] = {}

    def put(self, kind: Kind, name: str, scope: Scope, payload: bytes) -> None:
        """An object of the catalog came or changed."""
        if kind in _JUDGED:
            self._leases.clear()
        if kind is Kind.LICENSE:
            found = _license(payload)
            if found is None:
                self._licenses.pop(name, None)
            else:
                self._licenses[name] = Leasable(found, scope)
        elif kind is Kind.REVOCATION:
            statement = _statement(payload)
            if statement is not None:
                self._concerns[name] = statement.license
                self._statements.setdefault(statement.license, {})[name] = statement

    def remove(self, kind: Kind, name: str) -> None:
        """An object of the catalog went."""
        if kind in _JUDGED:
            self._leases.clear()
        if kind is Kind.LICENSE:
            self._licenses.pop(name, None)
        elif kind is Kind.REVOCATION and name in self._concerns:
            of_license = self._statements[self._concerns.pop(name)]
            of_license.pop(name, None)

    def get(self, jti: str) -> License | None:
        """A license of the catalog."""
        found = self._licenses.get(jti)
        return found.license if found else None

    def standing(self, jti: str) -> Standing | None:
        """What became of a license; None where the catalog has none of the name."""
        found = self._licenses.get(jti)
        if found is None:
            return None
        return standing(found.license, self._statements.get(jti, {}).values())

    def all(self) -> list[tuple[License, tuple[Revocation, ...]]]:
        """Every license and the statements about it, to be judged without the lock."""
        none: dict[str, Revocation] = {}
        return [
            (one.license, tuple(self._statements.get(jti, none).values()))
            for jti, one in self._licenses.items()
        ]

    def entitling(self, resource: str) -> Iterator[License]:
        """Active licenses that entitle a resource."""
        for jti, one in self._licenses.items():
            granted = any(grant.resource == resource for grant in one.license.entitlements)
            if granted and self.standing(jti) is Standing.ACTIVE:
                yield one.license

    def leases(self, view: View, now_s: int) -> tuple[LeaseTerms, ...]:
        """Which licenses of a view hold now: neither ended nor taken away.

        Worked out once a view, until the catalog changes or the first of them ends: a whole fleet
        asks when it comes back.
        """
        known = self._leases.get(view)
        if known is not None and known.from_s <= now_s < known.until_s:
            return known.terms
        terms: list[LeaseTerms] = []
        until_s = TIME_MAX_S
        for jti, one in self._licenses.items():
            end_s = one.license.expires_at_s
            if (
                one.scope.visible_in(view)
                and now_s < end_s
                and self.standing(jti) is Standing.ACTIVE
            ):
                terms.append(LeaseTerms(jti, one.license.number, one.license.generation))
                until_s = min(until_s, end_s)
        if len(self._leases) >= _VIEWS_MAX:
            self._leases.clear()
        self._leases[view] = _Leases(now_s, until_s, tuple(terms))
        return self._leases[view].terms


def claims_of(token: bytes) -> tuple[dict[str, Any], str]:
    """(claims, kid) of a JWS of our own making, whose signature was checked as part of a whole."""
    header, payload, _ = token.decode("ascii").split(".")
    kid = json.loads(base64url.decode(header, "header"))["kid"]
    return cast("dict[str, Any]", json.loads(base64url.decode(payload, "payload"))), str(kid)


def _license(token: bytes) -> License | None:
    try:
        claims, kid = claims_of(token)
        return license_from_claims(claims, audience=AUDIENCE, issuer=str(claims["iss"]), kid=kid)
    except (ValueError, KeyError, TypeError, TokenError):
        return None  # of a later format: hosts judge it, and it gets no lease


def _statement(token: bytes) -> Revocation | None:
    try:
        claims, kid = claims_of(token)
        said = claims["rev"]
        return Revocation(
            jti=str(claims["jti"]),
            issuer=str(claims["iss"]),
            audience=AUDIENCE,
            issued_at_s=int(claims["iat"]),
            license=str(said["license"]),
            action=RevocationAction(said["action"]),
            generation=int(said["generation"]),
            reason=str(said["reason"]),
            kid=kid,
        )
    except (ValueError, KeyError, TypeError, TokenError):
        return None
