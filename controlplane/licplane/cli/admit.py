# SPDX-License-Identifier: Apache-2.0
"""`licplane host admit`: enrolment by files, for hosts with no network."""

from __future__ import annotations

from pathlib import Path
from typing import Final, cast

import click

from licplane.cli.changes import change_options, changing
from licplane.cli.framework import check_out, json_option, print_json, say, wants_json
from licplane.cli.local import LocalBackend
from licplane.cli.output import moment, moment_or_none
from licplane.cli.parsing import duration_s, labels_of
from licplane.errors import ExitCode, PlaneError
from licplane.service.requests import Change, Machine
from licplane.store.folder import PRIVATE_MODE, write_atomically
from lictoken import base64url
from lictoken.errors import TokenError
from lictoken.strictjson import parse_object

REQUEST_KIND: Final = "licagent-enrolment-request"
_REQUEST_MAX_BYTES: Final = 64 * 1024
_MACHINE: Final = ("hostname", "machine_id", "boot_id", "agent_version", "kernel_release")


@click.command()
@click.argument("request", metavar="FILE", type=click.Path(dir_okay=False, path_type=Path))
@click.option(
    "--label",
    "labels",
    multiple=True,
    metavar="NAME=VALUE",
    help="A label of the host (repeatable).",
)
@click.option(
    "--certificate-ttl",
    default="90d",
    show_default=True,
    metavar="TIME",
    help="How long its certificate lasts.",
)
@click.option(
    "--lease-ttl",
    default="30d",
    show_default=True,
    metavar="TIME",
    help="How long it may use licenses without a new bundle.",
)
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    required=True,
    metavar="FILE",
    help="Where to write the bundle.",
)
@change_options
@json_option
def admit(
    *,
    change: Change,
    passphrase_file: Path | None,
    request: Path,
    labels: tuple[str, ...],
    certificate_ttl: str,
    lease_ttl: str,
    out: Path,
) -> None:
    """Enrol the host that wrote the request in FILE, and write the bundle that it needs.

    \b
    licagent enroll --request request.json                      on the host
    licplane host admit request.json --label org=acme --out bundle.json
    licagent enroll --bundle bundle.json                        on the host
    """
    wanted = labels_of(labels)
    certificate_ttl_s, lease_ttl_s = duration_s(certificate_ttl), duration_s(lease_ttl)
    csr, machine, nonce = read_request(request)
    check_out(out)
    with changing(passphrase_file) as backend:
        if not isinstance(backend, LocalBackend):
            raise PlaneError(
                ExitCode.USAGE,
                "Hosts are not admitted by files over the network",
                "Run this on the server's machine, with --state or --database",
            )
        made = backend.plane.admit_offline(
            backend.actor,
            change,
            csr=csr,
            machine=machine,
            labels=wanted,
            certificate_ttl_s=certificate_ttl_s,
            lease_ttl_s=lease_ttl_s,
            nonce=nonce,
        )
    if not change.dry_run:
        write_atomically(out, made.bundle, PRIVATE_MODE)
    if wants_json():
        print_json(
            {
                "host_id": made.host_id,
                "certificate_not_after": moment_or_none(made.not_after_unix_ms),
                "out": str(out),
                "dry_run": change.dry_run,
            }
        )
    if change.dry_run:
        say("Dry run: nothing was done.")
        return
    say(
        f"Admitted {machine.hostname or 'the host'} as {made.host_id}, certificate until"
        f" {moment(made.not_after_unix_ms)}. On the host: licagent enroll --bundle {out.name}"
    )


def read_request(file: Path) -> tuple[bytes, Machine, bytes]:
    """Certificate request (DER), machine and nonce of a request file. Raises PlaneError."""
    try:
        with file.open("rb") as source:
            data = source.read(_REQUEST_MAX_BYTES + 1)
    except FileNotFoundError as error:
        raise PlaneError(
            ExitCode.NOT_FOUND,
            f"There is no request file {file}",
            "Make it on the host with `licagent enroll --request FILE`",
        ) from error
    if len(data) > _REQUEST_MAX_BYTES:
        raise _bad(file, f"it has more than {_REQUEST_MAX_BYTES // 1024} KiB")
    try:
        found = parse_object(data, str(file))
        if found.get("kind") != REQUEST_KIND or found.get("schema_version") != 1:
            raise _bad(file, "it is something else, or of a newer agent")
        machine = cast("dict[str, object]", found.get("machine") or {})
        texts = {name: str(machine.get(name, "")) for name in _MACHINE}
        csr = base64url.decode(str(found.get("csr", "")), "csr")
        nonce = base64url.decode(str(found.get("nonce", "")), "nonce")
    except TokenError as error:
        raise _bad(file, error.detail) from error
    except AttributeError as error:
        raise _bad(file, "machine is no object") from error
    if not csr:
        raise _bad(file, "it has no certificate request")
    return csr, Machine(**texts), nonce


def _bad(file: Path, why: str) -> PlaneError:
    return PlaneError(
        ExitCode.REFUSED,
        f"{file} is no request of a host: {why}",
        "Make it on the host with `licagent enroll --request FILE`",
    )
