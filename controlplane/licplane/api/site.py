# SPDX-License-Identifier: Apache-2.0
"""What the parts of one worker share, and how they reach the database."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final, ParamSpec, TypeVar

from sqlalchemy.exc import SQLAlchemyError

from licplane.api.admission import Pace
from licplane.api.metrics import Metrics
from licplane.api.settings import ServerSettings
from licplane.errors import PlaneError
from licplane.service.plane import Plane

P = ParamSpec("P")
T = TypeVar("T")

FAULTS: Final = (PlaneError, SQLAlchemyError, OSError)
"""What a call into the plane may raise without a fault of this program."""

log = logging.getLogger("licplane.api")


class Site:
    """Plane, settings and metrics of one worker. Made and used on its event loop."""

    def __init__(self, plane: Plane, settings: ServerSettings) -> None:
        self.plane = plane
        self.settings = settings
        self.metrics = Metrics()
        self.pace = Pace(settings.admission, time.monotonic)
        # What many hosts may cause has threads of its own, so that it never stands in the way
        # of a revocation.
        self._calls = ThreadPoolExecutor(settings.limits.database_threads, "calls")
        self._catalog = ThreadPoolExecutor(2, "catalog")
        self._usage = ThreadPoolExecutor(settings.limits.usage_batches + 1, "usage")

    async def call(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a blocking call of the plane on one of the threads for calls."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._calls, lambda: function(*args, **kwargs))

    async def catalog(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """The same on the threads for what is pushed to hosts."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._catalog, lambda: function(*args, **kwargs))

    async def usage(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """The same on the threads for usage records."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._usage, lambda: function(*args, **kwargs))

    def fault(self, where: str, error: BaseException) -> None:
        """Something of ours failed: count it and say so."""
        self.metrics.count("licplane_errors_total", where=where)
        log.error("%s: %s", where, error, exc_info=not isinstance(error, FAULTS))

    def close(self) -> None:
        """Let the threads end; calls that have not begun are dropped."""
        for pool in (self._calls, self._catalog, self._usage):
            pool.shutdown(wait=True, cancel_futures=True)
