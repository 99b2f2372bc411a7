# SPDX-License-Identifier: Apache-2.0
"""Issuing and renewing over a server: its document is applied, its key signs."""

from __future__ import annotations

import json

from licplane.cli import parsing
from licplane.cli.backend import Backend
from licplane.cli.objects import apply_documents, document_of
from licplane.cli.signed import issue_of, license_document
from licplane.errors import ExitCode, PlaneError
from licplane.issuer.issuing import Terms
from licplane.issuer.registry import Issue
from licplane.service.requests import Change, Document
from lictoken.validity import rfc3339


def applied(backend: Backend, change: Change, terms: Terms, issuer: str | None) -> Issue:
    """Issue over a server: apply the one document."""
    document = license_document(terms, issuer)
    result = apply_documents(backend, change, [document])
    if not result.tokens:
        raise PlaneError(
            ExitCode.REFUSED,
            f"{terms.jti} says that already, so nothing was signed",
            f"See `licplane license show {terms.jti}`",
        )
    return issue_of(result.tokens[0])


def renewed(backend: Backend, change: Change, jti: str, expires_at_s: int) -> Issue:
    """Renew over a server: apply its document with another end."""
    found = document_of(backend, "license", jti)
    document = json.loads(found.json)
    end_s = parsing.moment_s(str(document["expires"]), 0)
    if expires_at_s <= end_s:
        raise PlaneError(
            ExitCode.REFUSED,
            f"{jti} would not last longer than it does",
            "Choose a later --expires; to end it, use `licplane license revoke`",
        )
    text = json.dumps({**document, "expires": rfc3339(expires_at_s)}, sort_keys=True)
    wanted = Document("license", jti, text, found.etag)
    result = apply_documents(backend, change, [wanted])
    return issue_of(result.tokens[0])


def not_remote(
    *, key: str | None = None, issuer: str | None = None, after_revocation: bool = False
) -> None:
    """Refuse options that only the state folder or database takes."""
    for option, given in (
        ("--key", key),
        ("--issuer", issuer),
        ("--after-revocation", after_revocation),
    ):
        if given:
            raise PlaneError(
                ExitCode.USAGE,
                f"A server does not take {option}",
                "Run this on its machine, with --state or --database",
            )
