# SPDX-License-Identifier: Apache-2.0
"""`licagent usage`: what was used, by license, process or unit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import click

from licagent.cli.session import Session, with_session

if TYPE_CHECKING:
    from licagent.cli.output import Block


@click.command(short_help="What was used, by license, process or unit.")
@click.option(
    "--by",
    type=click.Choice(["license", "process", "unit"]),
    default="license",
    show_default=True,
    help="What to add up by.",
)
@with_session()
def usage(session: Session, by: str) -> None:
    """What was used of licensed resources, since the agent's programs were loaded."""
    session.emit(session.call("usage", by=by), usage_blocks)


def usage_blocks(result: Mapping[str, Any]) -> Iterator[Block]:
    """What `usage` shows."""
    from licagent.cli.output import Table
    from licagent.cli.words import amount

    yield Table(
        (str(result.get("by")), "license", ">sockets", ">allowed", ">denied", ">sent", ">received"),
        [
            (
                row.get("name"),
                row.get("license"),
                row.get("sockets"),
                row.get("allowed"),
                row.get("denied"),
                amount(row.get("tx_bytes")),
                amount(row.get("rx_bytes")),
            )
            for row in result.get("rows", ())
        ],
        empty="nothing used yet",
    )
