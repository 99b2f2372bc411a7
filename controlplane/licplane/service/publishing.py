# SPDX-License-Identifier: Apache-2.0
"""Licenses and statements as objects of the catalog."""

from __future__ import annotations

from licplane.issuer.registry import Issue, Registry, Statement
from licplane.service.license_documents import license_document, license_scope
from licplane.service.values import Kind
from licplane.store.catalog_model import ObjectDraft
from licplane.store.transaction import Transaction
from lictoken.armour import Label, unarmour
from lictoken.claims import License


def publish_license(transaction: Transaction, issued: Issue) -> None:
    """Make an issue what hosts get."""
    license = issued.license
    transaction.put_object(
        ObjectDraft(
            Kind.LICENSE,
            license.jti,
            license_scope(license),
            compact(issued.token, Label.LICENSE).encode(),
            license_document(license),
        )
    )


def publish_statement(transaction: Transaction, license: License, statement: Statement) -> None:
    """Make a statement what hosts get, where its license counts."""
    transaction.put_object(
        ObjectDraft(
            Kind.REVOCATION,
            statement.revocation.jti,
            license_scope(license),
            compact(statement.token, Label.REVOCATION).encode(),
        )
    )


def publish_register(transaction: Transaction) -> int:
    """Put every license that was issued before there was a catalog into it; how many."""
    count = 0
    for record in list(Registry(transaction)):
        publish_license(transaction, record.issues[-1])
        for statement in record.statements:
            publish_statement(transaction, record.latest, statement)
        count += 1
    return count


def compact(token: str, label: Label) -> str:
    """An armoured token as JWS compact."""
    return unarmour(token.encode("ascii"), label)
