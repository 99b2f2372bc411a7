# SPDX-License-Identifier: Apache-2.0
"""`licplane host`: the fleet, and what becomes of its hosts."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Final

import click

from licplane.cli.admit import admit
from licplane.cli.backend import Backend, every
from licplane.cli.changes import change_options, changing, reading, show_change
from licplane.cli.completion import complete_host
from licplane.cli.framework import json_option, now_s, print_json, say, wants_json
from licplane.cli.host_output import drift_text, host_document, lag, report_rows
from licplane.cli.output import (
    age,
    labels_text,
    moment,
    show_fields,
    show_table,
)
from licplane.cli.parsing import duration_s, label_changes, labels_of
from licplane.cli.place import place_options
from licplane.errors import ExitCode, PlaneError
from licplane.service.requests import Change
from licplane.service.values import HostStatus

_SPLIT_TOKEN_S: Final = 3600
_LOOK_S: Final = 0.5


@click.group()
def host() -> None:
    """List hosts, label them, and end their membership."""


@host.command("list")
@click.option(
    "--label",
    "labels",
    multiple=True,
    metavar="NAME=VALUE",
    help="Only hosts with this label (repeatable; all must hold).",
)
@place_options
@json_option
def list_(labels: tuple[str, ...]) -> None:
    """List the hosts: who is connected, how far behind, and what differs from what is wanted."""
    wanted = labels_of(labels)
    with reading() as backend:
        found = list(every(lambda page: backend.list_hosts(wanted, page)))
    if wants_json():
        print_json({"hosts": [host_document(one) for one in found]})
        return
    now_ms = now_s() * 1000
    show_table(
        ("HOST", "ID", "STATUS", "LINK", ">LAG", ">SEEN", "LABELS", "DRIFT"),
        [
            (
                one.hostname or "-",
                one.host_id,
                one.status.word,
                "connected" if one.connected else "-",
                lag(one),
                f"{age(now_ms - one.last_seen_unix_ms)} ago" if one.last_seen_unix_ms else "never",
                labels_text(one.labels.items()),
                drift_text(one),
            )
            for one in found
        ],
        empty="There are no hosts. `licplane token create` makes a token for one to join with.",
    )


@host.command()
@click.argument("host", metavar="HOST", shell_complete=complete_host)
@place_options
@json_option
def show(host: str) -> None:
    """Show one host, by its id or its name: state, lag, drift and its last report."""
    with reading() as backend:
        found = backend.get_host(host)
    if wants_json():
        report = json.loads(found.report_json) if found.report_json else None
        print_json({"host": {**host_document(found), "report": report}})
        return
    rows: list[tuple[str, object]] = [
        ("host", found.hostname or "-"),
        ("id", found.host_id),
        ("status", found.status.word),
        ("link", "connected" if found.connected else "not connected"),
        ("last seen", moment(found.last_seen_unix_ms)),
        ("enrolled", moment(found.enrolled_at_unix_ms)),
        ("certificate", f"until {moment(found.certificate_not_after_unix_ms)}"),
        ("labels", labels_text(found.labels.items())),
        ("revision", f"{found.acked_revision} in force, {found.revision} wanted"),
        ("lag", lag(found)),
    ]
    if found.last_nack:
        rows.append(("refused", found.last_nack))
    rows += [("drift", one) for one in found.drift] or [("drift", "none")]
    show_fields([*rows, *report_rows(found.report_json)])


@host.command()
@click.argument("host", metavar="HOST", shell_complete=complete_host)
@click.argument("labels", metavar="NAME=VALUE...", nargs=-1, required=True)
@change_options
@json_option
def label(change: Change, passphrase_file: Path | None, host: str, labels: tuple[str, ...]) -> None:
    """Set labels of HOST; NAME= removes one.

    org, project, environment and region say which part of the catalog the host sees; the host
    takes the new part within seconds, and loses what it no longer sees.
    """
    wanted = label_changes(labels)
    with changing(passphrase_file) as backend:
        result = backend.update_host(change, host, wanted, None)
    show_change(result, f"Labelled {host}.")


def _status_command(name: str, status: HostStatus, done: str, text: str) -> None:
    @host.command(name, help=text)
    @click.argument("host", metavar="HOST", shell_complete=complete_host)
    @change_options
    @json_option
    def command(change: Change, passphrase_file: Path | None, host: str) -> None:
        with changing(passphrase_file) as backend:
            result = backend.update_host(change, host, {}, status)
        show_change(result, f"{host} {done}")


_status_command(
    "drain",
    HostStatus.DRAINING,
    "gets no new licenses and bindings; its leases run out.",
    "Let HOST keep what it has until its leases run out, and give it nothing new.",
)
_status_command(
    "evict",
    HostStatus.EVICTED,
    "is out. It may come back with a new join token.",
    "End the membership of HOST: its certificates are revoked, its leases run out.",
)
_status_command(
    "ban",
    HostStatus.BANNED,
    "is out, and its machine may not enrol again.",
    "Evict HOST, and refuse its machine from now on.",
)
_status_command(
    "activate",
    HostStatus.ACTIVE,
    "is active.",
    "End a drain or a ban of HOST. After an eviction it needs a new join token too.",
)


@host.command()
@click.argument("host", metavar="HOST", shell_complete=complete_host)
@click.option(
    "--wait",
    default="2m",
    show_default=True,
    metavar="TIME",
    help="How long to wait until the host is out; 0s: only tell it.",
)
@change_options
@json_option
def decommission(change: Change, passphrase_file: Path | None, host: str, wait: str) -> None:
    """End the membership of HOST with its last usage settled.

    Its licenses end at once; it sends what was used until then, and when all of that is stored its
    certificates are revoked. `licplane host drain` before it lets work there end by itself. A host
    that is gone for good settles nothing: use `licplane host evict`, and what it had not sent yet
    stays unknown.
    """
    limit_s = duration_s(wait)
    with changing(passphrase_file) as backend:
        found = backend.get_host(host)
        if found.status is HostStatus.EVICTED:
            raise PlaneError(ExitCode.REFUSED, f"{host} is out already", "There is nothing to do")
        result = backend.update_host(change, found.host_id, {}, HostStatus.LEAVING)
        is_out = not change.dry_run and _is_out(backend, found.host_id, limit_s)
    if wants_json() or change.dry_run or is_out:
        show_change(
            result,
            f"{host} is out; all its usage is stored.",
            host_id=found.host_id,
            settled=is_out,
        )
    if not (is_out or change.dry_run or limit_s == 0):
        raise PlaneError(
            ExitCode.BUSY,
            f"{host} is leaving, and its last usage has not all come in after {wait}",
            "It goes on by itself once it is connected; where it is gone for good, run `licplane"
            " host evict`",
        )
    if not is_out and not change.dry_run:
        say(f"{host} is told to leave; `licplane host show` says when it is out.")


def _is_out(backend: Backend, host_id: str, limit_s: float) -> bool:
    """Whether a host that was told to leave is out within the time."""
    end_s = time.monotonic() + limit_s
    while backend.get_host(host_id).status is not HostStatus.EVICTED:
        left_s = end_s - time.monotonic()
        if left_s <= 0:
            return False
        time.sleep(min(_LOOK_S, left_s))
    return True


@host.command()
@click.argument("host", metavar="HOST", shell_complete=complete_host)
@click.option(
    "--expires",
    default="+1h",
    show_default=True,
    metavar="TIME",
    help="How long the two machines have to enrol again.",
)
@change_options
@json_option
def split(change: Change, passphrase_file: Path | None, host: str, expires: str) -> None:
    """Mend a cloned HOST: two machines spoke with its identity.

    Its certificates are revoked, so that both machines are out, and a join token for two is
    printed. Then, on the machine that is to stay HOST: `licagent enroll --again JOIN`, which
    keeps its id; on the other one: `licagent enroll --new JOIN`, which makes it a host of its own.
    """
    ttl_s = _ttl_s(expires)
    with changing(passphrase_file) as backend:
        found = backend.get_host(host)
        evicted = backend.update_host(change, found.host_id, {}, HostStatus.EVICTED)
        again = Change(f"{change.request_id[:56]}-token", change.dry_run, "", change.reason)
        made = backend.create_join_token(again, dict(found.labels), 2, ttl_s)
    if wants_json():
        show_change(evicted, "", host_id=found.host_id, join=made.join, token_id=made.token.id)
        return
    show_change(evicted, f"{host} is out, both machines of it.")
    if change.dry_run:
        return
    say(
        "On the machine to keep:  licagent enroll --again JOIN\n"
        "On the other one:        licagent enroll --new JOIN\n"
        f"JOIN is, until {moment(made.token.expires_at_unix_ms)} and for two machines:"
    )
    click.echo(made.join)


host.add_command(admit)


def _ttl_s(text: str) -> int:
    return duration_s(text.removeprefix("+"))
