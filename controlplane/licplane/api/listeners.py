# SPDX-License-Identifier: Apache-2.0
"""The two gRPC servers of a worker."""

from __future__ import annotations

from typing import Final

import grpc
import grpc.aio

from licplane.api import administration, enrolment
from licplane.api.administration import AdminService
from licplane.api.calls import Calls
from licplane.api.enrolment import EnrollmentService
from licplane.api.settings import ServerSettings
from licplane.api.site import Site
from licplane.api.sync import SyncService
from licplane.api.telemetry import TelemetryService
from licplane.api.tls import ServerCertificate
from licplane.api.usage_intake import UsageService
from licplane.errors import ExitCode, PlaneError

_KEEPALIVE_MS: Final = 30_000
_KEEPALIVE_TIMEOUT_MS: Final = 10_000
_IDLE_MS: Final = 60_000
_MIN_PING_MS: Final = 10_000
_METADATA_BYTES: Final = 8 * 1024
_WINDOW_BYTES: Final = 64 * 1024


def options(settings: ServerSettings) -> list[tuple[str, int]]:
    """gRPC's channel arguments. Names that it does not know are ignored without a word."""
    limits = settings.limits
    return [
        ("grpc.so_reuseport", 1),
        # The core refuses what is longer without telling us, so it gets room for what we count.
        ("grpc.max_receive_message_length", 2 * limits.message_bytes),
        ("grpc.max_send_message_length", 2 * limits.message_bytes),
        ("grpc.max_metadata_size", _METADATA_BYTES),
        ("grpc.absolute_max_metadata_size", 2 * _METADATA_BYTES),
        ("grpc.max_concurrent_streams", limits.streams_a_connection),
        ("grpc.max_allowed_incoming_connections", limits.connections),
        ("grpc.server_handshake_timeout_ms", int(limits.handshake_timeout_s * 1000)),
        # A peer that is gone, or reads nothing, is found by these.
        ("grpc.keepalive_time_ms", _KEEPALIVE_MS),
        ("grpc.keepalive_timeout_ms", _KEEPALIVE_TIMEOUT_MS),
        ("grpc.http2.ping_timeout_ms", _KEEPALIVE_TIMEOUT_MS),  # a minute without it, grpcio 1.85
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.http2.min_ping_interval_without_data_ms", _MIN_PING_MS),
        # One without a stream is of no use: hosts keep theirs open.
        ("grpc.max_connection_idle_ms", _IDLE_MS),
        # No connection outlives the certificate that it was made with.
        ("grpc.max_connection_age_ms", settings.certificate_ttl_s * 1000),
        ("grpc.max_connection_age_grace_ms", 60_000),
        # Hosts say little: small windows, and none that grow.
        ("grpc.http2.bdp_probe", 0),
        ("grpc.http2.lookahead_bytes", _WINDOW_BYTES),
    ]


def control_server(
    site: Site, certificate: ServerCertificate, sync: SyncService, address: str
) -> tuple[grpc.aio.Server, int]:
    """The mutual TLS listener, not started yet, and its port."""
    calls = Calls(site, public=False)
    handlers = (
        sync.handlers(),
        TelemetryService(site).handlers(),
        UsageService(site).handlers(),
        calls.handlers(enrolment.SERVICE, EnrollmentService(site.plane).mutual()),
        calls.handlers(administration.SERVICE, AdminService(site.plane).methods()),
    )
    return _server(site, handlers, certificate.credentials(mutual=True), address)


def public_server(
    site: Site, certificate: ServerCertificate, address: str
) -> tuple[grpc.aio.Server, int]:
    """The listener for peers without a certificate, not started yet, and its port."""
    calls = Calls(site, public=True)
    handlers = (
        calls.handlers(enrolment.SERVICE, EnrollmentService(site.plane).public()),
        calls.handlers(administration.SERVICE, AdminService(site.plane).methods()),
    )
    return _server(site, handlers, certificate.credentials(mutual=False), address)


def _server(
    site: Site,
    handlers: tuple[grpc.GenericRpcHandler, ...],
    credentials: grpc.ServerCredentials,
    address: str,
) -> tuple[grpc.aio.Server, int]:
    server = grpc.aio.server(options=options(site.settings))
    server.add_generic_rpc_handlers(handlers)
    try:
        port = server.add_secure_port(address, credentials)
    except RuntimeError as error:
        raise PlaneError(
            ExitCode.BUSY,
            f"The address {address} cannot be had",
            "Another program listens there, or it is not this machine's: choose another one",
        ) from error
    return server, port
