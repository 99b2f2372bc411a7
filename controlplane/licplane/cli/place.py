# SPDX-License-Identifier: Apache-2.0
"""Where a command works: on a state folder or database, or over a running server.

The options stand before the command and after it; after it they win. Both win over the
environment.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Final, TypeVar

import click
from click.core import ParameterSource

Command = TypeVar("Command", bound=Callable[..., Any])

_TYPED: Final = "licplane.place.typed"
_INHERITED: Final = "licplane.place.inherited"


@dataclass(frozen=True, slots=True)
class Place:
    """What was said about where to work; None for what was not."""

    state: Path | None = None
    database: str | None = None  # SQLAlchemy URL; its state folder has no database then
    server: str | None = None  # host:port of a running licplane
    identity: Path | None = None  # PEM: private key, certificate, the server's CA
    token_file: Path | None = None  # bearer token and CA, as `licplane admin create` wrote it

    @property
    def state_dir(self) -> Path:
        """The state folder, named or usual."""
        return self.state or default_state()

    @property
    def remote(self) -> bool:
        """Whether a server is asked."""
        return self.server is not None

    def check(self) -> Place:
        """Refuse what excludes each other."""
        if self.server is None:
            if self.identity or self.token_file:
                raise click.UsageError(
                    "--identity and --token-file belong to --server HOST:PORT, which is missing."
                )
            return self
        if self.state or self.database:
            raise click.UsageError("--server excludes --state and --database.")
        if bool(self.identity) == bool(self.token_file):
            raise click.UsageError(
                "--server needs one of --identity FILE (mutual TLS listener) and"
                " --token-file FILE (public listener); `licplane admin create` makes both."
            )
        return self


def default_state() -> Path:
    """/var/lib/licplane for root, else the user's own state folder (XDG)."""
    if os.geteuid() == 0:
        return Path("/var/lib/licplane")
    home = os.environ.get("XDG_STATE_HOME") or str(Path.home() / ".local" / "state")
    return Path(home) / "licplane"


_FILE: Final = click.Path(dir_okay=False, path_type=Path)
_OPTIONS: Final[tuple[tuple[str, str, str, object, str], ...]] = (
    (
        "state",
        "DIR",
        "LICPLANE_STATE",
        click.Path(file_okay=False, path_type=Path),
        (
            "State folder: database, keys and certificates."
            "  [env: LICPLANE_STATE; default: /var/lib/licplane for root, else"
            " ~/.local/state/licplane]"
        ),
    ),
    (
        "database",
        "URL",
        "LICPLANE_DATABASE",
        None,
        (
            "Database instead of the one in the state folder, e.g."
            " postgresql+psycopg://host/licplane.  [env: LICPLANE_DATABASE]"
        ),
    ),
    (
        "server",
        "HOST:PORT",
        "LICPLANE_SERVER",
        None,
        "Ask this running licplane instead.  [env: LICPLANE_SERVER]",
    ),
    (
        "identity",
        "FILE",
        "LICPLANE_IDENTITY",
        _FILE,
        (
            "With --server: private key, certificate and CA (PEM), for the mutual TLS listener."
            "  [env: LICPLANE_IDENTITY]"
        ),
    ),
    (
        "token-file",
        "FILE",
        "LICPLANE_TOKEN_FILE",
        _FILE,
        "With --server: bearer token and CA, for the public listener.  [env: LICPLANE_TOKEN_FILE]",
    ),
)


def place(context: click.Context | None = None) -> Place:
    """Where the running command works, unchecked.

    A server that is named on the command line sets aside a state folder or database of the
    environment, and the reverse; a state folder that is named there sets aside a database.
    """
    context = context or click.get_current_context(silent=True)
    if context is None:
        return Place()
    typed, inherited = (_noted(context, key) for key in (_TYPED, _INHERITED))
    if typed.server is not None:
        inherited = replace(inherited, state=None, database=None)
    if typed.state is not None or typed.database is not None:
        inherited = replace(inherited, server=None, identity=None, token_file=None)
    if typed.state is not None:
        inherited = replace(inherited, database=None)
    if typed.identity is not None or typed.token_file is not None:
        inherited = replace(inherited, identity=None, token_file=None)
    names = [one.name for one in fields(Place)]
    return Place(*(_either(getattr(typed, n), getattr(inherited, n)) for n in names))


def _either(first: Any, second: Any) -> Any:
    return second if first is None else first


def _noted(context: click.Context, key: str) -> Place:
    found = context.meta.get(key)
    return found if isinstance(found, Place) else Place()


def _note(context: click.Context, option: click.Parameter, value: object) -> None:
    if value is None or option.name is None:
        return
    source = context.get_parameter_source(option.name)
    key = _INHERITED if source is ParameterSource.ENVIRONMENT else _TYPED
    changes: dict[str, Any] = {option.name.removeprefix("place_"): value}
    context.meta[key] = replace(_noted(context, key), **changes)


def _options(command: Command, names: tuple[str, ...], *, root: bool) -> Command:
    for name, metavar, variable, kind, text in reversed(_OPTIONS):
        if name not in names:
            continue
        command = click.option(
            f"--{name}",
            f"place_{name.replace('-', '_')}",
            type=kind,
            metavar=metavar,
            envvar=variable if root else None,
            expose_value=False,
            is_eager=True,
            callback=_note,
            hidden=not root and name != "state",
            help=text,
        )(command)
    return command


def root_options(command: Command) -> Command:
    """The options before the command, with their environment variables."""
    return _options(command, tuple(one[0] for one in _OPTIONS), root=True)


def state_option(command: Command) -> Command:
    """--state and --database after a command that never asks a server."""
    return _options(command, ("state", "database"), root=False)


def place_options(command: Command) -> Command:
    """All of them after the command; those but --state are hidden in its --help."""
    return _options(command, tuple(one[0] for one in _OPTIONS), root=False)
