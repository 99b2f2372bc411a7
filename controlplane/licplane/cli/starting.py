# SPDX-License-Identifier: Apache-2.0
"""What comes before serving: the first start's keys, and a Plane for each worker process."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from licplane.cli.framework import say
from licplane.cli.passphrase import passphrase
from licplane.cli.place import Place
from licplane.errors import ExitCode, PlaneError

if TYPE_CHECKING:
    from licplane.api.server import Opened
    from licplane.service.requests import PlaneSettings


def prepare(where: Place, *, issuer: str, words: str | None, unencrypted: bool) -> None:
    """Make what a server needs and is not there: database, signing key, authority.

    Raises PlaneError where keys must be made, or opened, and there is no passphrase.
    """
    from licplane.cli.keys import write_trust
    from licplane.cli.local import local_actor, server_store
    from licplane.issuer.keyring import open_keys
    from licplane.service.plane import Plane
    from licplane.store.record_model import KeyKind

    if words is None and not unencrypted and where.database is None and not _has_state(where):
        raise _no_passphrase()  # before anything is made
    with server_store(where, create=True) as store:
        with store.reading() as reader:
            first = not reader.keys(KeyKind.ISSUER)
            if first and words is None and not unencrypted:
                raise _no_passphrase()
            say("Opening the keys ...")
            opened = open_keys(reader, lambda: words)
        made = Plane(store, opened).ensure_foundations(
            local_actor(), issuer=issuer, passphrase=words
        )
        if made:
            write_trust(where, store)
    if not made:
        return
    place_of = "the database" if where.database else str(where.state_dir)
    if first:
        say(
            f"First start: made a signing key of the issuer {issuer} and a certification authority"
            f" in {place_of}."
        )
    else:
        say(f"Made a certification authority in {place_of}.")
    if words is None:
        say("Warning: private keys are kept unencrypted. Whoever reads them can license anything.")
    else:
        say("They are encrypted under the passphrase: without it, all is lost. Keep it elsewhere.")


def _has_state(where: Place) -> bool:
    return (where.state_dir / "licplane.db").exists() or (where.state_dir / "keys").exists()


def _no_passphrase() -> PlaneError:
    return PlaneError(
        ExitCode.USAGE,
        "There is no passphrase to encrypt the private keys with",
        "Give --passphrase-file, LICPLANE_PASSPHRASE or the systemd credential"
        " licplane.passphrase (or --unencrypted, for tests only)",
    )


def open_for_server(
    where: Place, words: str | None, settings: PlaneSettings, again: Path | None = None
) -> Opened:
    """The Plane of a worker process. `again`: where the passphrase is read from once more, when
    `words` no longer opens the keys."""
    from licplane.api.server import Opened as OpenedPlane
    from licplane.cli.local import server_store
    from licplane.issuer.keyring import Keys, open_keys
    from licplane.service.plane import Plane

    log_to_stderr()
    store = server_store(where)

    def opened() -> Keys:
        with store.reading() as reader:
            try:
                return open_keys(reader, lambda: words)
            except PlaneError as error:
                if error.code is not ExitCode.PERMISSION or again is None:
                    raise
                return open_keys(reader, lambda: passphrase(again))

    try:
        return OpenedPlane(Plane(store, opened(), settings, reopen=opened), store)
    except BaseException:
        store.close()
        raise


def log_to_stderr() -> None:
    """Warnings of everybody, and what the server says of itself. Again changes nothing."""
    logging.basicConfig(
        level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    logging.getLogger("licplane").setLevel(logging.INFO)
