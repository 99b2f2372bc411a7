# SPDX-License-Identifier: Apache-2.0
"""`licagent top`: use as it happens."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterable
from typing import Any, Final

import click

from licagent.cli.exits import INTERRUPTED
from licagent.cli.session import Session, emit_json, with_session
from licagent.local.usage_shapes import TOP_BY
from licagent.local.wire import SCHEMA_VERSION

SORT_WORDS: Final = (
    "cpu", "mem", "in", "out", "read", "write", "stored", "time", "pid", "procs", "user", "unit",
    "license", "command",
)  # fmt: skip
"""As licagent.cli.top.arrange.SORTS, without loading it: a test compares them."""

TOP_TIMEOUT_S: Final = 5.0
"""A reading of 10,000 processes takes a busy host longer than `status` does."""


@click.command(short_help="Use as it happens, by process, unit or license.")
@click.option(
    "--by", type=click.Choice(TOP_BY), default="process", show_default=True, help="A row for each."
)
@click.option(
    "-s", "--sort", type=click.Choice(SORT_WORDS), default="cpu", show_default=True,
    metavar="COLUMN", help=f"Sort by: {', '.join(SORT_WORDS)}.",
)  # fmt: skip
@click.option("-r", "--reverse", is_flag=True, help="The other way round.")
@click.option("-F", "--filter", "text", default="", metavar="TEXT",
              help="Only what has TEXT in a name, user, unit or license.")  # fmt: skip
@click.option("-u", "--user", default="", metavar="NAME", help="Only this user's processes.")
@click.option("-l", "--license", "license_id", metavar="ID",
              help="Only of this license; '' for what runs under none.")  # fmt: skip
@click.option("-p", "--pid", "pids", multiple=True, type=click.IntRange(1, 2**22),
              help="Only this process; may be given again.")  # fmt: skip
@click.option("-t", "--tree", is_flag=True, help="Processes below their parents.")
@click.option("-a", "--totals", is_flag=True, help="What was used so far, instead of how fast.")
@click.option("--wire", is_flag=True, help="Bytes on the wire instead of payload.")
@click.option("--exited/--no-exited", default=True, show_default=True,
              help="Keep processes that ended for a minute.")  # fmt: skip
@click.option("-d", "--delay", "delay_s", type=click.FloatRange(0.3, 3600), default=1.5,
              show_default=True, metavar="SECONDS", help="Between two readings.")  # fmt: skip
@click.option("-b", "--batch", is_flag=True, help="Print tables instead of using the terminal.")
@click.option("-n", "--iterations", type=click.IntRange(1), metavar="N",
              help="End after so many tables.")  # fmt: skip
@click.option("--once", is_flag=True, help="One table, then end: -b -n 1.")
@click.option("--no-mouse", is_flag=True, help="Leave the mouse to the terminal.")
@with_session(TOP_TIMEOUT_S)
def top(
    session: Session,
    *,
    delay_s: float,
    batch: bool,
    iterations: int | None,
    once: bool,
    no_mouse: bool,
    **wanted: Any,
) -> None:
    """Use as it happens: CPU, memory, bytes in and out, storage reads and writes, footprint.

    CPU% is of one CPU. IN and OUT are payload bytes a second, READ and WRITE those of storage;
    `a` shows totals instead. A process that ended stays for a minute, as `<name>`. A title with
    `~` is an estimate on this host; `n/a` is not measured, which is not zero.

    Keys are those of htop: arrows, F3 or / search, F4 or \\ filter, F5 or t tree, F6 or > sort by,
    P M T N by CPU, memory, time and pid, I the other way round, u by user, K kernel threads,
    F follow, Space fold, p pause, F10 or q quit. Tab goes on to units and licenses, a shows
    totals, w bytes on the wire, x what ended, Enter all figures of a row, h help.

    `--once --json` prints one object; `-b --json` one object a line. Both wait one --delay for
    rates. NO_COLOR is heeded.
    """
    from licagent.cli.top.poll import Poll

    view = _view(wanted)
    poll = Poll(session.call)
    if once:
        batch, iterations = True, iterations or 1
    if batch or session.as_json:
        try:
            _batch(session, poll, view, delay_s=delay_s, iterations=iterations)
        except KeyboardInterrupt:
            raise click.exceptions.Exit(INTERRUPTED) from None
        return
    if not (sys.stdin.isatty() and sys.stdout.isatty()) or os.environ.get("TERM") == "dumb":
        raise click.UsageError("this is no terminal to draw on; print tables with -b or --once")
    poll.sample(view.by)  # no daemon, no permission: said before the screen is taken
    from licagent.cli.top.screen import run

    status = run(poll, view, delay_s=delay_s, iterations=iterations, mouse=not no_mouse)
    raise click.exceptions.Exit(status)


def _view(wanted: dict[str, Any]) -> Any:
    from licagent.cli.top.arrange import View

    by = wanted["by"]
    if wanted["tree"] and by != "process":
        raise click.UsageError(f"a {by} has no children: --tree goes with --by process")
    return View(
        by=by,
        sort=wanted["sort"],
        is_reversed=wanted["reverse"],
        is_tree=wanted["tree"],
        totals=wanted["totals"],
        wire=wanted["wire"],
        exited=wanted["exited"],
        text=wanted["text"],
        user=wanted["user"],
        license=wanted["license_id"],
        pids=frozenset(wanted["pids"]),
    )


def _batch(
    session: Session, poll: Any, view: Any, *, delay_s: float, iterations: int | None
) -> None:
    from licagent.cli.top.batch import as_object, as_text

    is_ascii = "utf" not in (sys.stdout.encoding or "").lower()
    poll.sample(view.by)
    printed = 0
    while iterations is None or printed < iterations:
        time.sleep(delay_s)
        sample = poll.sample(view.by)
        if not session.as_json:
            lines: Iterable[str] = as_text(sample, view, width=_width(), is_ascii=is_ascii)
            gap = "\n" if printed else ""
            sys.stdout.write(gap + "".join(f"{line}\n" for line in lines))
        elif iterations == 1:
            emit_json(as_object(sample, view))
        else:
            document = {"schema_version": SCHEMA_VERSION, **as_object(sample, view)}
            sys.stdout.write(json.dumps(document) + "\n")
        sys.stdout.flush()
        printed += 1


def _width() -> int | None:
    """Of the terminal; None for a pipe or file, where nothing has to be cut."""
    if not sys.stdout.isatty():
        return None
    return os.get_terminal_size(sys.stdout.fileno()).columns or 80
