# SPDX-License-Identifier: Apache-2.0
"""`licagent status`: is this host enforcing, and is all well?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

import click

from licagent.cli.exits import STATE_EXIT, UNKNOWN
from licagent.cli.session import Session, with_session

if TYPE_CHECKING:
    from licagent.cli.output import Block, Cell

Row = Mapping[str, Any]

_STATE_STYLE: Final = {"enforcing": "good", "observing": "warn"}
_LICENSE_STYLE: Final = {"valid": "good", "not_yet_valid": "warn"}


@click.command(short_help="Is this host enforcing, and is all well?")
@click.option("-v", "--verbose", is_flag=True, help="Add the programs, counters and clock.")
@with_session()
def status(session: Session, verbose: bool) -> None:
    """Is this host enforcing, and is all well?

    Answers from the daemon alone, within --timeout, with the network gone. The exit status is
    0 when the host enforces or observes and all is well, 3 when the daemon is not running
    (the kernel goes on deciding from the last policy), 4 when it does not answer in time,
    150 when something is degraded, 151 while the host is open by break-glass. A control plane
    that is away is shown, and degrades nothing until leases are about to end.
    """
    result = session.call("status")
    session.emit(result, lambda found: status_blocks(found, verbose=verbose))
    raise click.exceptions.Exit(STATE_EXIT.get(str(result.get("state")), UNKNOWN))


def status_blocks(result: Row, *, verbose: bool = False) -> Iterator[Block]:
    """What `status` shows."""
    from licagent.cli.output import Fields, Line

    state = str(result.get("state"))
    yield Line(f"licagent {result.get('version')}: {state}", _STATE_STYLE.get(state, "bad"))
    for reason in result.get("reasons", ()):
        yield Line(f"{reason.get('code')}: {reason.get('message')}", "warn", indent=2)
        if reason.get("hint"):
            yield Line(reason["hint"], indent=4)
    yield Fields(tuple(_summary(result)))
    yield from _licenses(result)
    yield from _shadow(result)
    yield from _missing(result)
    if verbose:
        yield from _details(result)


def _summary(result: Row) -> Iterator[tuple[str, object]]:
    from licagent.cli.output import Cell
    from licagent.cli.words import count

    yield "daemon", f"pid {result.get('pid')}, since {result.get('started_at')}"
    yield "mode", result.get("mode")
    policy = result.get("policy") or {}
    if policy:
        amounts = ", ".join(
            count(policy.get(f"{noun}s"), noun) for noun in ("resource", "binding", "rule")
        )
        yield "policy", f"generation {policy.get('generation')}: {amounts}"
        yield "loaded", policy.get("loaded_at")
    kernel = result.get("kernel") or {}
    if kernel:
        programs = kernel.get("programs", ())
        attached = sum(bool(program.get("attached")) for program in programs)
        text = f"{kernel.get('release')}, loader {kernel.get('loader')}, "
        text += f"{attached} of {count(len(programs), 'program')} attached"
        yield "kernel", Cell(text, "" if attached == len(programs) else "bad")
    events = result.get("events") or {}
    if events:
        dropped = events.get("dropped", 0)
        text = f"{events.get('emitted', 0)} written, {dropped} dropped"
        yield "events", Cell(text + (" (counters stay exact)" if dropped else ""))
    from licagent.cli.status_metering import metering_fields

    yield from metering_fields(result.get("metering") or {})
    yield from _control(result.get("control") or {})
    opened = result.get("break_glass")
    if opened:
        text = f"open until {opened.get('until')}, by {opened.get('by')}: {opened.get('reason')}"
        yield "break-glass", Cell(text, "bad")


def _control(control: Row) -> Iterator[tuple[str, object]]:
    """The link to the control plane; nothing on a host that has none."""
    from licagent.cli.output import Cell

    state = str(control.get("state"))
    if not control or state == "unenrolled":
        return
    server = control.get("server")
    if state == "connected":
        text = f"{server}, since {control.get('connected_since')}"
        yield "control plane", Cell(text, "good")
    elif state == "off":
        yield "control plane", Cell(f"{server}, but the settings want no link", "warn")
    else:
        last = control.get("last_contact") or "never"
        text = f"{server}: {state}, last heard of {last}"
        if control.get("last_error"):
            text += f": {control['last_error']}"
        if control.get("retry_at"):
            text += f"; tried again at {control['retry_at']}"
        yield "control plane", Cell(text, "warn")
    yield "host", f"{control.get('host_id')}, {control.get('host_status')}"
    labels = control.get("labels") or {}
    yield "labels", ", ".join(f"{name}={text}" for name, text in labels.items()) or "none"
    lag = control.get("lag")
    behind = f", {lag} behind" if lag else ""
    yield "revision", f"{control.get('revision')}{behind}, taken {control.get('last_sync')}"
    if control.get("lease_end"):
        yield "leases", f"{control.get('leased_licenses')}, until {control['lease_end']}"
    certificate = f"until {control.get('certificate_end')}"
    if control.get("renewal_error"):
        yield "certificate", Cell(f"{certificate}: {control['renewal_error']}", "warn")
    else:
        yield "certificate", certificate
    for notice in control.get("notices") or ():
        text = f"{notice.get('at')} {notice.get('code')}: {notice.get('detail')}"
        yield "notice", Cell(text, "warn")


def _licenses(result: Row) -> Iterator[Block]:
    from licagent.cli.output import Table
    from licagent.cli.words import ends_in

    def row(license_: Row) -> tuple[object, ...]:
        return (
            license_.get("id"),
            _license_state(license_),
            ends_in(license_.get("state"), license_.get("remaining_s")),
            license_.get("holders"),
            license_.get("allowed"),
            license_.get("denied"),
        )

    yield Table(
        ("license", "state", "ends in", ">sockets", ">allowed", ">denied"),
        [row(license_) for license_ in result.get("licenses", ())],
        title="Licenses",
        empty="none; add one: licagent license add FILE",
    )


def _license_state(license_: Row) -> Cell:
    from licagent.cli.output import Cell

    state = str(license_.get("state"))
    return Cell(state.replace("_", " "), _LICENSE_STYLE.get(state, "bad"))


def _shadow(result: Row) -> Iterator[Block]:
    from licagent.cli.output import Line, Table

    rows = result.get("shadow", ())
    if not rows:
        return
    yield Table(
        ("resource", "user", "executable", "unit", ">count", "last"),
        [
            tuple(
                row.get(key)
                for key in ("resource", "user", "executable", "unit", "count", "last_at")
            )
            for row in rows
        ],
        title="Shadow usage: used without a license",
    )
    suggestions = dict.fromkeys(row["suggestion"] for row in rows if row.get("suggestion"))
    for suggestion in suggestions:
        yield Line("to license it:", indent=2)
        for line in str(suggestion).splitlines():
            yield Line(line, "dim", indent=4)


def _missing(result: Row) -> Iterator[Block]:
    from licagent.cli.output import Table

    rows = (result.get("kernel") or {}).get("missing", ())
    if rows:
        yield Table(
            ("hook", "would close", "meaning", "from kernel"),
            [
                tuple(row.get(key) for key in ("hook", "closes", "consequence", "kernel"))
                for row in rows
            ],
            title="Not closed on this kernel",
        )


def _details(result: Row) -> Iterator[Block]:
    from licagent.cli.output import Cell, Fields, Table

    programs = (result.get("kernel") or {}).get("programs", ())
    yield Table(
        ("hook", "attached", "loader", ">link", ">program"),
        [
            (
                row.get("hook"),
                Cell("yes", "good") if row.get("attached") else Cell("no", "bad"),
                row.get("loader"),
                row.get("link_id"),
                row.get("program_id"),
            )
            for row in programs
        ],
        title="Programs",
    )
    yield Table(
        ("license", "resource", "verdict", "reason", ">count"),
        [
            tuple(row.get(key) for key in ("license", "resource", "verdict", "reason", "count"))
            for row in result.get("counters", ())
        ],
        title="Counters",
        empty="nothing counted yet",
    )
    from licagent.cli.status_metering import metering_details

    yield from metering_details(result.get("metering") or {})
    clock = result.get("clock") or {}
    yield Fields(
        (
            ("trusted now", clock.get("trusted_now")),
            ("wall offset", f"{clock.get('wall_offset_s')} s"),
            ("latest seen", clock.get("high_water")),
        ),
        title="Clock",
    )
    yield Fields(
        tuple((f"{number}", name) for number, name in enumerate(_files(result), 1)),
        title="Policy files",
    )


def _files(result: Row) -> tuple[object, ...]:
    return tuple((result.get("policy") or {}).get("files", ()))
