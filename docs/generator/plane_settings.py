# SPDX-License-Identifier: Apache-2.0
"""docs/reference/licplane-settings.md: what `licplane serve` is told, by option or by variable."""

from __future__ import annotations

from collections.abc import Iterator

import click

from generator.pages import page, table
from generator.programs import LICPLANE


def plane_settings() -> str:
    """The page."""
    serve = LICPLANE.cli.get_command(LICPLANE.root, "serve")
    if serve is None:
        raise LookupError("licplane serve")
    found = dict(LICPLANE.variables)
    rows = list(_rows(serve))
    named = {name for name, *_ in rows}
    return page(
        "Settings of the control plane",
        "`licplane serve` takes options, or variables of the environment: the service reads them "
        "from `/etc/licplane/licplane.env`, a line `NAME=value` each. An option wins over its "
        "variable. They are read at the start: `systemctl restart licplane`, which hosts notice as "
        "a reconnect.",
        table(
            ("variable", "option", "default", "meaning"),
            ((f"`{name}`", f"`{option}`", default, words) for name, option, default, words in rows),
        ),
        "## For every command",
        table(
            ("variable", "meaning"),
            ((f"`{name}`", words) for name, words in found.items() if name not in named),
        ),
        "The package's [unit](../../systemd/README.md) keeps the state in `/var/lib/licplane` and "
        "listens on every address, unless the file says otherwise. Settings of hosts are in "
        "[settings](settings.md); what is licensed is not a setting but a "
        "[document](documents.md).",
    )


def _rows(command: click.Command) -> Iterator[tuple[str, str, str, str]]:
    for option in command.params:
        if not isinstance(option, click.Option) or not isinstance(option.envvar, str):
            continue
        told = option.to_info_dict()["default"]
        words = " ".join((option.help or "").split())
        words, _, said = words.partition(" [default: ")
        default = said.removesuffix("]") or (f"`{told}`" if told else "none")
        yield option.envvar, option.opts[0], default, words
