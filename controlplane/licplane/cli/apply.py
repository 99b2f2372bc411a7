# SPDX-License-Identifier: Apache-2.0
"""`licplane apply`: resources, bindings and licenses as files declare them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import click

from licplane.cli.changes import EXIT_DIFFERENT, change_options, changing, show_change
from licplane.cli.declared import read_declared
from licplane.cli.framework import json_option
from licplane.cli.objects import apply_documents, to_document
from licplane.errors import ExitCode, PlaneError
from licplane.service.answers import ChangeResult
from licplane.service.requests import Change


@click.command()
@click.option(
    "-f",
    "--file",
    "files",
    multiple=True,
    required=True,
    type=click.Path(allow_dash=True, path_type=Path),
    metavar="FILE|DIR",
    help="YAML, JSON or TOML; a folder stands for all such files below it; - is YAML from"
    " standard input (repeatable).",
)
@click.option(
    "--prune",
    is_flag=True,
    help="Delete resources and bindings, and revoke licenses, that the files do not name.",
)
@click.option(
    "--exit-code",
    "exit_code",
    is_flag=True,
    help=f"End with {EXIT_DIFFERENT} if something changed (with --dry-run: would change).",
)
@change_options
@json_option
@click.pass_context
def apply(
    context: click.Context,
    change: Change,
    passphrase_file: Path | None,
    files: tuple[Path, ...],
    *,
    prune: bool,
    exit_code: bool,
) -> None:
    """Make the control plane hold what FILEs declare, all of it or nothing, and show the diff.

    Applied again it changes nothing. What the files do not name stays, unless --prune says
    otherwise. --dry-run shows the diff, and which hosts, workloads and live sockets it would cut.

    \b
    licplane apply -f policy/ --dry-run
    licplane apply -f policy/ --reason 'orders may use the new database'
    """
    if change.etag:
        raise click.UsageError("--etag is for one thing; use it with `resource put` and the like.")
    declared = read_declared(files)
    if not declared and prune:
        raise PlaneError(
            ExitCode.REFUSED,
            "The files declare nothing, and --prune would delete everything",
            "Name files with documents, or delete what is meant by name",
        )
    documents = [to_document(one) for one in declared]
    with changing(passphrase_file) as backend:
        result = apply_documents(backend, change, documents, prune=prune)
    show_change(result, f"Applied {_summary(result)}.")
    if exit_code and result.changed:
        context.exit(EXIT_DIFFERENT)


def _summary(result: ChangeResult) -> str:
    counts = Counter(one.action for one in result.differences if one.action != "none")
    parts = [f"{count} {action}d" for action, count in sorted(counts.items())]
    return f"{', '.join(parts) or 'the documents'}, revision {result.revision}"
