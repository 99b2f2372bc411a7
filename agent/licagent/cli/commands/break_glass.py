# SPDX-License-Identifier: Apache-2.0
"""`licagent break-glass`: open the host for a bounded time, on the record."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import click

from licagent.cli.session import Session, with_session
from licagent.cli.words import Duration

if TYPE_CHECKING:
    from licagent.cli.output import Block


@click.command("break-glass", short_help="Open the host for a bounded time, on the record.")
@click.option(
    "--for",
    "for_s",
    type=Duration(1, 86_400),
    metavar="TIME",
    help="How long: 15m, 1h; at most 1d.",
)
@click.option("--reason", default="", help="Why, for the record. Needed with --for.")
@click.option("--end", is_flag=True, help="Close the host again now.")
@with_session(10.0)
def break_glass(session: Session, for_s: int | None, reason: str, end: bool) -> None:
    """Open the host for a bounded time, on the record.

    Everything that the policy would deny passes until the time is over. The kernel itself
    closes the host then, whether or not the daemon still runs. Both ends are events.
    """
    if end == (for_s is not None):
        raise click.UsageError("give either --for TIME --reason TEXT, or --end")
    if for_s is not None and not reason.strip():
        raise click.UsageError("--reason is needed: it stands in the record")
    params: dict[str, object] = {"end": True} if end else {"for_s": for_s, "reason": reason}
    session.emit(session.call("break_glass", **params), _blocks)


def _blocks(result: Mapping[str, Any]) -> Iterator[Block]:
    from licagent.cli.output import Line

    opened = result.get("break_glass")
    if opened:
        yield Line(f"open until {opened.get('until')}: {opened.get('reason')}", "bad")
        yield Line("close it sooner with: licagent break-glass --end", indent=2)
    elif result.get("changed", True):
        yield Line("closed: the policy decides again", "good")
    else:
        yield Line("the host was not open; nothing was changed")
