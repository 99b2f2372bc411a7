# SPDX-License-Identifier: Apache-2.0
"""Signed statements that end, suspend or reinstate a license."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

from lictoken.claims import AUDIENCE, TIME_MAX_S, U32_MAX
from lictoken.envelope import open_token, sign
from lictoken.fields import ID, Fields
from lictoken.keys import Purpose, SigningKey
from lictoken.payload import check_audience, check_issuer
from lictoken.trust import TrustStore

_TOP: Final = ("iss", "aud", "iat", "jti", "rev")
_REV: Final = ("license", "action", "generation", "reason")


class RevocationAction(StrEnum):
    """What a statement does to its license."""

    REVOKE = "revoke"  # for good
    SUSPEND = "suspend"  # until reinstated
    REINSTATE = "reinstate"  # ends a suspension, never a revocation


@dataclass(frozen=True, slots=True)
class Revocation:
    """One statement. Licenses and statements of one jti share one count of generations."""

    jti: str  # of the statement
    issuer: str
    audience: str
    issued_at_s: int
    license: str  # the jti of the license
    action: RevocationAction
    generation: int  # 1..U32_MAX: concerns licenses of this generation and older ones
    reason: str  # for people
    kid: str = ""


def sign_revocation(statement: Revocation, key: SigningKey) -> str:
    """The armoured text of `statement`, issued in the name of the key's issuer."""
    issued = replace(statement, issuer=key.issuer, kid=key.kid)
    claims = _to_claims(issued)
    _from_claims(claims, audience=issued.audience, issuer=key.issuer, kid=key.kid)
    return sign(claims, Purpose.REVOCATION, key)


def verify_revocation(data: bytes, trust: TrustStore, *, audience: str = AUDIENCE) -> Revocation:
    """The statement in `data`, if a trusted issuer signed it. Raises TokenError.

    Whose license it may end is for the caller to check: `validity.standing` counts only
    statements of the license's own issuer.
    """
    claims, key = open_token(data, trust, Purpose.REVOCATION)
    return _from_claims(claims, audience=audience, issuer=key.issuer, kid=key.kid)


def _to_claims(statement: Revocation) -> dict[str, object]:
    return {
        "iss": statement.issuer,
        "aud": statement.audience,
        "iat": statement.issued_at_s,
        "jti": statement.jti,
        "rev": {
            "license": statement.license,
            "action": statement.action.value,
            "generation": statement.generation,
            "reason": statement.reason,
        },
    }


def _from_claims(claims: dict[str, object], *, audience: str, issuer: str, kid: str) -> Revocation:
    top = Fields(claims, "", _TOP)
    check_audience(top, audience)
    check_issuer(top, issuer)
    rev = Fields(top.get("rev"), "rev", _REV)
    return Revocation(
        jti=top.text("jti", ID),
        issuer=issuer,
        audience=audience,
        issued_at_s=top.integer("iat", 0, TIME_MAX_S),
        license=rev.text("license", ID),
        action=RevocationAction(rev.choice("action", tuple(RevocationAction))),
        generation=rev.integer("generation", 1, U32_MAX),
        reason=rev.text("reason"),
        kid=kid,
    )
