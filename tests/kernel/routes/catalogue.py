# SPDX-License-Identifier: Apache-2.0
"""Every route there is: importing the themes fills the table."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from tests.kernel.routes import (
    descriptors,
    identity,
    mapped,
    opened,
    opened_service,
    packet,
    passing,
    raw,
    service,
    tcp,
    udp,
    uring_routes,
)
from tests.kernel.routes.base import Context
from tests.kernel.routes.registry import ROUTES

THEMES: Final = (
    tcp,
    udp,
    mapped,
    raw,
    packet,
    uring_routes,
    passing,
    identity,
    descriptors,
    opened,
    service,
    opened_service,
)

HELPERS: Final[dict[str, Callable[[Context], None]]] = {
    "hold": passing.hold,
    "use_inherited": identity.use_inherited,
}
"""Programs that others need beside them; no routes of their own."""

__all__ = ["HELPERS", "ROUTES", "THEMES"]
