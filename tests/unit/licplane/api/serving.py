# SPDX-License-Identifier: Apache-2.0
"""A server on a state folder as a program: `python -m ... serving FOLDER WORKERS`."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict
from functools import partial
from pathlib import Path

from licplane.api import workers
from licplane.api.server import Opened, serve
from licplane.api.settings import Addresses, ServerSettings
from licplane.issuer.keyring import open_keys
from licplane.service.plane import Plane
from licplane.service.requests import PlaneSettings
from licplane.store.database import Store

# In the workers, too: each imports this module.
workers._ALIVE_S = float(os.environ.get("TEST_ALIVE_S", workers._ALIVE_S))  # type: ignore[misc]


def open_plane(folder: str, settings: PlaneSettings) -> Opened:
    """The plane over the folder, with keys that need no passphrase."""
    store = Store.in_folder(Path(folder))
    with store.reading() as reader:
        keys = open_keys(reader, lambda: None)
    return Opened(Plane(store, keys, settings), store)


def tell(addresses: Addresses) -> None:
    """One line of JSON for whoever started us."""
    sys.stdout.write(json.dumps(asdict(addresses)) + "\n")
    sys.stdout.flush()


def main() -> int:
    """Serve until a signal."""
    folder, count = sys.argv[1:]
    settings = ServerSettings(
        listen="127.0.0.1:0",
        public_listen="127.0.0.1:0",
        metrics_listen="127.0.0.1:0",
        workers=int(count),
        stop_grace_s=2.0,
    )
    return serve(settings, partial(open_plane, folder), started=tell)


if __name__ == "__main__":
    sys.exit(main())
