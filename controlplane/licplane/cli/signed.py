# SPDX-License-Identifier: Apache-2.0
"""What a server signed and answered, as the local commands have it; and terms as a document.

Signatures are not judged here: the server is who it is by TLS, and hosts judge for themselves.
"""

from __future__ import annotations

import json

from licplane.errors import ExitCode, PlaneError
from licplane.issuer.issuing import Terms
from licplane.issuer.registry import Issue, Statement
from licplane.service.license_documents import license_document as document_of
from licplane.service.requests import Document
from lictoken import base64url
from lictoken.armour import Label, armour
from lictoken.claims import AUDIENCE, License
from lictoken.errors import TokenError
from lictoken.payload import license_from_claims, license_to_claims
from lictoken.revocation import Revocation, RevocationAction
from lictoken.strictjson import parse_object


def check_terms(terms: Terms) -> None:
    """Refuse terms that no host would accept, before a passphrase is asked for.

    Raises TokenError, which names the claim.
    """
    draft = _draft(terms, "-")
    license_from_claims(license_to_claims(draft), audience=AUDIENCE, issuer="-", kid="")


def license_document(terms: Terms, issuer: str | None) -> Document:
    """The terms of a license as `apply` takes them; `issuer` None lets the server choose."""
    found = json.loads(document_of(_draft(terms, issuer or "-")))
    if issuer is None:
        del found["issuer"]
    return Document("license", terms.jti, json.dumps(found, sort_keys=True))


def _draft(terms: Terms, issuer: str) -> License:
    return License(
        jti=terms.jti,
        issuer=issuer,
        subject=terms.subject,
        audience=AUDIENCE,
        number=1,
        generation=1,
        issued_at_s=terms.not_before_s,
        not_before_s=terms.not_before_s,
        expires_at_s=terms.expires_at_s,
        scope=terms.scope,
        entitlements=terms.entitlements,
        selectors=terms.selectors,
        hosts=terms.hosts,
        grace_s=terms.grace_s,
        failure_mode=terms.failure_mode,
        kid="",
    )


def issue_of(token: str) -> Issue:
    """The license in a JWS compact text."""
    kid, claims = _parts(token)
    try:
        license = license_from_claims(
            claims, audience=AUDIENCE, issuer=str(claims.get("iss")), kid=kid
        )
    except TokenError as error:
        raise _strange(error.detail) from error
    return Issue(license, armour(token, Label.LICENSE))


def statement_of(token: str) -> Statement:
    """The statement in a JWS compact text."""
    kid, claims = _parts(token)
    try:
        rev = claims["rev"]
        if not isinstance(rev, dict) or not isinstance(claims["iat"], int):
            raise TypeError("rev and iat are not what they should be")
        revocation = Revocation(
            jti=str(claims["jti"]),
            issuer=str(claims["iss"]),
            audience=str(claims["aud"]),
            issued_at_s=claims["iat"],
            license=str(rev["license"]),
            action=RevocationAction(str(rev["action"])),
            generation=int(rev["generation"]),
            reason=str(rev["reason"]),
            kid=kid,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise _strange(str(error)) from error
    return Statement(revocation, armour(token, Label.REVOCATION))


def _parts(token: str) -> tuple[str, dict[str, object]]:
    try:
        header, payload, _ = token.split(".")
        head = parse_object(base64url.decode(header, "the header"), "the header")
        return str(head.get("kid")), parse_object(base64url.decode(payload, "it"), "it")
    except (ValueError, TokenError) as error:
        raise _strange(str(error)) from error


def _strange(why: str) -> PlaneError:
    return PlaneError(
        ExitCode.INTERNAL,
        f"The server answered a token that makes no sense: {why}",
        "Compare its version with this one's (`licplane --version`)",
    )
