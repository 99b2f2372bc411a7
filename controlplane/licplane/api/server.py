# SPDX-License-Identifier: Apache-2.0
"""`licplane serve`: blocks until a signal ends it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from licplane.api.settings import Addresses, ServerSettings

if TYPE_CHECKING:
    from licplane.service.plane import Plane
    from licplane.service.requests import PlaneSettings
    from licplane.store.database import Store


@dataclass(frozen=True, slots=True)
class Opened:
    """A plane with its store, which the server closes at its end."""

    plane: Plane
    store: Store


PlaneFactory = Callable[["PlaneSettings"], Opened]
"""Opens the store and the keys. Called once in each worker process, so it is picklable: a
function of a module, or functools.partial over one. The settings come from the server, which
knows its addresses."""


def serve(
    settings: ServerSettings,
    plane_factory: PlaneFactory,
    *,
    started: Callable[[Addresses], None] | None = None,
) -> int:
    """Serve until SIGTERM or SIGINT, and return the exit code.

    The store has its schema and the keys exist (`Plane.ensure_foundations`) before this is
    called. `started` is called once in this process when every worker accepts connections;
    systemd is told then too (sd_notify), where it asks for it.

    Raises PlaneError when an address cannot be had, or the store or keys not be opened.
    """
    raise NotImplementedError
