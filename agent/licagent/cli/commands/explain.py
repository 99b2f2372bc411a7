# SPDX-License-Identifier: Apache-2.0
"""`licagent explain`: why may a process or socket do what it does, or not?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import click

from licagent.cli.session import Session, with_session

if TYPE_CHECKING:
    from licagent.cli.output import Block

Row = Mapping[str, Any]


@click.command(short_help="Why may a process or socket do what it does, or not?")
@click.argument("target", metavar="PID|SOCKET")
@with_session()
def explain(session: Session, target: str) -> None:
    """Why may a process or socket do what it does, or not?

    PID is a process. SOCKET is "cookie:N", or "LOCAL->REMOTE" as ss(8) shows the two ends
    ("10.0.0.9:40312->10.0.5.7:5432"). Says which license and which binding each socket runs
    under and since when, and for each resource what is missing and how to get it. Of a process
    with more than 1,000 sockets so many are told, and how many are not.
    """
    session.emit(session.call("explain", **_target(target)), explain_blocks)


def _target(text: str) -> dict[str, object]:
    if text.isascii() and text.isdigit():
        number = int(text)
        if 1 <= number <= 2**22:
            return {"pid": number}
        raise click.BadParameter(f"{text} is no process id; a cookie is written cookie:{text}")
    if text.startswith("cookie:"):
        cookie = text.removeprefix("cookie:")
        if not (cookie.isascii() and cookie.isdigit()):
            raise click.BadParameter(f"{text!r}: a cookie is a number, as `ss -e` prints it")
        return {"socket": cookie}
    if "->" in text:
        return {"socket": text.replace(" ", "")}
    raise click.BadParameter(f"{text!r} is neither a process id, cookie:N nor LOCAL->REMOTE")


def explain_blocks(result: Row) -> Iterator[Block]:
    """What `explain` shows."""
    from licagent.cli.output import Fields, Line

    process = result.get("process") or {}
    if process:
        user = " ".join(
            str(process[key]) for key in ("uid", "user") if process.get(key) is not None
        )
        yield Line(f"{process.get('name')}[{process.get('pid')}]")
        keys = ("executable", "unit", "container", "cgroup", "started_at")
        yield Fields((("user", user or None), *((key, process.get(key)) for key in keys)))
        if process.get("in_scope") is False:
            outside = "it is outside the cgroup_root of this agent, so nothing is asked of it"
            yield Line(f"{outside}; inside, this would hold:", "warn")
    for socket_ in result.get("sockets", ()):
        yield from _socket(socket_)
    if result.get("sockets_left_out"):
        yield Line("")
        yield Line(
            f"{result['sockets_left_out']} more sockets of it are not shown; ask for one of them "
            "by its cookie or its two ends",
            "warn",
        )
    for resource in result.get("resources", ()):
        yield from _resource(resource)
    if not result.get("sockets") and not result.get("resources"):
        yield Line("no resource of the policy concerns it")


def _socket(row: Row) -> Iterator[Block]:
    from licagent.cli.output import Cell, Fields, Line
    from licagent.cli.sentences import why
    from licagent.cli.words import amount

    verdict = str(row.get("verdict") or "none")
    ends = f"{row.get('local')} -> {row.get('remote')}" if row.get("remote") else row.get("local")
    yield Line("")
    yield Line(f"socket {row.get('protocol')} {ends} (cookie:{row.get('cookie')})")
    traffic = None
    if row.get("tx_bytes") is not None:
        traffic = f"{amount(row['tx_bytes'])} sent, {amount(row.get('rx_bytes'))} received"
    yield Fields(
        (
            ("verdict", Cell(f"{verdict}: {why(row.get('reason'))}", _style(verdict))),
            *_grounds(row),
            ("since", row.get("since")),
            ("traffic", traffic),
        )
    )


def _resource(row: Row) -> Iterator[Block]:
    from licagent.cli.output import Cell, Fields, Line
    from licagent.cli.sentences import why

    verdict = str(row.get("verdict") or "none")
    reason = f"{verdict}: {why(row.get('reason'))}"
    if row.get("errno"):
        reason += f" ({row['errno']})"
    yield Line("")
    yield Line(f"resource {row.get('resource')}")
    yield Fields((("verdict", Cell(reason, _style(verdict))), *_grounds(row, resource=False)))
    for missing in row.get("missing", ()):
        yield Line(f"missing: {missing}", "warn", indent=2)
    for how in row.get("how", ()):
        yield Line(f"to get it: {how}", indent=2)


def _grounds(row: Row, *, resource: bool = True) -> tuple[tuple[str, object], ...]:
    selectors = " and ".join(str(selector) for selector in row.get("selectors") or ())
    pairs = (
        ("license", row.get("license")),
        ("binding", row.get("binding")),
        ("selectors", selectors or None),
        ("rule", row.get("rule")),
    )
    return (("resource", row.get("resource")), *pairs) if resource else pairs


def _style(verdict: str) -> str:
    from licagent.cli.sentences import VERDICT_STYLE

    return VERDICT_STYLE.get(verdict.lower(), "")
