# SPDX-License-Identifier: Apache-2.0
"""`licagent doctor`: check this host and what can be closed on it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

import click

from licagent.cli.exits import DEGRADED, NOT_RUNNING, OK
from licagent.cli.session import Session, with_session
from licagent.local.errors import ErrorCode, LocalError

if TYPE_CHECKING:
    from licagent.cli.output import Block

_COVERAGE_STYLE: Final = {"closed": "good", "partial": "warn", "open": "bad"}


@click.command(short_help="Check this host and what can be closed on it.")
@with_session(15.0)
def doctor(session: Session) -> None:
    """Check this host and what can be closed on it.

    Lists what was checked and how to mend it, and the coverage table: each route to a resource,
    the hook and loader that close it, and what is open on this kernel. Without a daemon only
    the host's basics are checked. The exit status is 0, 150 when a check failed, 3 without a
    daemon.
    """
    try:
        result: dict[str, Any] = session.call("doctor")
        down = False
    except LocalError as error:
        if error.code is not ErrorCode.NOT_RUNNING:
            raise
        result, down = _without_daemon(session, error), True
    session.emit(result, doctor_blocks)
    failed = any(not check.get("ok") for check in result.get("checks", ()))
    raise click.exceptions.Exit(NOT_RUNNING if down else DEGRADED if failed else OK)


def _without_daemon(session: Session, error: LocalError) -> dict[str, Any]:
    from licagent.cli.offline import host_checks

    daemon = {"name": "daemon", "ok": False, "detail": error.message, "hint": error.hint}
    return {"checks": [daemon, *host_checks(session.settings().config)], "coverage": []}


def doctor_blocks(result: Mapping[str, Any]) -> Iterator[Block]:
    """What `doctor` shows."""
    from licagent.cli.output import Cell, Table

    yield Table(
        ("check", "result", "found"),
        [
            (
                row.get("name"),
                Cell("good", "good") if row.get("ok") else Cell("BAD", "bad"),
                f"{row.get('detail')}; {row['hint']}" if row.get("hint") else row.get("detail"),
            )
            for row in result.get("checks", ())
        ],
    )
    yield Table(
        ("route", "state", "hook", "loader", "detail"),
        [
            (
                row.get("route"),
                Cell(row.get("state"), _COVERAGE_STYLE.get(str(row.get("state")), "")),
                row.get("hook"),
                row.get("loader"),
                _detail(row),
            )
            for row in result.get("coverage", ())
        ],
        title="Coverage",
        empty="unknown without the daemon: what a kernel can do is found by trying",
    )


def _detail(row: Mapping[str, Any]) -> str:
    detail = str(row.get("detail") or "")
    if row.get("kernel_needed") and row.get("state") != "closed":
        detail += f" (kernel {row['kernel_needed']})"
    return detail
