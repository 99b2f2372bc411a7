# SPDX-License-Identifier: Apache-2.0
"""`licagent run`: run a command under a license."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import NoReturn

import click

from licagent.cli.exits import NO_COMMAND, NOT_EXECUTABLE
from licagent.cli.session import Session, with_session
from licagent.cli.words import safe
from licagent.local.errors import ErrorCode, LocalError


@click.command(
    short_help="Run a command under a license.",
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
)
@click.option("--license", "license_id", required=True, metavar="ID", help="The license.")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED, metavar="-- CMD...")
@with_session(10.0)
def run(session: Session, license_id: str, command: tuple[str, ...]) -> NoReturn:
    """Run a command, and all it starts, under a license.

    The command gets a cgroup of its own that is bound to the license, takes this process's
    place in it, and keeps its user, environment and descriptors. The exit status is the
    command's own; 126 and 127 as a shell has them, when it cannot be started.
    """
    result = session.call("run.prepare", license=license_id, pid=os.getpid())
    enter_cgroup(str(result.get("cgroup")))
    sys.stdout.flush()
    sys.stderr.flush()
    try:
        os.execvp(command[0], command)  # noqa: S606 - running the given command is the purpose
    except FileNotFoundError:
        click.echo(f"licagent: {safe(command[0])}: there is no such command", err=True)
        raise click.exceptions.Exit(NO_COMMAND) from None
    except OSError as error:
        click.echo(f"licagent: {safe(command[0])}: {error.strerror}", err=True)
        raise click.exceptions.Exit(NOT_EXECUTABLE) from None


def enter_cgroup(directory: str) -> None:
    """Move this process into the cgroup at `directory`. LocalError if it cannot."""
    try:
        # "0" is the writer itself (cgroup-v2.rst): no race with a reused process id.
        (Path(directory) / "cgroup.procs").write_text("0", encoding="ascii")
    except PermissionError as error:
        raise LocalError(
            ErrorCode.PERMISSION, f"no permission to enter {directory}", "run it as root"
        ) from error
    except OSError as error:
        raise LocalError(
            ErrorCode.INTERNAL,
            f"cannot enter {directory}: {error.strerror}",
            "the command was not started",
        ) from error
