# SPDX-License-Identifier: Apache-2.0
"""`licagent license`: add, list, show, remove and revoke licenses."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from licagent.cli.files import read_license
from licagent.cli.session import Session, with_session
from licagent.cli.words import safe

if TYPE_CHECKING:
    from licagent.cli.output import Block

Row = Mapping[str, Any]

MAX_LICENSE_BYTES: Final = 16 * 1024
"""The format's own cap (docs: license token)."""

CHANGE_TIMEOUT_S: Final = 10.0
"""A change waits until it is in the kernel's tables."""


@click.group("license", short_help="Add, list, show, remove and revoke licenses.")
def license_group() -> None:
    """Add, list, show, remove and revoke licenses."""


@license_group.command("list")
@with_session()
def list_(session: Session) -> None:
    """Every license this host knows, and its state."""
    session.emit(session.call("license.list"), list_blocks)


def list_blocks(result: Row) -> Iterator[Block]:
    """What `license list` shows."""
    from licagent.cli.output import Cell, Table
    from licagent.cli.words import ends_in

    styles = {"valid": "good", "not_yet_valid": "warn"}
    yield Table(
        ("license", ">number", "state", "ends in", "lease until", ">sockets", "from", "resources"),
        [
            (
                row.get("id"),
                row.get("number"),
                Cell(
                    str(row.get("state")).replace("_", " "),
                    styles.get(str(row.get("state")), "bad"),
                ),
                ends_in(row.get("state"), row.get("remaining_s")),
                row.get("lease_end"),
                row.get("holders"),
                str(row.get("origin") or "").rpartition("/")[2] or None,
                ", ".join(str(name) for name in row.get("resources") or ()),
            )
            for row in result.get("licenses", ())
        ],
        empty="no license; add one: licagent license add FILE",
    )


@license_group.command("show")
@click.argument("license_id", metavar="ID")
@with_session()
def show(session: Session, license_id: str) -> None:
    """One license: what it grants, to whom, until when, and what it is used for."""
    session.emit(session.call("license.show", id=license_id), show_blocks)


def show_blocks(result: Row) -> Iterator[Block]:
    """What `license show` shows."""
    from licagent.cli.output import Fields, Line, Table
    from licagent.cli.words import duration, ends_in

    found = result.get("license") or {}
    scope = found.get("scope") or {}
    revoked = found.get("revoked") or {}
    yield Fields(
        (
            ("license", found.get("id")),
            ("number", found.get("number")),
            ("generation", found.get("generation")),
            ("state", str(found.get("state")).replace("_", " ")),
            ("reason", found.get("reason")),
            ("revoked", _revocation(revoked) if revoked else None),
            ("issuer", found.get("issuer")),
            ("key", found.get("kid")),
            ("licensee", found.get("subject")),
            (
                "scope",
                "; ".join(f"{name} {_words(value)}" for name, value in scope.items() if value)
                or None,
            ),
            ("not before", found.get("not_before")),
            ("expires", found.get("expires_at")),
            ("ends in", ends_in(found.get("state"), found.get("remaining_s"))),
            ("grace", duration(found["grace_s"]) if found.get("grace_s") else None),
            ("on failure", found.get("failure_mode")),
            ("hosts", _words(found.get("hosts")) or None),
            ("selectors", _words(found.get("selectors")) or None),
            ("bindings", _words(found.get("bindings")) or "none: nobody may use it here"),
            ("sockets", found.get("holders")),
            ("lease", f"until {found['lease_end']}" if found.get("lease_end") else None),
            ("from", found.get("origin") or found.get("file")),
        )
    )
    yield Table(
        ("resource", "actions", "limits", "conditions"),
        [
            (
                row.get("resource"),
                _words(row.get("actions")),
                _words(row.get("limits")),
                "; ".join(_condition(each) for each in row.get("conditions") or ()),
            )
            for row in found.get("entitlements") or ()
        ],
        title="Entitlements",
    )
    for row in found.get("entitlements") or ():
        for refusal in row.get("refused") or ():
            yield Line(f"{row.get('resource')} is not granted: {refusal}", "bad")


def _revocation(row: Row) -> str:
    return f"{row.get('at')} by {row.get('by')}: {row.get('reason') or 'no reason given'}"


def _condition(row: object) -> str:
    """ "label:region is eu or us (holds)": any of the values will do."""
    if not isinstance(row, Mapping):
        return str(row)
    text = f"{row.get('kind')} is " + " or ".join(str(value) for value in row.get("values") or ())
    if "holds" not in row:
        return text
    holds = "holds" if row["holds"] else f"does not hold: {row.get('found') or 'not known here'}"
    if row.get("changes_at"):
        holds += f", until {row['changes_at']}"
    return f"{text} ({holds})"


def _words(value: object) -> str:
    match value:
        case None:
            return ""
        case Mapping():
            return ", ".join(f"{name}={_words(item)}" for name, item in value.items())
        case list() | tuple():
            return "; ".join(_words(item) for item in value)
    return str(value)


@license_group.command("add")
@click.argument(
    "files",
    nargs=-1,
    required=True,
    type=click.Path(path_type=Path, allow_dash=True),
    metavar="FILE...",
)
@with_session(CHANGE_TIMEOUT_S)
def add(session: Session, files: tuple[Path, ...]) -> None:
    """Add license files (`-` is standard input).

    Each is verified against the trusted keys and refused with a named reason if it does not
    hold. A license that is there already in this generation changes nothing.
    """
    texts = [read_license(file, MAX_LICENSE_BYTES) for file in files]
    results = [session.call("license.add", text=text) for text in texts]
    result = {
        "changed": any(one.get("changed", True) for one in results),
        "licenses": [
            {key: value for key, value in one.items() if key != "schema_version"} for one in results
        ],
    }
    session.emit(result, _added_blocks)
    for one in results:
        for warning in one.get("warnings") or ():
            click.echo(f"licagent: note: {safe(warning)}", err=True)


def _added_blocks(result: Row) -> Iterator[Block]:
    from licagent.cli.output import Line

    for row in result["licenses"]:
        verb = "added" if row.get("changed", True) else "already there"
        text = f"license {row.get('id')} {verb}: generation {row.get('generation')}"
        yield Line(f"{text}, {row.get('state')}, expires {row.get('expires_at')}")


@license_group.command("remove")
@click.argument("license_id", metavar="ID")
@with_session(CHANGE_TIMEOUT_S)
def remove(session: Session, license_id: str) -> None:
    """Forget a license on this host. Its sockets are cut; it may be added again."""
    result = session.call("license.remove", id=license_id)
    session.emit(result, lambda found: _ended_blocks(found, "removed", "not there"))


@license_group.command("revoke")
@click.argument("license_id", metavar="[ID]", required=False)
@click.option("--reason", default="", help="Why, for the record.")
@click.option(
    "--statement",
    type=click.Path(path_type=Path, allow_dash=True),
    metavar="FILE",
    help="A revocation signed by the issuer (.rev) instead of ID.",
)
@with_session(CHANGE_TIMEOUT_S)
def revoke(session: Session, license_id: str | None, reason: str, statement: Path | None) -> None:
    """Revoke a license on this host: its live sockets are cut, at once and for good.

    The license stays revoked if its file is added again; only a newer generation, or the
    issuer's statement to reinstate it, brings it back.
    """
    if (license_id is None) == (statement is None):
        raise click.UsageError("give either ID or --statement FILE")
    text = read_license(statement, MAX_LICENSE_BYTES) if statement else None
    if license_id is not None and not reason:
        raise click.UsageError("--reason is needed: it stands in the record")
    result = session.call("license.revoke", id=license_id, statement=text, reason=reason)
    session.emit(result, lambda found: _ended_blocks(found, "revoked", "already revoked"))


def _ended_blocks(result: Row, done: str, nothing: str) -> Iterator[Block]:
    from licagent.cli.output import Line
    from licagent.cli.words import count

    if not result.get("changed", True):
        yield Line(f"license {result.get('id')}: {nothing}, nothing was changed")
        return
    action = str(result.get("action") or done)
    yield Line(f"license {result.get('id')} {action}")
    if result.get("sockets_cut") is not None:
        yield Line(f"{count(result['sockets_cut'], 'live socket')} cut", indent=2)
