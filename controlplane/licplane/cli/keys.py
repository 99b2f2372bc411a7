# SPDX-License-Identifier: Apache-2.0
"""`licplane keys`: the issuer's keys and the trust file made of them."""

from __future__ import annotations

from pathlib import Path

import click

from licplane.cli.framework import (
    complete_kid,
    json_option,
    now_s,
    passphrase_option,
    print_json,
    print_table,
    say,
    state_option,
    wants_json,
)
from licplane.cli.passphrase import passphrase
from licplane.errors import ExitCode, PlaneError
from licplane.issuer.keyring import Keyring
from licplane.store.folder import PUBLIC_MODE, StateFolder, write_atomically
from lictoken.trust import KeyStatus, TrustedKey


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
def create(
    folder: StateFolder, issuer: str, passphrase_file: Path | None, *, unencrypted: bool
) -> None:
    """Make a key pair and print its id (kid).

    The private key is kept in the state folder, encrypted under a passphrase; the public one
    is added to trust.jwks, which hosts need: see `licplane keys export`.
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
    folder.create()
    with folder.locked():
        key = Keyring(folder).create(issuer, words, now_s())
    if unencrypted:
        say(
            "Warning: the private key is kept unencrypted. Whoever reads the folder"
            f" {folder.keys} can issue licenses in the name of {issuer}."
        )
    say(f"Made a key of {issuer}. Install {folder.trust} on the hosts as /etc/licagent/trust.jwks.")
    if wants_json():
        print_json({"key": _document(key, Keyring(folder)), "trust": str(folder.trust)})
    else:
        click.echo(key.kid)


@keys.command("list")
@state_option
@json_option
def list_(folder: StateFolder) -> None:
    """List the keys, the retired ones too."""
    folder.require()
    keyring = Keyring(folder)
    documents = [_document(key, keyring) for key in keyring.trust()]
    if wants_json():
        print_json({"keys": documents})
        return
    columns = ("kid", "issuer", "status", "private_key", "created_at")
    print_table(
        [name.replace("_", " ").upper() for name in columns],
        [[str(one[name] or "-") for name in columns] for one in documents],
    )


@keys.command()
@click.argument("kid", shell_complete=complete_kid)
@state_option
@json_option
def retire(folder: StateFolder, kid: str) -> None:
    """Mark the key KID (or its first characters) as retired in the trust file.

    Hosts with the new trust file refuse every license the key signed: renew them first.
    """
    folder.require()
    with folder.locked():
        keyring = Keyring(folder)
        was = keyring.find(kid)
        key = keyring.retire(kid, now_s())
    if was.status is KeyStatus.RETIRED:
        say(f"{key.kid} was retired already.")
    else:
        say(f"Retired {key.kid}. Install {folder.trust} on the hosts for it to take effect.")
    if wants_json():
        print_json({"key": _document(key, keyring), "changed": was.status is not KeyStatus.RETIRED})


@keys.command()
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Write to FILE, in one step, instead of standard output.",
)
@state_option
@json_option
def export(folder: StateFolder, out: Path | None) -> None:
    """Print the trust file (JWKS): the public keys, for /etc/licagent/trust.jwks."""
    folder.require()
    trust = Keyring(folder).trust()
    if wants_json():
        print_json({"keys": [key.to_jwk() for key in trust]})
    elif out is None:
        click.echo(trust.to_bytes(), nl=False)
    if out is not None:
        write_atomically(out, trust.to_bytes(), PUBLIC_MODE)
        say(f"Wrote {len(trust)} keys to {out}.")


def _document(key: TrustedKey, keyring: Keyring) -> dict[str, object]:
    return {
        "kid": key.kid,
        "issuer": key.issuer,
        "status": key.status.value,
        "purposes": [purpose.value for purpose in key.purposes],
        "private_key": keyring.protection(key.kid),
        "created_at": key.created_at,
        "retired_at": key.retired_at,
    }
