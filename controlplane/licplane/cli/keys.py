# SPDX-License-Identifier: Apache-2.0
"""`licplane keys`: the issuer's keys and the trust file made of them."""

from __future__ import annotations

from pathlib import Path

import click

from licplane.cli.completion import complete_kid
from licplane.cli.framework import (
    json_option,
    passphrase_option,
    print_json,
    say,
    wants_json,
)
from licplane.cli.local import local_actor, open_store
from licplane.cli.output import show_table
from licplane.cli.passphrase import new_passphrase, passphrase
from licplane.cli.place import Place, place, state_option
from licplane.errors import ExitCode, PlaneError
from licplane.issuer.keyring import Keyring, open_keys
from licplane.service.plane import Plane
from licplane.service.requests import Change
from licplane.store.database import Store
from licplane.store.folder import PUBLIC_MODE, write_atomically
from lictoken.trust import TrustedKey, TrustStore


@click.group()
def keys() -> None:
    """Make, list and retire the keys that sign licenses."""


@keys.command()
@click.option("--issuer", required=True, metavar="NAME", help="In whose name the key signs.")
@click.option(
    "--unencrypted",
    is_flag=True,
    help="Keep the private key in the clear. For tests and demos only.",
)
@passphrase_option
@state_option
@json_option
def create(issuer: str, passphrase_file: Path | None, *, unencrypted: bool) -> None:
    """Make a key pair and print its id (kid).

    The private key is kept in the database, encrypted under a passphrase; the public one is
    pushed to the hosts, and added to trust.jwks in the state folder for hosts that live by files:
    see `licplane keys export`.
    """
    if unencrypted and passphrase_file is not None:
        raise click.UsageError("--unencrypted and --passphrase-file exclude each other.")
    words = None if unencrypted else passphrase(passphrase_file, confirm=True)
    if words is None and not unencrypted:
        raise PlaneError(
            ExitCode.USAGE,
            "There is no passphrase to encrypt the private key with",
            "Give --passphrase-file, LICPLANE_PASSPHRASE or the systemd credential"
            " licplane.passphrase (or --unencrypted, for tests only)",
        )
    where = local_place()
    with open_store(where, create=True) as store:
        with store.reading() as reader:
            opened = open_keys(reader, lambda: words)
        plane = Plane(store, opened)
        key = plane.create_key(local_actor(), Change(), issuer=issuer, passphrase=words)
        document = _document(key, store)
        trust = write_trust(where, store)
    if unencrypted:
        say(
            "Warning: the private key is kept unencrypted. Whoever reads the database"
            f" can issue licenses in the name of {issuer}."
        )
    say(f"Made a key of {issuer}.{_for_files(trust)}")
    if wants_json():
        print_json({"key": document, "trust": str(trust) if trust else None})
    else:
        click.echo(key.kid)


@keys.command("passphrase")
@click.option(
    "--new-passphrase-file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help='The new passphrase, in one line ("-": standard input).  [default: ask the terminal]',
)
@passphrase_option
@state_option
@json_option
def passphrase_(new_passphrase_file: Path | None, passphrase_file: Path | None) -> None:
    """Put all private keys under another passphrase, in one step.

    The old one is asked for like everywhere. Servers that run go on with the keys that they have
    opened: give each the new passphrase, and start it anew before another key or authority is
    made. Backups that were made before keep the old one.
    """
    if str(passphrase_file) == str(new_passphrase_file) == "-":
        raise click.UsageError("Only one passphrase can come from standard input.")
    with open_store(local_place()) as store:
        old = passphrase(passphrase_file)
        if old is None:
            raise PlaneError(
                ExitCode.PERMISSION,
                "The keys cannot be opened without the old passphrase",
                "Give --passphrase-file, LICPLANE_PASSPHRASE or the systemd credential"
                " licplane.passphrase",
            )
        new = new_passphrase(new_passphrase_file)
        with store.reading() as reader:
            opened = open_keys(reader, lambda: old)
        plane = Plane(store, opened)
        count, left = plane.change_passphrase(local_actor(), Change(), old=old, new=new)
    say(f"{count} keys are under the new passphrase. Keep it elsewhere too, and make a backup:")
    say("those that were made before still need the old one.")
    for name in left:
        say(f"Left as it is: {name} is under another passphrase than the old one.")
    if wants_json():
        print_json({"changed": count, "left": list(left)})


@keys.command("list")
@state_option
@json_option
def list_() -> None:
    """List the keys, the retired ones too."""
    with open_store(local_place()) as store:
        documents = [_document(key, store) for key in _trust(store)]
    if wants_json():
        print_json({"keys": documents})
        return
    columns = ("kid", "issuer", "status", "private_key", "created_at")
    show_table(
        [name.replace("_", " ").upper() for name in columns],
        [[str(one[name] or "-") for name in columns] for one in documents],
    )


@keys.command()
@click.argument("kid", shell_complete=complete_kid)
@click.option(
    "--resign",
    is_flag=True,
    help="Sign the licenses that it signed again with the issuer's newest other key, in the same"
    " step; terms, ends and open connections stay.",
)
@click.option(
    "--anyway",
    is_flag=True,
    help="Although some hosts do not know another key yet: they will have to enrol again.",
)
@passphrase_option
@state_option
@json_option
def retire(kid: str, passphrase_file: Path | None, *, resign: bool, anyway: bool) -> None:
    """Mark the key KID (or its first characters) as retired.

    Hosts then refuse every license the key signed: --resign signs them again, or renew them first.
    Licenses that were handed out as files stay as they are.
    """
    where = local_place()
    with open_store(where) as store:
        with store.reading() as reader:
            Keyring(reader).find(kid)
            opened = open_keys(reader, lambda: passphrase(passphrase_file))
        key, changed, signed = Plane(store, opened).retire_key(
            local_actor(), Change(), kid, resign=resign, anyway=anyway
        )
        document = _document(key, store)
        trust = write_trust(where, store)
    if changed:
        again = f" {signed} licenses are signed by another key now." if resign else ""
        say(f"Retired {key.kid}.{again}{_for_files(trust)}")
    else:
        say(f"{key.kid} was retired already.")
    if wants_json():
        print_json({"key": document, "changed": changed, "signed_again": signed})


@keys.command()
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Write to FILE, in one step, instead of standard output.",
)
@state_option
@json_option
def export(out: Path | None) -> None:
    """Print the trust file (JWKS): the public keys, for /etc/licagent/trust.jwks."""
    with open_store(local_place()) as store:
        trust = _trust(store)
    if wants_json():
        print_json({"keys": [key.to_jwk() for key in trust]})
    elif out is None:
        click.echo(trust.to_bytes(), nl=False)
    if out is not None:
        write_atomically(out, trust.to_bytes(), PUBLIC_MODE)
        say(f"Wrote {len(trust)} keys to {out}.")


def local_place() -> Place:
    """The place, which must not be a server: private keys never travel."""
    where = place().check()
    if where.remote:
        raise PlaneError(
            ExitCode.USAGE,
            "Keys are not handled over the network",
            "Run this on the server's machine, with --state or --database",
        )
    return where


def write_trust(where: Place, store: Store) -> Path | None:
    """Keep trust.jwks in the state folder as the store has it; None where there is no folder."""
    if where.database:
        return None
    path = where.state_dir / "trust.jwks"
    write_atomically(path, _trust(store).to_bytes(), PUBLIC_MODE)
    return path


def _trust(store: Store) -> TrustStore:
    with store.reading() as reader:
        return Keyring(reader).trust()


def _for_files(trust: Path | None) -> str:
    if trust is None:
        return " Hosts that live by files need it too: `licplane keys export`."
    return (
        " Hosts of a running server get it by themselves; for those that live by files, install"
        f" {trust} as /etc/licagent/trust.jwks."
    )


def _document(key: TrustedKey, store: Store) -> dict[str, object]:
    with store.reading() as reader:
        protection = Keyring(reader).protection(key.kid)
    return {
        "kid": key.kid,
        "issuer": key.issuer,
        "status": key.status.value,
        "purposes": [purpose.value for purpose in key.purposes],
        "private_key": protection,
        "created_at": key.created_at,
        "retired_at": key.retired_at,
    }
