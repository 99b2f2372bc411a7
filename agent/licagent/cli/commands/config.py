# SPDX-License-Identifier: Apache-2.0
"""`licagent config`: check the agent's settings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from licagent.cli.session import Session, with_session

if TYPE_CHECKING:
    from licagent.cli.output import Block


@click.group("config", short_help="Check the agent's settings.")
def config_group() -> None:
    """Check the agent's settings."""


@config_group.command("check")
@click.argument("file", required=False, type=click.Path(path_type=Path), metavar="[FILE]")
@click.option(
    "--live", is_flag=True, help="Ask the running daemon too, and show what awaits its restart."
)
@with_session()
def check(session: Session, file: Path | None, live: bool) -> None:
    """Read the settings as the daemon would, and show each value and where it comes from.

    Needs no daemon. Every problem is named with its line and a suggestion. FILE stands for
    the settings file in use.
    """
    from dataclasses import replace

    from licagent.domain.config_reader import describe

    if file is not None:
        session = replace(session, config_path=file)
    rows = describe(session.settings())
    result: dict[str, Any] = {"ok": True, "settings": rows}
    if live:
        result["pending"] = _pending(rows, session.call("config.check"))
    session.emit(result, _blocks)


def _pending(rows: list[dict[str, str]], running: Mapping[str, Any]) -> list[dict[str, object]]:
    """Settings whose written value the running daemon does not have."""
    now = {row.get("key"): row.get("value") for row in running.get("settings", ())}
    return [
        {"key": row["key"], "written": row["value"], "running": now[row["key"]]}
        for row in rows
        if row["key"] in now and now[row["key"]] != row["value"]
    ]


def _blocks(result: Mapping[str, Any]) -> Iterator[Block]:
    from licagent.cli.output import Cell, Line, Table

    yield Table(
        ("key", "value", "from"),
        [
            (row["key"], row["value"], Cell(row["source"], "dim"))
            for row in result.get("settings", ())
        ],
    )
    if "pending" not in result:
        return
    if not result["pending"]:
        yield Line("the running daemon has these settings", "good")
        return
    yield Table(
        ("key", "running", "written"),
        [(row["key"], row["running"], row["written"]) for row in result["pending"]],
        title="Waiting for a restart of the daemon",
    )
