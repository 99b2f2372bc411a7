# SPDX-License-Identifier: Apache-2.0
"""What all commands share: errors to exit codes, --json, passphrases, output files."""

from __future__ import annotations

import errno
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NoReturn, TypeVar

import click

from licplane.cli.completion import complete_kid
from licplane.cli.output import safe
from licplane.errors import ExitCode, PlaneError
from licplane.store.folder import PUBLIC_MODE, write_atomically
from lictoken.errors import TokenError

Command = TypeVar("Command", bound=Callable[..., Any])

EXITS: Final[dict[int, str]] = {
    ExitCode.OK: "done",
    ExitCode.INTERNAL: "internal error, or a damaged database",
    ExitCode.USAGE: "the command line, or a value, is wrong",
    ExitCode.PERMISSION: "not permitted: role, credential, passphrase, file modes",
    ExitCode.NOT_FOUND: "no such license, key, host, file or state folder",
    ExitCode.REFUSED: "refused: a bad document, state or signature; nothing was changed",
    ExitCode.BUSY: "another licplane is changing it, or the server cannot be reached",
    10: "with --exit-code: something changed, or would",
}
"""Status and meaning, as --help and the manual list them."""

_JSON: Final = "licplane.json"
_REFUSED_BY_SYSTEM: Final = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})


class ErrorGroup(click.Group):
    """The root group: turns our errors into exit codes."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except PlaneError as error:
            _fail(ctx, error.code, error.code.name, error.message, error.hint)
        except TokenError as error:
            _fail(ctx, ExitCode.REFUSED, error.refusal.name, error.detail, error.next_step)
        except BrokenPipeError:
            raise  # click ends quietly
        except OSError as error:
            refused = error.errno in _REFUSED_BY_SYSTEM
            where = f"{error.filename}: " if error.filename else ""
            _fail(
                ctx,
                ExitCode.PERMISSION if refused else ExitCode.INTERNAL,
                errno.errorcode.get(error.errno or 0, "OS_ERROR"),
                f"{where}{error.strerror or error}",
                "Check the path, its owner and the free space",
            )
        except RecursionError:
            _fail(
                ctx,
                ExitCode.REFUSED,
                "TOO_DEEP",
                "A document is nested too deeply",
                "Four levels are enough for every document",
            )


def _fail(context: click.Context, code: ExitCode, name: str, message: str, hint: str) -> NoReturn:
    """Words on stderr, with --json an object on stdout too, and the exit code."""
    # Parts of it may be what hosts and documents say of themselves.
    say(safe(f"Error: {message}. {hint}."))
    if context.meta.get(_JSON):
        print_json({"error": {"code": name, "message": message, "hint": hint}})
    context.exit(int(code))


def wants_json() -> bool:
    """Whether the running command was given --json."""
    context = click.get_current_context(silent=True)
    return bool(context and context.meta.get(_JSON))


def _note_json(context: click.Context, _: click.Parameter, value: bool) -> None:
    context.meta[_JSON] = value


def json_option(command: Command) -> Command:
    """Add --json; read it with `wants_json`."""
    return click.option(
        "--json",
        is_flag=True,
        is_eager=True,
        expose_value=False,
        callback=_note_json,
        help="Print one JSON object with a schema_version.",
    )(command)


def passphrase_option(command: Command) -> Command:
    """Add --passphrase-file."""
    return click.option(
        "--passphrase-file",
        type=click.Path(dir_okay=False, allow_dash=True, path_type=Path),
        metavar="FILE",
        help="File with the private key's passphrase, - for standard input. Else"
        " LICPLANE_PASSPHRASE, the systemd credential licplane.passphrase, or the terminal.",
    )(command)


def key_options(command: Command) -> Command:
    """Add --key, --issuer and --passphrase-file: which key signs."""
    command = passphrase_option(command)
    command = click.option(
        "--issuer", metavar="NAME", help="Sign with the newest active key of this issuer."
    )(command)
    return click.option(
        "--key", metavar="KID", shell_complete=complete_kid, help="Sign with this key."
    )(command)


def out_option(command: Command) -> Command:
    """Add --out."""
    return click.option(
        "--out",
        type=click.Path(dir_okay=False, allow_dash=True, path_type=Path),
        metavar="FILE",
        help="Write the signed text to FILE, in one step, instead of standard output.",
    )(command)


def now_s() -> int:
    """The issuer's wall clock, whole seconds."""
    return int(time.time())


def check_out(out: Path | None) -> None:
    """Refuse an --out that cannot be written, before anything is signed and registered."""
    if out is None or str(out) == "-":
        return
    if not out.parent.is_dir():
        raise PlaneError(
            ExitCode.NOT_FOUND,
            f"There is no folder {out.parent}",
            "Make it, or choose another --out",
        )
    if not os.access(out.parent, os.W_OK | os.X_OK):
        raise PlaneError(
            ExitCode.PERMISSION, f"{out.parent} cannot be written to", "Choose another --out"
        )


def hand_out(text: str, out: Path | None, document: dict[str, object]) -> None:
    """Deliver a signed text: to --out, inside the JSON object, or to standard output."""
    to_file = out is not None and str(out) != "-"
    if out is not None and to_file:
        try:
            write_atomically(out, text.encode(), PUBLIC_MODE)
        except OSError as error:
            raise PlaneError(
                ExitCode.INTERNAL,
                f"It is signed and registered, but {out} cannot be written: {error.strerror}",
                "Print it again with `licplane license show ID --token` or `--revocation`",
            ) from error
        document = {**document, "out": str(out)}
    if wants_json():
        print_json({**document, "token": text})
    elif not to_file:
        click.echo(text, nl=False)


def say(words: str) -> None:
    """Words for people, on stderr, so that stdout stays data."""
    click.echo(words, err=True)


def print_json(document: dict[str, object]) -> None:
    """One JSON object on stdout."""
    click.echo(json.dumps({"schema_version": 1, **document}, indent=2, ensure_ascii=False))
