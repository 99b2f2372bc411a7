# SPDX-License-Identifier: Apache-2.0
"""`licagent policy`: check, apply and show resources and bindings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from licagent.cli.session import Session, with_session

if TYPE_CHECKING:
    from licagent.cli.output import Block

Row = Mapping[str, Any]

APPLY_TIMEOUT_S: Final = 60.0
"""100,000 bindings are compiled and written before the daemon answers."""

_FILES: Final = click.argument(
    "files", nargs=-1, type=click.Path(path_type=Path), metavar="[FILE...]"
)


@click.group("policy", short_help="Check, apply and show resources and bindings.")
def policy_group() -> None:
    """Check, apply and show resources and bindings."""


@policy_group.command("check")
@_FILES
@click.option("--installed", is_flag=True, help="Together with the installed files.")
@click.option("--live", is_flag=True, help="Let the running daemon judge, by what it knows.")
@with_session(APPLY_TIMEOUT_S)
def check(session: Session, files: tuple[Path, ...], installed: bool, live: bool) -> None:
    """Judge policy files as the daemon would; change nothing.

    Needs no daemon. FILEs are judged together, as a whole policy; without any, the installed
    ones are (policy.d/*.toml). Every problem is named with file, line, key and suggestion,
    and the exit status is 7.
    """
    from licagent.cli.offline import check_policy, policy_files, read_licenses, read_policy_files

    config = session.settings().config
    there = policy_files(config.policy_dir)
    chosen = list(files)
    if installed or not files:
        names = {file.name for file in files}
        chosen += [path for path in there if path.name not in names]
    texts = read_policy_files(chosen)
    if live:
        result = session.call("policy.check", files=_as_params(texts))
    else:
        result = check_policy(texts, read_licenses(config), config)
    session.emit(result, check_blocks)


def _as_params(texts: list[tuple[str, str]]) -> list[dict[str, str]]:
    return [{"name": Path(name).name, "text": text} for name, text in texts]


def check_blocks(result: Row) -> Iterator[Block]:
    """What `policy check` shows of a good policy."""
    from licagent.cli.output import Line

    for warning in result.get("warnings") or ():
        hint = f" ({warning['suggestion']})" if warning.get("suggestion") else ""
        yield Line(f"note: {warning.get('file')}: {warning.get('message')}{hint}", "warn")
    yield Line(f"good: {_amounts(result)}", "good")


def _amounts(result: Row) -> str:
    from licagent.cli.words import count

    return ", ".join(
        count(result.get(f"{noun}s"), noun) for noun in ("resource", "binding", "rule")
    )


@policy_group.command("apply")
@_FILES
@with_session(APPLY_TIMEOUT_S)
def apply(session: Session, files: tuple[Path, ...]) -> None:
    """Put the installed policy in force, all of it or nothing.

    FILEs are first installed into policy.d under their names. A policy with any problem is
    refused whole: nothing is installed, the last good policy stays in force, exit status 7.
    """
    from licagent.cli.offline import read_policy_files

    params = _as_params(read_policy_files(files)) if files else []
    session.emit(session.call("policy.apply", files=params), _apply_blocks)


def _apply_blocks(result: Row) -> Iterator[Block]:
    from licagent.cli.output import Line

    verb = "in force" if result.get("changed", True) else "was in force already"
    yield Line(f"generation {result.get('generation')} {verb}: {_amounts(result)}", "good")


@policy_group.command("show")
@with_session()
def show(session: Session) -> None:
    """The policy in force: its resources, its bindings, and where each is written."""
    session.emit(session.call("policy.show"), show_blocks)


def show_blocks(result: Row) -> Iterator[Block]:
    """What `policy show` shows."""
    from licagent.cli.output import Cell, Line, Table

    yield Line(
        f"generation {result.get('generation')}, loaded {result.get('loaded_at')},"
        f" {result.get('rules')} rules"
    )
    yield Table(
        ("resource", "kind", "mode", "what", "from"),
        [
            (
                row.get("name"),
                row.get("kind"),
                Cell(row.get("mode"), "good" if row.get("mode") == "enforce" else "warn"),
                "; ".join(str(item) for item in row.get("covers") or ()),
                row.get("source"),
            )
            for row in result.get("resources", ())
        ],
        title="Resources",
        empty="none",
    )
    yield Table(
        ("binding", "license", "selectors", "resources", "from"),
        [
            (
                row.get("name"),
                row.get("license"),
                " and ".join(str(item) for item in row.get("selectors") or ()),
                ", ".join(str(item) for item in row.get("resources") or ()) or "all of the license",
                row.get("source"),
            )
            for row in result.get("bindings", ())
        ],
        title="Bindings",
        empty="none: nobody may use a resource that is enforced",
    )
