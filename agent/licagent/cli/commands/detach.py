# SPDX-License-Identifier: Apache-2.0
"""`licagent detach`: take enforcement away from this host."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import click

from licagent.cli.session import Session, refused, with_session
from licagent.local.errors import ErrorCode, LocalError

if TYPE_CHECKING:
    from licagent.cli.output import Block


@click.command(short_help="Take enforcement away from this host.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@with_session(10.0)
def detach(session: Session, yes: bool) -> None:
    """Take enforcement away from this host: remove all of licagent's programs and maps.

    Nothing of any other agent is touched. A running daemon removes them and ends; without one
    this command does it, as root. Running the daemon again brings enforcement back.

    Usage that the kernel holds is committed before. Where that fails, or there is no daemon, it
    is lost, and the answer says so (`usage_lost`): start the daemon first if it matters.
    """
    if not yes:
        if not sys.stdin.isatty():
            raise click.UsageError("nobody to ask: say --yes")
        click.confirm("Everything the policy denies will pass. Detach?", abort=True, err=True)
    try:
        result: Mapping[str, Any] = session.call("detach")
    except LocalError as error:
        if error.code is not ErrorCode.NOT_RUNNING:
            raise
        result = _directly(session)
    session.emit(result, _blocks)


def _directly(session: Session) -> Mapping[str, Any]:
    from licagent.domain.config_reader import ConfigError

    # By name, for the reason given in commands/daemon.py.
    main = importlib.import_module("licagent.daemon.detach").main
    try:
        found = main(os.environ, session.config_path)
    except ConfigError as error:
        raise refused("the settings are refused", error.problems) from error
    except PermissionError as error:
        raise LocalError(
            ErrorCode.PERMISSION, f"cannot detach: {error}", "run it as root"
        ) from error
    except TimeoutError as error:
        raise LocalError(
            ErrorCode.BUSY, f"cannot detach: {error}", "try again in a minute"
        ) from error
    return found if isinstance(found, Mapping) else {"changed": True}


def _blocks(result: Mapping[str, Any]) -> Iterator[Block]:
    from licagent.cli.output import Line, Table
    from licagent.cli.words import count, safe

    rows = result.get("detached") or ()
    if not result.get("changed", bool(rows)):
        yield Line("nothing of licagent was attached")
        return
    yield Line(f"detached: {count(len(rows), 'program')}", "warn")
    if result.get("usage_lost"):
        yield Line(f"usage since the last commit is lost: {safe(result['usage_lost'])}", "warn")
    yield Table(("hook", ">link"), [(row.get("hook"), row.get("link_id")) for row in rows])
