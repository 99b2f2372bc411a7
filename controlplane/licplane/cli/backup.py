# SPDX-License-Identifier: Apache-2.0
"""`licplane backup`: copies of the whole control plane."""

from __future__ import annotations

import time
from pathlib import Path
from tempfile import TemporaryDirectory

import click

from licplane.cli.framework import (
    check_out,
    json_option,
    passphrase_option,
    print_json,
    say,
    wants_json,
)
from licplane.cli.local import local_actor, open_store
from licplane.cli.output import moment, moment_or_none
from licplane.cli.passphrase import passphrase
from licplane.cli.place import Place, place, state_option
from licplane.errors import ExitCode, PlaneError
from licplane.issuer.keyring import Keyring, open_keys
from licplane.service.backup import (
    BackupInfo,
    create_backup,
    read_backup,
    restore_backup,
    scratch_copy,
)
from licplane.service.plane import Plane
from licplane.store.database import Store
from licplane.store.folder import PUBLIC_MODE, StateFolder, write_atomically

_FILE = click.Path(dir_okay=False, path_type=Path)


@click.group()
def backup() -> None:
    """Copy the whole control plane into a file, check such a file, and put it back."""


@backup.command()
@click.argument("file", type=_FILE)
@state_option
@json_option
def create(file: Path) -> None:
    """Write everything into FILE (mode 0600): catalog, hosts, usage, bills, audit log, keys.

    It is of one moment, on SQLite and on PostgreSQL, and servers go on meanwhile. Private keys are
    in it encrypted under their passphrase, which is not: keep that elsewhere. No passphrase is
    needed. An existing FILE is replaced at the end, or stays as it is.
    """
    check_out(file)
    with open_store(_here()) as store:
        info = create_backup(store, file, time.time_ns() // 1_000_000)
    _show(info, f"Wrote {file}: {info.rows} rows at the catalog's revision {info.revision}.")


@backup.command()
@click.argument("file", type=_FILE)
@passphrase_option
@json_option
def verify(file: Path, passphrase_file: Path | None) -> None:
    """Check that FILE is whole, and where the passphrase is given that it can be put back.

    With it the backup is put into a scratch database: the keys open, the catalog is what was
    signed, the audit log was not changed.
    """
    info = read_backup(file)
    words = passphrase(passphrase_file)
    if words is None:
        _show(
            info,
            f"{file} is whole, of {moment(info.created_unix_ms)}. Without the passphrase"
            " its keys and signatures were not looked at.",
            deep=False,
        )
        return
    with (
        TemporaryDirectory(prefix="licplane-verify-") as folder,
        scratch_copy(file, Path(folder)) as store,
    ):
        problems = _problems(store, words)
    if problems:
        raise PlaneError(
            ExitCode.REFUSED, f"{file} is whole, but {'; '.join(problems)}", "Use another backup"
        )
    _show(info, f"{file} of {moment(info.created_unix_ms)} can be put back.", deep=True)


@backup.command()
@click.argument("file", type=_FILE)
@state_option
@json_option
def restore(file: Path) -> None:
    """Put FILE back into an empty state folder (or, with --database, an empty database).

    What came after it was made is unknown to it. So join tokens and administrators' credentials
    are ended, no leases are given and nobody may join, until you have looked at it and run
    `licplane db advance`; hosts that know of later revocations hand them back meanwhile.
    """
    where = _here()
    if where.database is None:
        StateFolder(where.state_dir).create()
        if (where.state_dir / "licplane.db").exists():
            raise PlaneError(
                ExitCode.REFUSED,
                f"There is a database in {where.state_dir} already",
                "Stop the servers and move it away (keep it: it may know more), or name another"
                " --state",
            )
    with Store.open(where.database or str(where.state_dir)) as store:
        info = restore_backup(file, store, time.time_ns() // 1_000_000)
        if where.database is None:
            with store.reading() as reader:
                trust = Keyring(reader).trust().to_bytes()
            write_atomically(where.state_dir / "trust.jwks", trust, PUBLIC_MODE)
    _show(
        info,
        f"Put back {info.rows} rows of {moment(info.created_unix_ms)}. Next: start the servers,"
        " wait until the hosts have connected (`licplane host list`), look for what is missing"
        " since the backup (`licplane audit list`), and run `licplane db advance`. Until then no"
        " leases are given.",
    )


def _here() -> Place:
    where = place().check()
    if where.remote:
        raise PlaneError(
            ExitCode.USAGE, "Only on the control plane's own machine", "Use --state or --database"
        )
    return where


def _problems(store: Store, words: str) -> list[str]:
    found: list[str] = []
    with store.reading() as reader:
        keys = open_keys(reader, lambda: words)
    plane = Plane(store, keys)
    head = plane.verify_head()
    if head.problem:
        found.append(f"the catalog was altered: {head.problem}")
    found += plane.verify_audit(local_actor()).problems
    if keys.authority is not None:
        plane.roots_changed_ms()
    return found


def _show(info: BackupInfo, words: str, **more: object) -> None:
    if not wants_json():
        say(words)
        return
    print_json(
        {
            "created_at": moment_or_none(info.created_unix_ms),
            "program": info.program,
            "schema": info.schema,
            "revision": info.revision,
            "audit_sequence": info.audit_sequence,
            "rows": info.rows,
            "tables": info.tables,
            **more,
        }
    )
