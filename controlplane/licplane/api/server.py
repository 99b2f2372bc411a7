# SPDX-License-Identifier: Apache-2.0
"""`licplane serve`: blocks until a signal ends it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from licplane.api.settings import Addresses, ServerSettings

if TYPE_CHECKING:
    from licplane.service.plane import Plane

PlaneFactory = Callable[[], "Plane"]
"""Opens the store and the keys. Called once in each worker process, so it is picklable: a
function of a module, or functools.partial over one."""


def serve(
    settings: ServerSettings,
    plane_factory: PlaneFactory,
    *,
    started: Callable[[Addresses], None] | None = None,
) -> int:
    """Serve until SIGTERM or SIGINT, and return the exit code.

    `started` is called once in this process when every worker accepts connections; systemd is
    told then too (sd_notify), where it asks for it.

    Raises PlaneError when an address cannot be had, or the store or keys not be opened.
    """
    raise NotImplementedError
