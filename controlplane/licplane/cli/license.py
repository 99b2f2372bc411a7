# SPDX-License-Identifier: Apache-2.0
"""`licplane license`: issue licenses and end them."""

from __future__ import annotations

from pathlib import Path

import click

from licplane.cli import parsing
from licplane.cli.documents import (
    issue_document,
    license_rows,
    record_document,
    state_of,
    statement_document,
)
from licplane.cli.framework import (
    check_out,
    complete_license,
    hand_out,
    json_option,
    key_options,
    now_s,
    out_option,
    print_json,
    print_table,
    say,
    state_option,
    wants_json,
)
from licplane.cli.passphrase import passphrase
from licplane.errors import ExitCode, PlaneError
from licplane.issuer import issuing
from licplane.issuer.keyring import Keyring
from licplane.issuer.registry import Issue, Registry
from licplane.store.folder import StateFolder
from lictoken.claims import FAILURE_MODES, LicenseScope
from lictoken.keys import SigningKey
from lictoken.revocation import RevocationAction
from lictoken.trust import TrustStore
from lictoken.validity import rfc3339
from lictoken.verify import read_license_file, verify_license


@click.group()
def license() -> None:
    """Issue licenses, show them, and end them."""


@license.command()
@click.option("--id", "jti", required=True, metavar="ID", help="The license's id (jti).")
@click.option("--subject", required=True, metavar="NAME", help="The licensee.")
@click.option("--org", required=True, metavar="NAME", help="The organisation it counts in.")
@click.option("--project", metavar="NAME", help="The project it counts in.")
@click.option("--environment", multiple=True, metavar="NAME", help="An environment (repeatable).")
@click.option("--region", multiple=True, metavar="NAME", help="A region (repeatable).")
@click.option(
    "--resource",
    multiple=True,
    required=True,
    metavar="NAME[:ACTION,...]",
    help="A resource, and what may be done with it: connect (default), bind, use (repeatable).",
)
@click.option(
    "--limit",
    multiple=True,
    metavar="[RESOURCE:]METER=N[/WINDOW][:THEN]",
    help="How much of a meter, per window (instant, second ... year, total), and then deny"
    " (default), throttle or report; e.g. egress_bytes=10Gi/day:throttle (repeatable).",
)
@click.option(
    "--condition",
    multiple=True,
    metavar="[RESOURCE:]KIND=VALUE,...",
    help="What must hold, e.g. region=eu-1,eu-2 (repeatable).",
)
@click.option(
    "--selector",
    multiple=True,
    metavar="SELECTOR",
    help="A selector every user of the license must match, e.g. unix:user:etl (repeatable).",
)
@click.option(
    "--host",
    multiple=True,
    metavar="NAME",
    help="A host it counts on, with * and ? for any characters, or machine-id:ID (repeatable).",
)
@click.option("--not-before", default="now", metavar="TIME", help="Its start.", show_default=True)
@click.option(
    "--expires",
    required=True,
    metavar="TIME",
    help="Its end: 2026-12-31T00:00:00Z, or +90d from now (s, m, h, d, w).",
)
@click.option(
    "--grace", default="0s", metavar="TIME", help="How long after a lost lease.", show_default=True
)
@click.option(
    "--failure-mode",
    type=click.Choice(FAILURE_MODES),
    default="closed",
    show_default=True,
    help="What holds when the license cannot be judged.",
)
@click.option(
    "--after-revocation", is_flag=True, help="Issue the id again although it was revoked."
)
@key_options
@out_option
@state_option
@json_option
def issue(
    *,
    folder: StateFolder,
    jti: str,
    subject: str,
    org: str,
    project: str | None,
    environment: tuple[str, ...],
    region: tuple[str, ...],
    resource: tuple[str, ...],
    limit: tuple[str, ...],
    condition: tuple[str, ...],
    selector: tuple[str, ...],
    host: tuple[str, ...],
    not_before: str,
    expires: str,
    grace: str,
    failure_mode: str,
    key: str | None,
    issuer: str | None,
    passphrase_file: Path | None,
    out: Path | None,
    after_revocation: bool,
) -> None:
    """Sign a license. Issued again, the same ID keeps its number and gets a new generation.

    \b
    licplane license issue --id acme-orders-2026 --subject 'Acme Ltd' --org acme \\
        --resource orders-db --expires +365d --out acme-orders-2026.lic
    """
    now = now_s()
    terms = issuing.Terms(
        jti=jti,
        subject=subject,
        not_before_s=parsing.moment_s(not_before, now),
        expires_at_s=parsing.moment_s(expires, now),
        scope=LicenseScope(org, project, environment, region),
        entitlements=parsing.entitlements(resource, limit, condition),
        selectors=tuple(parsing.selector(one) for one in selector),
        hosts=host,
        grace_s=parsing.duration_s(grace),
        failure_mode=failure_mode,
    )
    check_out(out)
    signing = _signing_key(folder, key, issuer, passphrase_file)
    with folder.locked():
        issued = issuing.issue(
            Registry(folder), signing, terms, now, after_revocation=after_revocation
        )
    _hand_out_license(issued, out)


@license.command()
@click.argument("jti", metavar="ID", shell_complete=complete_license)
@click.option(
    "--expires", required=True, metavar="TIME", help="Its new end, as for `license issue`."
)
@key_options
@out_option
@state_option
@json_option
def renew(
    *,
    folder: StateFolder,
    jti: str,
    expires: str,
    key: str | None,
    issuer: str | None,
    passphrase_file: Path | None,
    out: Path | None,
) -> None:
    """Issue a license again with a later end, and all else as it was."""
    now = now_s()
    expires_at_s = parsing.moment_s(expires, now)
    check_out(out)
    Registry(folder).get(jti)
    signing = _signing_key(folder, key, issuer, passphrase_file)
    with folder.locked():
        issued = issuing.renew(Registry(folder), signing, jti, expires_at_s=expires_at_s, now_s=now)
    _hand_out_license(issued, out)


@license.command("list")
@state_option
@json_option
def list_(folder: StateFolder) -> None:
    """List every license that was issued, newest generation only."""
    folder.require()
    now = now_s()
    records = list(Registry(folder))
    if wants_json():
        print_json({"licenses": [record_document(record, now) for record in records]})
        return
    print_table(
        ("ID", "NUMBER", "GENERATION", "STATE", "EXPIRES", "SUBJECT"),
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
    )


@license.command()
@click.argument("jti", metavar="ID", shell_complete=complete_license)
@click.option("--token", is_flag=True, help="Print the signed license again, and nothing else.")
@click.option(
    "--revocation", is_flag=True, help="Print the newest statement again, and nothing else."
)
@state_option
@json_option
def show(folder: StateFolder, jti: str, *, token: bool, revocation: bool) -> None:
    """Show one license: its terms, its generations and what was said about it."""
    if token and revocation:
        raise click.UsageError("--token and --revocation exclude each other.")
    folder.require()
    record = Registry(folder).get(jti)
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
        for name, value in license_rows(record, now):
            click.echo(f"{name:<14}{value}")


def _statement_command(action: RevocationAction, default_reason: str, text: str) -> click.Command:
    @click.command(action.value, help=text)
    @click.argument("jti", metavar="ID", shell_complete=complete_license)
    @click.option(
        "--reason",
        default=default_reason,
        show_default=True,
        metavar="TEXT",
        help="Why, for the hosts' events.",
    )
    @key_options
    @out_option
    @state_option
    @json_option
    def command(
        *,
        folder: StateFolder,
        jti: str,
        reason: str,
        key: str | None,
        issuer: str | None,
        passphrase_file: Path | None,
        out: Path | None,
    ) -> None:
        parsing.text_value(reason, "--reason")
        check_out(out)
        folder.require()
        record = Registry(folder).get(jti)
        whose = issuer or record.latest.issuer
        signing = _signing_key(folder, key, whose, passphrase_file)
        with folder.locked():
            statement = issuing.state(
                Registry(folder), signing, jti, action, reason=reason, now_s=now_s()
            )
        say(
            f"Signed: {action.value} {jti}, generation {statement.revocation.generation} and"
            " older. It takes effect on a host when the statement arrives there."
        )
        hand_out(statement.token, out, statement_document(statement))

    return command


license.add_command(
    _statement_command(
        RevocationAction.REVOKE,
        "ended by the issuer",
        "End a license for good: sign a statement (.rev) for the hosts.",
    )
)
license.add_command(
    _statement_command(
        RevocationAction.SUSPEND,
        "suspended by the issuer",
        "Suspend a license until it is reinstated: sign a statement (.rev) for the hosts.",
    )
)
license.add_command(
    _statement_command(
        RevocationAction.REINSTATE,
        "reinstated by the issuer",
        "End a suspension: sign a statement (.rev) for the hosts.",
    )
)


@license.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--trust",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Trust file to verify against.  [default: trust.jwks in the state folder]",
)
@state_option
@json_option
def verify(folder: StateFolder, file: Path, trust: Path | None) -> None:
    """Verify a license file as a host would, and print what it says.

    Exit code 7, with the reason's name, for a file that a host would refuse.
    """
    store = TrustStore.load(trust or folder.trust)
    found = verify_license(read_license_file(file), store)
    say(f"{file}: signed by {found.issuer} ({found.kid}).")
    if wants_json():
        print_json(issue_document(Issue(found, "")))
    else:
        print_table(
            ("ID", "NUMBER", "GENERATION", "STARTS", "EXPIRES", "SUBJECT"),
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


def _signing_key(
    folder: StateFolder, kid: str | None, issuer: str | None, passphrase_file: Path | None
) -> SigningKey:
    folder.require()
    return Keyring(folder).signing_key(
        lambda: passphrase(passphrase_file), kid=kid, issuer=None if kid else issuer
    )


def _hand_out_license(issued: Issue, out: Path | None) -> None:
    found = issued.license
    say(
        f"Issued {found.jti}: number {found.number}, generation {found.generation},"
        f" until {rfc3339(found.expires_at_s)}."
    )
    hand_out(issued.token, out, issue_document(issued))
