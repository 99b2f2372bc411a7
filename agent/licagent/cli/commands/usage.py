# SPDX-License-Identifier: Apache-2.0
"""`licagent usage`: what was used, added up, and whether its ledger holds together."""

from __future__ import annotations

import importlib
from typing import Any, Final

import click
from click.core import ParameterSource

from licagent.cli.exits import DEGRADED
from licagent.cli.session import Session, with_session
from licagent.cli.words import Moment
from licagent.local.usage_shapes import USAGE_BY

USAGE_TIMEOUT_S: Final = 30.0
"""Three times what the daemon reads the ledger for an answer."""

VERIFY_TIMEOUT_S: Final = 600.0


@click.group(
    short_help="What was used, by license, process, unit and more.",
    invoke_without_command=True,
    subcommand_metavar="[verify]",
)
@click.option(
    "--by",
    type=click.Choice(USAGE_BY),
    default="license",
    show_default=True,
    help="What to add up by.",
)
@click.option("--since", type=Moment(), metavar="WHEN", help="10m, or 2026-01-02T03:04:05Z.")
@click.option("--until", type=Moment(), metavar="WHEN", help="The same; else now.")
@click.option("--license", metavar="ID", help="Only under this license; '' for under none.")
@click.option("--resource", metavar="NAME", help="Only of this resource; '' for of none.")
@click.option("--unit", metavar="NAME", help="Only of this unit or container.")
@click.option("--user", metavar="NAME", help="Only of this user.")
@click.option(
    "-n",
    "--limit",
    type=click.IntRange(1, 100_000),
    default=1000,
    show_default=True,
    help="At most so many rows, the largest; the rest is added up.",
)
@click.option("--wire", is_flag=True, help="Bytes on the wire instead of payload (not in JSON).")
@click.option("--csv", "as_csv", is_flag=True, help="Print CSV: whole numbers, every meter.")
@with_session(USAGE_TIMEOUT_S)
def usage_group(session: Session, *, wire: bool, as_csv: bool, **wanted: Any) -> None:
    """What was used on this host, from its signed ledger and what is still in the kernel.

    CPU, memory over time, bytes received and sent, storage read and written, and footprint over
    time. `unattributed` is what the host's own totals have and no process could be given; the
    total has it. `~` is an estimate, `?` was not measured for some of the time, `n/a` not at
    all. Amounts are of 1024: `1.4M`; `Mh` is megabytes times hours. --json and --csv have whole
    numbers: nanoseconds, bytes, bytes times milliseconds.

    Records are not cut: one counts if it overlaps --since and --until, so the window shown may
    begin a few seconds before the one asked for. How long the ledger is kept is in the settings.
    Of one that is too long for an answer the newest part is counted, and the answer says from
    when on (`counted_from`): give a window then.
    In CSV a text that a spreadsheet would take for a formula begins with an apostrophe.
    """
    context = click.get_current_context()
    if context.invoked_subcommand is not None:
        _refuse_options(context)
        return
    if as_csv and session.as_json:
        raise click.UsageError("--csv and --json exclude each other")
    result = session.call("usage", **wanted)
    if as_csv:
        from licagent.cli.usage_csv import write_csv

        write_csv(result)
        if result.get("counted_from"):
            click.echo(f"licagent: counted only since {result['counted_from']}", err=True)
        return
    from licagent.cli.usage_text import usage_blocks

    session.emit(result, lambda found: usage_blocks(found, wire=wire))


def _refuse_options(context: click.Context) -> None:
    """Options before a subcommand would do nothing, which nobody means."""
    given = [
        name
        for name in context.params
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE
    ]
    if given:
        raise click.UsageError(f"options stand after `{context.invoked_subcommand}`")


@usage_group.command("verify", short_help="Does the ledger of usage hold together?")
@click.option("--offline", is_flag=True, help="Read the state folder without the daemon.")
@with_session(VERIFY_TIMEOUT_S)
def verify(session: Session, *, offline: bool) -> None:
    """Read the whole ledger of usage from disk, and check every record's hash and signature.

    Each batch of records is signed by this host and chained to the one before, so what was
    altered, left out or put in afterwards is found. The control plane keeps the public key of
    each epoch, and checks the same: `licplane usage verify`. The exit status is 0 if all
    holds, 150 if something does not. What the spool's bound took from the beginning is no
    error; whatever else is missing is one. Without the daemon: --offline, as root.
    """
    if offline:
        # By name, as the daemon is: nothing else of the command line reads the state folder.
        read = importlib.import_module("licagent.daemon.metering.verify").verified
        result = read(session.settings().config.usage_dir)
    else:
        result = session.call("usage.verify")
    from licagent.cli.usage_text import verify_blocks

    session.emit(result, verify_blocks)
    raise click.exceptions.Exit(0 if result.get("good") is True else DEGRADED)
