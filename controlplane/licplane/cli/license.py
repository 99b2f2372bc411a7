# SPDX-License-Identifier: Apache-2.0
"""`licplane license`: issue licenses and end them."""

from __future__ import annotations

import secrets
from dataclasses import replace
from pathlib import Path

import click

from licplane.cli import parsing
from licplane.cli.backend import Backend
from licplane.cli.changes import change_options, changing, show_change
from licplane.cli.completion import complete_kid, complete_license
from licplane.cli.documents import issue_document, statement_document
from licplane.cli.framework import (
    check_out,
    hand_out,
    json_option,
    key_options,
    now_s,
    out_option,
    say,
)
from licplane.cli.license_reading import known, list_, show, verify
from licplane.cli.license_remote import applied, not_remote, renewed
from licplane.cli.local import LocalBackend
from licplane.cli.place import place, place_options
from licplane.cli.signed import check_terms, statement_of
from licplane.errors import ExitCode, PlaneError
from licplane.issuer.issuing import Terms
from licplane.issuer.registry import Issue, Statement
from licplane.service.requests import Change
from lictoken.claims import FAILURE_MODES, LicenseScope
from lictoken.revocation import RevocationAction
from lictoken.validity import rfc3339


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
    " (default), throttle or report; e.g. egress_bytes=10Gi/day:throttle (repeatable). Agents of"
    " this version hold no limit: what has one grants nothing there.",
)
@click.option(
    "--condition",
    multiple=True,
    metavar="[RESOURCE:]KIND=VALUE,...",
    help="What must hold, e.g. label:region=eu-1,eu-2 (repeatable).",
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
@click.option("--reason", default="", metavar="TEXT", help="Why, for the audit log.")
@key_options
@out_option
@place_options
@json_option
def issue(
    *,
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
    reason: str,
    key: str | None,
    issuer: str | None,
    passphrase_file: Path | None,
    out: Path | None,
    after_revocation: bool,
) -> None:
    """Sign a license, and push it to the hosts of its scope.

    Issued again, the same ID keeps its number and gets a new generation. The signed text is
    printed too, for hosts that live by files.

    \b
    licplane license issue --id acme-orders-2026 --subject 'Acme Ltd' --org acme \\
        --resource orders-db --expires +365d --out acme-orders-2026.lic
    """
    now = now_s()
    terms = Terms(
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
    check_terms(terms)
    check_out(out)
    change = _change(reason)
    with changing(passphrase_file) as backend:
        if isinstance(backend, LocalBackend):
            issued = backend.plane.issue_license(
                backend.actor,
                change,
                terms,
                kid=key,
                issuer=issuer,
                after_revocation=after_revocation,
            )
        else:
            not_remote(key=key, after_revocation=after_revocation)
            issued = applied(backend, change, terms, issuer)
    _hand_out_license(issued, out)


@license.command()
@click.argument("jti", metavar="ID", shell_complete=complete_license)
@click.option(
    "--expires", required=True, metavar="TIME", help="Its new end, as for `license issue`."
)
@click.option("--reason", default="", metavar="TEXT", help="Why, for the audit log.")
@key_options
@out_option
@place_options
@json_option
def renew(
    *,
    jti: str,
    expires: str,
    reason: str,
    key: str | None,
    issuer: str | None,
    passphrase_file: Path | None,
    out: Path | None,
) -> None:
    """Issue a license again with a later end, and all else as it was."""
    expires_at_s = parsing.moment_s(expires, now_s())
    check_out(out)
    change = _change(reason)
    if not place().remote:
        known(jti)  # before a passphrase is asked for
    with changing(passphrase_file) as backend:
        if isinstance(backend, LocalBackend):
            issued = backend.plane.renew_license(
                backend.actor, change, jti, expires_at_s=expires_at_s, kid=key, issuer=issuer
            )
        else:
            not_remote(key=key)
            issued = renewed(backend, change, jti, expires_at_s)
    _hand_out_license(issued, out)


def _statement_command(action: RevocationAction, default_reason: str, text: str) -> click.Command:
    @click.command(action.value, help=text)
    @click.argument("jti", metavar="ID", shell_complete=complete_license)
    @click.option("--key", metavar="KID", help="Sign with this key.", shell_complete=complete_kid)
    @click.option("--issuer", metavar="NAME", help="Sign with this issuer's newest active key.")
    @out_option
    @change_options
    @json_option
    def command(
        *,
        change: Change,
        jti: str,
        key: str | None,
        issuer: str | None,
        passphrase_file: Path | None,
        out: Path | None,
    ) -> None:
        change = replace(change, reason=change.reason or default_reason)
        parsing.text_value(change.reason, "--reason")
        check_out(out)
        if not place().remote:
            known(jti)
        with changing(passphrase_file) as backend:
            if change.dry_run:
                show_change(backend.set_license_state(change, jti, action.value), "")
                return
            statement = _state(backend, change, jti, action, key=key, issuer=issuer)
        say(
            f"Signed: {action.value} {jti}, generation {statement.revocation.generation} and"
            " older. Connected hosts have it within a second; one that lives by files needs it"
            " as a file."
        )
        hand_out(statement.token, out, statement_document(statement))

    return command


def _state(
    backend: Backend,
    change: Change,
    jti: str,
    action: RevocationAction,
    *,
    key: str | None,
    issuer: str | None,
) -> Statement:
    if isinstance(backend, LocalBackend):
        return backend.plane.state_license(
            backend.actor, change, jti, action, kid=key, issuer=issuer
        )
    not_remote(key=key, issuer=issuer)
    result = backend.set_license_state(change, jti, action.value)
    if not result.tokens:
        raise PlaneError(
            ExitCode.REFUSED, f"{jti} is so already", f"See `licplane license show {jti}`"
        )
    return statement_of(result.tokens[0])


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


def _change(reason: str) -> Change:
    return Change(request_id=f"cli-{secrets.token_hex(12)}", reason=reason)


def _hand_out_license(issued: Issue, out: Path | None) -> None:
    found = issued.license
    say(
        f"Issued {found.jti}: number {found.number}, generation {found.generation},"
        f" until {rfc3339(found.expires_at_s)}."
    )
    hand_out(issued.token, out, issue_document(issued))


for _command in (list_, show, verify):
    license.add_command(_command)
