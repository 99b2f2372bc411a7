# SPDX-License-Identifier: Apache-2.0
"""What every command shares: the daemon's address, --json, --timeout, and how errors end it."""

from __future__ import annotations

import functools
import json
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn

import click

from licagent.cli.exits import abandon_output
from licagent.cli.words import safe
from licagent.local.client import DEFAULT_TIMEOUT_S, LocalClient
from licagent.local.errors import EXIT_STATUS, ErrorCode, LocalError
from licagent.local.wire import SCHEMA_VERSION, SOCKET_NAME

if TYPE_CHECKING:
    from licagent.cli.output import Block
    from licagent.domain.config_reader import Settings

_RUNTIME_DIR: Final = "LICAGENT_RUNTIME_DIR"


@dataclass(frozen=True, slots=True)
class Session:
    """One run of one command."""

    as_json: bool
    timeout_s: float
    config_path: Path | None

    def client(self) -> LocalClient:
        """A client of the daemon these settings name."""
        return LocalClient(self.socket_path(), self.timeout_s)

    def call(self, method: str, **params: object) -> dict[str, Any]:
        """A method's result."""
        return self.client().call(method, params)

    def socket_path(self) -> Path:
        """The daemon's socket. A bad settings file is a warning: the daemon may run regardless."""
        directory = os.environ.get(_RUNTIME_DIR)
        if directory and directory.startswith("/"):
            return Path(directory) / SOCKET_NAME
        from licagent.domain.config import AgentConfig
        from licagent.domain.config_reader import ConfigError, read_config

        try:
            config = read_config(os.environ, self.config_path).config
        except ConfigError as error:
            click.echo(f"licagent: settings ignored: {safe(error)}", err=True)
            config = AgentConfig()
        return config.socket_path

    def settings(self) -> Settings:
        """The settings. LocalError REFUSED, with the problems, if they cannot be used."""
        from licagent.domain.config_reader import ConfigError, read_config

        try:
            return read_config(os.environ, self.config_path)
        except ConfigError as error:
            raise refused("the settings are refused", error.problems) from error

    def emit(
        self, result: Mapping[str, Any], view: Callable[[Mapping[str, Any]], Iterable[Block]]
    ) -> None:
        """Show a result: itself as JSON, or the blocks that `view` makes of it."""
        if self.as_json:
            emit_json(result)
        else:
            from licagent.cli.output import show

            show(view(result))

    def fail(self, error: LocalError) -> NoReturn:
        """Show an error and end with its status."""
        if self.as_json:
            emit_json({"error": error.as_object()})
        else:
            click.echo(f"licagent: {safe(error.message)}", err=True)
            for problem in problems_of(error):
                click.echo(f"  {problem}", err=True)
            if error.hint:
                click.echo(f"  {safe(error.hint)}", err=True)
        raise click.exceptions.Exit(EXIT_STATUS[error.code])


def emit_json(result: Mapping[str, Any], *, indent: int | None = 2) -> None:
    """Write one JSON object with schema_version to standard output."""
    document = {"schema_version": SCHEMA_VERSION, **result}
    sys.stdout.write(json.dumps(document, indent=indent) + "\n")


def problems_of(error: LocalError) -> list[str]:
    """The problems of a refused policy, license or configuration, a line each."""
    problems = error.details.get("problems")
    lines = []
    for problem in problems if isinstance(problems, list) else ():
        if not isinstance(problem, Mapping):
            continue
        line, place = problem.get("line"), safe(problem.get("file"))
        place = f"{place}:{line}" if line else place
        key = f" {safe(problem['key'])}:" if problem.get("key") else ""
        hint = f" ({safe(problem['suggestion'])})" if problem.get("suggestion") else ""
        lines.append(f"{place}:{key} {safe(problem.get('message'))}{hint}")
    return lines


def refused(message: str, problems: Iterable[object]) -> LocalError:
    """A REFUSED error that carries problems (objects with file, line, key, message...)."""
    rows = [
        {name: getattr(problem, name) for name in ("file", "line", "key", "message", "suggestion")}
        for problem in problems
    ]
    return LocalError(ErrorCode.REFUSED, message, details={"problems": rows})


def with_session(
    timeout_s: float = DEFAULT_TIMEOUT_S,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Give a command --json and --timeout, and a Session as its first argument."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        @click.option("--json", "as_json", is_flag=True, help="Print JSON, with schema_version.")
        @click.option(
            "--timeout",
            "timeout_s",
            type=click.FloatRange(min=0, min_open=True, max=3600),
            default=timeout_s,
            show_default=True,
            metavar="SECONDS",
            help="Longest wait for the daemon.",
        )
        @click.pass_context
        def command(ctx: click.Context, /, as_json: bool, timeout_s: float, **given: Any) -> Any:
            session = Session(as_json, timeout_s, ctx.meta.get("licagent.config_path"))
            try:
                return function(session, **given)
            except LocalError as error:
                session.fail(error)
            except BrokenPipeError:
                raise click.exceptions.Exit(abandon_output()) from None

        return functools.update_wrapper(command, function)

    return decorate
