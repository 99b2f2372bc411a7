# SPDX-License-Identifier: Apache-2.0
"""`licagent shadow`: who would be refused if this host enforced?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

import click

from licagent.cli.session import Session, with_session
from licagent.cli.words import Moment

if TYPE_CHECKING:
    from licagent.cli.output import Block

Row = Mapping[str, Any]

SHADOW_TIMEOUT_S: Final = 60.0
"""The daemon reads its whole log for an answer, some 30 MB, beside its work."""

_STYLE: Final = {"allow": "good", "deny": "bad", "unknown": "warn"}


@click.command(short_help="Who would be refused if this host enforced?")
@click.option("--since", type=Moment(), metavar="WHEN", help="10m, or 2026-01-02T03:04:05Z.")
@click.option(
    "-n",
    "--limit",
    type=click.IntRange(1, 20_000),
    default=1000,
    show_default=True,
    help="At most so many uses, the most frequent.",
)
@with_session(SHADOW_TIMEOUT_S)
def shadow(session: Session, **wanted: Any) -> None:
    """Who would be refused if this host enforced?

    Every use of the event log that had no valid license, or was refused, is decided again by the
    rules and licenses of now, as if host and resource enforced: `deny`, `allow`, or `unknown`.
    Unknown is what hangs on something a record does not show, such as the executable's content
    (unix:sha256), or on what changes by itself: the hours and the posture of a condition. So is a
    use that the rules allow and that was counted all the same since they are in force.

    `watched` is for how long the daemon has watched a resource, as it is now: restarts keep it,
    the time without the daemon does not count, and a resource that was gone or matches something
    else begins anew. It is no longer than the log reaches back.
    """
    session.emit(session.call("shadow", **wanted), shadow_blocks)


def shadow_blocks(result: Row) -> Iterator[Block]:
    """What `shadow` shows."""
    from licagent.cli.output import Cell, Fields, Line, Table
    from licagent.cli.words import count

    uses = result.get("uses") or {}
    told = ", ".join(f"{uses.get(word, 0)} {word}" for word in ("deny", "unknown", "allow"))
    yield Fields(
        (
            ("mode", result.get("mode")),
            ("log", f"since {result.get('since') or result.get('log_since')}"),
            ("uses", told if uses else None),
        )
    )
    if result.get("events_dropped"):
        dropped = count(result["events_dropped"], "event")
        yield Line(f"{dropped} were lost on the way, so uses may be missing here", "warn")
    yield Table(
        ("now", ">count", ">refused", "resource", "user", "executable", "unit", "last", "missing"),
        [_use(row) for row in result.get("rows", ())],
        title="Use without a license",
        empty="none was seen",
    )
    if result.get("left_out"):
        yield Line(f"{result['left_out']} more uses have no row here; see --limit", "warn")
    yield Table(
        ("resource", "mode", "watched", "rules since"),
        [
            (
                Cell(row.get("name")),
                row.get("mode"),
                _watched(row.get("watched_s")),
                row.get("rules_since"),
            )
            for row in result.get("resources", ())
        ],
        title="Resources",
        empty="the policy has none that is decided on",
    )


def _use(row: Row) -> tuple[object, ...]:
    from licagent.cli.output import Cell

    now = row.get("now") or {}
    verdict = str(now.get("verdict") or "unknown")
    container = row.get("container")
    return (
        Cell(verdict, _STYLE.get(verdict, "")),
        row.get("count"),
        row.get("refused"),
        row.get("resource"),
        row.get("user") or row.get("uid"),
        row.get("executable"),
        row.get("unit") or (str(container)[:12] if container else None),
        row.get("last_at"),
        _missing(now),
    )


def _missing(now: Row) -> str:
    from licagent.cli.sentences import why

    if now.get("verdict") == "allow":
        return f"nothing: license {now.get('license')}"
    reason = why(now.get("reason")) if now.get("reason") else ""
    return ": ".join(text for text in (reason, str(now.get("why") or "")) if text)


def _watched(seconds: object) -> object:
    from licagent.cli.words import cpu_time

    return cpu_time(seconds * 1_000_000_000) if isinstance(seconds, int) else seconds
