# SPDX-License-Identifier: Apache-2.0
"""`licagent run`: run a command under a license."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Final, NoReturn

import click

from licagent.cli.exits import NO_COMMAND, NOT_EXECUTABLE
from licagent.cli.session import Session, with_session
from licagent.cli.words import Duration, safe
from licagent.local.errors import ErrorCode, LocalError

_AGAIN_S: Final = 0.1
_COMING: Final = frozenset({ErrorCode.NOT_FOUND, ErrorCode.REFUSED})
"""A license that was issued a moment ago is on its way, or its lease is."""


@click.command(
    short_help="Run a command under a license.",
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
)
@click.option("--license", "license_id", required=True, metavar="ID", help="The license.")
@click.option(
    "--wait",
    "wait_s",
    type=Duration(1, 86_400),
    metavar="FOR",
    help="Wait that long (30s, 5m) for the license to hold on this host.",
)
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED, metavar="-- CMD...")
@with_session(10.0)
def run(
    session: Session, license_id: str, wait_s: int | None, command: tuple[str, ...]
) -> NoReturn:
    """Run a command, and all it starts, under a license.

    The command gets a cgroup of its own that is bound to the license, takes this process's
    place in it, and keeps its user, environment and descriptors. The exit status is the
    command's own; 126 and 127 as a shell has them, when it cannot be started.

    With --wait the command is started only once the license holds here, and not at all if it
    does not in time, or was revoked: for one that was issued a moment ago.
    """
    enter_cgroup(prepared(session, license_id, wait_s))
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


def prepared(session: Session, license_id: str, wait_s: int | None) -> str:
    """The directory of a cgroup that is bound to the license. LocalError if there is none."""
    ends_s = time.monotonic() + (wait_s or 0)
    given = {} if wait_s is None else {"valid": True}
    while True:
        try:
            found = session.call("run.prepare", license=license_id, pid=os.getpid(), **given)
        except LocalError as error:
            is_final = error.code not in _COMING or error.details.get("state") == "revoked"
            if wait_s is None or is_final or time.monotonic() >= ends_s:
                raise
            time.sleep(_AGAIN_S)
        else:
            return str(found["cgroup"])


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
