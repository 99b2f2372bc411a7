# SPDX-License-Identifier: Apache-2.0
"""Where the passphrase of a private key comes from."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Final

import click

from licplane.errors import ExitCode, PlaneError

VARIABLE: Final = "LICPLANE_PASSPHRASE"
CREDENTIAL: Final = "licplane.passphrase"
_MAX_BYTES: Final = 4096


def passphrase(file: Path | None, *, confirm: bool = False) -> str | None:
    """The passphrase, from the first source that there is; None when there is none.

    `file` ("-" is standard input), the environment's LICPLANE_PASSPHRASE, the systemd
    credential licplane.passphrase (systemd.exec(5), LoadCredential=), the terminal.
    """
    if file is not None:
        return _from_file(file)
    if VARIABLE in os.environ:
        return _checked(os.environ[VARIABLE], VARIABLE)
    folder = os.environ.get("CREDENTIALS_DIRECTORY")
    if folder and (Path(folder) / CREDENTIAL).exists():
        return _from_file(Path(folder) / CREDENTIAL)
    if sys.stdin.isatty():
        typed: str = click.prompt(
            "Passphrase of the private key", hide_input=True, confirmation_prompt=confirm, err=True
        )
        return _checked(typed, "what was typed")
    return None


def new_passphrase(file: Path | None) -> str:
    """The one that keys are to be under: from `file` ("-" is standard input) or the terminal."""
    if file is not None:
        return _from_file(file)
    if not sys.stdin.isatty():
        raise PlaneError(ExitCode.USAGE, "There is no new passphrase", "Give --new-passphrase-file")
    typed: str = click.prompt(
        "New passphrase of the private keys", hide_input=True, confirmation_prompt=True, err=True
    )
    return _checked(typed, "what was typed")


def is_given(file: Path | None) -> bool:
    """Whether there is a passphrase without asking anybody for it."""
    folder = os.environ.get("CREDENTIALS_DIRECTORY")
    credential = bool(folder and (Path(folder) / CREDENTIAL).exists())
    return file is not None or VARIABLE in os.environ or credential


def _from_file(file: Path) -> str:
    try:
        if str(file) == "-":
            data = sys.stdin.buffer.read(_MAX_BYTES + 1)
        else:
            with file.open("rb") as source:
                data = source.read(_MAX_BYTES + 1)
    except FileNotFoundError as error:
        raise PlaneError(
            ExitCode.NOT_FOUND, f"There is no passphrase file {file}", "Check --passphrase-file"
        ) from error
    if len(data) > _MAX_BYTES:
        raise PlaneError(
            ExitCode.REFUSED,
            f"{file} has more than {_MAX_BYTES} bytes",
            "Check that it is the passphrase file",
        )
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise PlaneError(
            ExitCode.REFUSED, f"{file} is not UTF-8", "Check that it is the passphrase file"
        ) from error
    return _checked(text.removesuffix("\n").removesuffix("\r"), str(file))


def _checked(text: str, source: str) -> str:
    if not text or "\n" in text:
        raise PlaneError(
            ExitCode.REFUSED,
            f"The passphrase from {source} is empty or has several lines",
            "Give one line",
        )
    return text
