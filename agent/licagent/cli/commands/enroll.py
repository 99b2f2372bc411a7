# SPDX-License-Identifier: Apache-2.0
"""`licagent enroll`: join a control plane."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from licagent.cli.session import Session, with_session
from licagent.local.errors import ErrorCode, LocalError

if TYPE_CHECKING:
    from licagent.cli.output import Block

ENROLL_TIMEOUT_S: Final = 60.0
"""The control plane is asked over the network, and the kernel brought to what it gives."""

_JOIN_MAX: Final = 16 * 1024

_FILE: Final = click.Path(path_type=Path, dir_okay=False)


@click.command(short_help="Join a control plane.")
@click.argument("join", metavar="[JOIN]", required=False)
@click.option("--request", type=_FILE, metavar="FILE", help="Write a request, for no network.")
@click.option("--bundle", type=_FILE, metavar="FILE", help="Join by the answer to a request.")
@click.option("--again", "identity", flag_value="again", help="The same host, with its key.")
@click.option("--new", "identity", flag_value="new", help="A new host: forget what it was.")
@with_session(ENROLL_TIMEOUT_S)
def enroll(
    session: Session,
    join: str | None,
    request: Path | None,
    bundle: Path | None,
    identity: str | None,
) -> None:
    """Join a control plane, which then gives this host its licenses and policy.

    JOIN is what `licplane token create` printed; `-` reads it from standard input, where no
    list of processes shows it. A host that has joined already keeps its identity, and nothing
    changes. After a clone was found, `licplane host split` prints two commands: --again, for the
    machine that stays this host, and --new, for its copy.

    Without a network: --request FILE writes a request, `licplane host admit` answers it with a
    bundle, and --bundle FILE takes that. No daemon needs to run; one that does goes on with
    what was joined at once. Exit status 7 when it was refused: nothing has changed.
    """
    if sum(each is not None for each in (join, request, bundle)) != 1:
        raise click.UsageError("name one of JOIN, --request FILE and --bundle FILE")
    params: dict[str, object] = {"identity": identity or "keep"}
    if join is not None:
        params["join"] = _from_stdin() if join == "-" else join
    elif bundle is not None:
        if not bundle.is_file():
            raise LocalError(ErrorCode.NOT_FOUND, f"{bundle}: there is no such file")
        params["bundle"] = str(bundle.resolve())
    else:
        params["request"] = True
    try:
        result = session.call("enroll", **params)
    except LocalError as error:
        if error.code is not ErrorCode.NOT_RUNNING or os.geteuid() != 0:
            raise
        result = _without_daemon(session, params)
    if request is not None:
        _write(request, str(result.get("request") or ""))
        result = {**result, "request": str(request)}
    session.emit(result, enroll_blocks)


def _without_daemon(session: Session, params: Mapping[str, object]) -> dict[str, Any]:
    # By name: the command line stands beside the daemon, not above it, and only a command that
    # does the daemon's work in its place may load it.
    alone = importlib.import_module("licagent.daemon.control.enrolling").alone
    return dict(alone(session.settings().config, params))


def _from_stdin() -> str:
    text = sys.stdin.read(_JOIN_MAX + 1).strip()
    if not text or len(text) > _JOIN_MAX:
        raise LocalError(ErrorCode.INVALID_PARAMS, "standard input holds no join token")
    return text


def _write(path: Path, text: str) -> None:
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with open(fd, "w", encoding="utf-8") as stream:
            stream.write(text)
    except OSError as error:
        raise LocalError(ErrorCode.REFUSED, f"{path}: {error.strerror}") from error


def enroll_blocks(result: Mapping[str, Any]) -> Iterator[Block]:
    """What `enroll` shows."""
    from licagent.cli.output import Fields, Line

    if result.get("request"):
        yield Line(f"written: {result['request']}", "good")
        yield Line("next, at the control plane: licplane host admit FILE", indent=2)
        return
    verb = "enrolled" if result.get("changed") else "was enrolled already"
    yield Line(f"{verb}: {result.get('host_id')}", "good")
    labels = result.get("labels") or {}
    yield Fields(
        (
            ("server", result.get("server")),
            ("labels", ", ".join(f"{name}={text}" for name, text in labels.items()) or "none"),
            ("certificate", f"until {result.get('certificate_end')}, renewed by itself"),
        )
    )
