# SPDX-License-Identifier: Apache-2.0
"""`licplane license list`, `show` and `verify`."""

from __future__ import annotations

import json
from pathlib import Path

import click

from licplane.cli.changes import reading
from licplane.cli.completion import complete_license
from licplane.cli.documents import (
    issue_document,
    license_rows,
    record_document,
    state_of,
    statement_document,
)
from licplane.cli.framework import hand_out, json_option, now_s, print_json, say, wants_json
from licplane.cli.local import open_store
from licplane.cli.objects import document_of, documents_of, object_document, scope_text
from licplane.cli.output import show_fields, show_table
from licplane.cli.place import place, place_options, state_option
from licplane.errors import ExitCode, PlaneError
from licplane.issuer.keyring import Keyring
from licplane.issuer.registry import Issue, Record, Registry
from lictoken.trust import TrustStore
from lictoken.validity import rfc3339
from lictoken.verify import read_license_file, verify_license


@click.command("list")
@place_options
@json_option
def list_() -> None:
    """List every license that was issued, newest generation only."""
    if place().check().remote:
        _list_remote()
        return
    now = now_s()
    with open_store(place()) as store, store.reading() as reader:
        records = list(Registry(reader))
    if wants_json():
        print_json({"licenses": [record_document(record, now) for record in records]})
        return
    show_table(
        ("ID", ">NUMBER", ">GENERATION", "STATE", "EXPIRES", "SUBJECT"),
        [
            (
                record.jti,
                str(record.number),
                str(record.latest.generation),
                state_of(record, now),
                rfc3339(record.latest.expires_at_s),
                record.latest.subject,
            )
            for record in records
        ],
        empty="There are no licenses. `licplane license issue` and `licplane apply` make some.",
    )


@click.command()
@click.argument("jti", metavar="ID", shell_complete=complete_license)
@click.option("--token", is_flag=True, help="Print the signed license again, and nothing else.")
@click.option(
    "--revocation", is_flag=True, help="Print the newest statement again, and nothing else."
)
@place_options
@json_option
def show(jti: str, *, token: bool, revocation: bool) -> None:
    """Show one license: its terms, its generations and what was said about it."""
    if token and revocation:
        raise click.UsageError("--token and --revocation exclude each other.")
    if place().check().remote:
        if token or revocation:
            raise PlaneError(
                ExitCode.USAGE,
                "A server does not hand out signed texts again",
                "Run this on its machine, with --state or --database",
            )
        _show_remote(jti)
        return
    record = known(jti)
    now = now_s()
    if token:
        hand_out(record.issues[-1].token, None, issue_document(record.issues[-1]))
    elif revocation:
        if not record.statements:
            raise PlaneError(
                ExitCode.NOT_FOUND, f"Nothing was said about {jti}", "It stands as issued"
            )
        statement = record.statements[-1]
        hand_out(statement.token, None, statement_document(statement))
    elif wants_json():
        print_json({"license": record_document(record, now)})
    else:
        show_fields(license_rows(record, now))


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--trust",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Trust file to verify against.  [default: the keys in the database]",
)
@state_option
@json_option
def verify(file: Path, trust: Path | None) -> None:
    """Verify a license file as a host would, and print what it says.

    Exit code 7, with the reason's name, for a file that a host would refuse.
    """
    found = verify_license(read_license_file(file), _trust(trust))
    say(f"{file}: signed by {found.issuer} ({found.kid}).")
    if wants_json():
        print_json(issue_document(Issue(found, "")))
    else:
        show_table(
            ("ID", ">NUMBER", ">GENERATION", "STARTS", "EXPIRES", "SUBJECT"),
            [
                (
                    found.jti,
                    str(found.number),
                    str(found.generation),
                    rfc3339(found.not_before_s),
                    rfc3339(found.expires_at_s),
                    found.subject,
                )
            ],
        )


def _trust(file: Path | None) -> TrustStore:
    if file is not None:
        return TrustStore.load(file)
    with open_store(place().check()) as store, store.reading() as reader:
        return Keyring(reader).trust()


def known(jti: str) -> Record:
    """The record of a license. Raises PlaneError NOT_FOUND, with the nearest id."""
    with open_store(place().check()) as store, store.reading() as reader:
        return Registry(reader).get(jti)


def _list_remote() -> None:
    with reading() as backend:
        found = documents_of(backend, "license")
    if wants_json():
        print_json({"licenses": [object_document(one) for one in found]})
        return
    rows = []
    for one in found:
        document = json.loads(one.json)
        rows.append(
            (
                one.name,
                str(document.get("expires", "-")),
                str(document.get("subject", "-")),
                scope_text(document),
                one.revision,
            )
        )
    show_table(("ID", "EXPIRES", "SUBJECT", "SCOPE", ">REVISION"), rows, "There are no licenses.")


def _show_remote(jti: str) -> None:
    with reading() as backend:
        found = document_of(backend, "license", jti)
    if wants_json():
        print_json({"license": object_document(found)})
        return
    document = json.loads(found.json)
    show_fields(
        (key, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
        for key, value in document.items()
    )
