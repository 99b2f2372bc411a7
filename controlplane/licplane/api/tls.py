# SPDX-License-Identifier: Apache-2.0
"""The listeners' certificates: from the control plane's own authority, replaced as they age."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import Callable
from typing import Final

import grpc

from licplane.api.site import FAULTS, Site
from licplane.service.answers import ServerCredentials
from licplane.service.plane import wall_clock_ms

_RETRY_S: Final = 60.0
_LOOK_S: Final = 3600.0
_ROOTS_S: Final = 1.0
"""How often it is asked whether the authorities have changed."""


class ServerCertificate:
    """One key and certificate for both listeners of a worker. The key is in memory only."""

    def __init__(
        self, site: Site, names: tuple[str, ...], roots_changed: Callable[[int], None]
    ) -> None:
        """`roots_changed` is told when the authorities have changed, and we serve with it."""
        self._site = site
        self._names = names
        self._lock = threading.Lock()
        self._current: ServerCredentials | None = None
        self._number = 0
        self._roots_changed = roots_changed
        self.roots_changed_ms = 0
        """When the authorities last changed, as far as is known here; 0: never."""
        site.metrics.gauge(
            "licplane_server_certificate_end_timestamp_seconds",
            lambda: self._current.not_after_unix_ms / 1000 if self._current else 0.0,
        )

    async def renew(self) -> None:
        """Get a new one. New connections are served with it, open ones go on."""
        changed_ms = await self._site.catalog(self._site.plane.roots_changed_ms)
        made = await self._site.catalog(self._site.plane.server_credentials, self._names)
        with self._lock:
            self._current = made
            self._number += 1
        self.roots_changed_ms = changed_ms
        self._roots_changed(changed_ms)

    async def keep(self) -> None:
        """Until cancelled: renew at half of the certificate's life, +-10 %."""
        while True:
            current = self._current
            left_s = (current.not_after_unix_ms - wall_clock_ms()) / 1000 if current else 0.0
            jitter = random.uniform(0.9, 1.1)  # noqa: S311  # spreads load, hides nothing
            due_s = time.monotonic() + max(1.0, min(_LOOK_S * 24, left_s / 2 * jitter))
            try:
                await self._until(due_s)
                await self.renew()
            except FAULTS as error:
                self._site.fault("certificate", error)
                await asyncio.sleep(_RETRY_S)

    async def _until(self, due_s: float) -> None:
        """Until it is time, or the authorities have changed."""
        while (left_s := due_s - time.monotonic()) > 0:
            await asyncio.sleep(min(_ROOTS_S, left_s))
            changed_ms = await self._site.catalog(self._site.plane.roots_changed_ms)
            if changed_ms != self.roots_changed_ms:
                return

    def credentials(self, *, mutual: bool) -> grpc.ServerCredentials:
        """For one listener. `mutual`: it takes only peers with a certificate of ours."""
        used = self._number

        def newer() -> grpc.ServerCertificateConfiguration | None:
            # gRPC asks at each handshake, on a thread of its own. It keeps what it was given
            # last, and takes over a configuration: each is made for it and used once.
            nonlocal used
            with self._lock:
                if used == self._number:
                    return None
                used = self._number
                return self._configuration(mutual=mutual)

        return grpc.dynamic_ssl_server_credentials(
            self._configuration(mutual=mutual),
            newer,  # type: ignore[arg-type]  # None is "as it is", says grpc's documentation
            require_client_authentication=mutual,
        )

    def _configuration(self, *, mutual: bool) -> grpc.ServerCertificateConfiguration:
        found = self._current
        if found is None:
            raise RuntimeError("renew() comes first")
        return grpc.ssl_server_certificate_configuration(
            [(found.private_key_pem, found.certificate_chain_pem)],
            root_certificates=found.ca_pem if mutual else None,
        )
