# SPDX-License-Identifier: Apache-2.0
"""`licagent leave`: end this host's membership, with its last usage settled."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

import click

from licagent.cli.session import Session, with_session
from licagent.local.errors import ErrorCode, LocalError

if TYPE_CHECKING:
    from licagent.cli.output import Block

_WAIT_S: Final = 60
_WAIT_MAX_S: Final = 3_500
_ANSWER_S: Final = 3_600.0
"""The daemon waits for the control plane as long as it is told; then it answers."""


@click.command(short_help="Leave the control plane, with the last usage settled.")
@click.option(
    "--wait",
    "wait_s",
    type=click.IntRange(0, _WAIT_MAX_S),
    default=_WAIT_S,
    show_default=True,
    metavar="SECONDS",
    help="How long to wait until this host is out; it goes on by itself afterwards.",
)
@click.option(
    "--forget",
    is_flag=True,
    help="Forget a control plane that is lost for good: nothing is settled.",
)
@with_session(_ANSWER_S)
def leave(session: Session, wait_s: int, forget: bool) -> None:
    """End this host's membership of its control plane.

    Its licenses from there end at once. What was used until then is committed and delivered, and
    when the control plane has all of it this host's certificate is revoked, and its identity,
    catalog and leases are removed here. Licenses and policy from files stay as they are.

    Exit status 8 when it is not done after --wait: what is missing is said, and it goes on.
    """
    result = session.call("leave", wait_s=wait_s, forget=forget)
    if not result.get("left"):
        raise LocalError(
            ErrorCode.BUSY,
            f"this host is leaving, and not out yet: {result.get('problem')}",
            "it goes on by itself; see licagent status",
        )
    session.emit(result, leave_blocks)


def leave_blocks(result: Mapping[str, Any]) -> Iterator[Block]:
    """What `leave` shows."""
    from licagent.cli.output import Line

    if result.get("settled"):
        yield Line(f"left: {result.get('host_id')} is out, and its usage is settled", "good")
    else:
        yield Line(f"forgotten: {result.get('host_id')} is nobody's host now", "good")
        yield Line("usage that was not acknowledged stays in the spool, undelivered", indent=2)
