# SPDX-License-Identifier: Apache-2.0
"""Connections to the control plane: TLS 1.3, both sides with certificates. Loads gRPC.

gRPC for Python has no setting for the lowest TLS version. But in TLS 1.2 the cipher suite says
which kind of certificate the server has: with only a suite for RSA allowed there, and ours being
P-256, a handshake below 1.3 finds nothing in common. Suites of TLS 1.3 are not concerned. The
variable is read when gRPC starts, so it is set in licagent.control, which comes before.
"""

from __future__ import annotations

import logging
from typing import Final

import grpc

from licagent.control.hostkey import pem_of
from licagent.control.interface import ControlSettings
from licagent.domain.hostidentity import Identity
from licagent.uplink.client import UplinkError, uplink

_log: Final = logging.getLogger(__name__)

MESSAGE_MAX_BYTES: Final = 4 * 1024 * 1024
_CONNECT_MS: Final = 10_000

RETRY_AFTER: Final = "retry-after-ms"
"""Trailing metadata of RESOURCE_EXHAUSTED and UNAVAILABLE: when to come back."""

REFUSAL: Final = "licplane-refusal"
"""Trailing metadata: why a stream was refused, where this side acts on it: `version`."""


def control_channel(
    identity: Identity, address: str, settings: ControlSettings
) -> grpc.aio.Channel:
    """A connection of its own to the mutual TLS listener."""
    credentials = grpc.ssl_channel_credentials(
        root_certificates=pem_of(*identity.ca_certificates),
        private_key=identity.key_pem,
        certificate_chain=pem_of(*identity.certificate_chain),
    )
    return _secure_channel(address, credentials, settings)


def public_channel(
    ca_certificates: tuple[bytes, ...], address: str, settings: ControlSettings | None = None
) -> grpc.aio.Channel:
    """A connection to the public listener: the server is verified, the host is nobody yet."""
    credentials = grpc.ssl_channel_credentials(root_certificates=pem_of(*ca_certificates))
    return _secure_channel(address, credentials, settings)


def _secure_channel(
    address: str, credentials: grpc.ChannelCredentials, settings: ControlSettings | None
) -> grpc.aio.Channel:
    """Directly, or by the way out that the environment names: the server's name stays the same."""
    way_out = uplink()
    if way_out is None:
        return grpc.aio.secure_channel(address, credentials, _options(settings))
    name = address.rpartition(":")[0].strip("[]")
    options = [
        *_options(settings),
        ("grpc.ssl_target_name_override", name),
        ("grpc.default_authority", address),
    ]
    try:
        target = f"unix:{way_out.carry(address)}"
    except UplinkError as error:
        _log.warning("%s", error)
        target = address  # fails, and says where to
    return grpc.aio.secure_channel(target, credentials, options)


def _options(settings: ControlSettings | None) -> list[tuple[str, int | str]]:
    # Names as in grpc/impl/channel_arg_names.h: a wrong one is ignored without a word.
    options: list[tuple[str, int | str]] = [
        ("grpc.max_receive_message_length", MESSAGE_MAX_BYTES),
        ("grpc.max_send_message_length", MESSAGE_MAX_BYTES),
        # Else two channels with the same arguments share one connection, and telemetry delays
        # a revocation.
        ("grpc.use_local_subchannel_pool", 1),
        # Coming back is our business: a channel lives for one try.
        ("grpc.enable_retries", 0),
        ("grpc.min_reconnect_backoff_ms", _CONNECT_MS),
        ("grpc.initial_reconnect_backoff_ms", _CONNECT_MS),
    ]
    if settings is not None:
        options += [
            ("grpc.keepalive_time_ms", settings.keepalive_ms),
            ("grpc.keepalive_timeout_ms", settings.keepalive_timeout_ms),
            # Alone, the line above changes nothing: an unanswered ping ends the connection after
            # this one, which is a minute by default (seen with grpcio 1.85).
            ("grpc.http2.ping_timeout_ms", settings.keepalive_timeout_ms),
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.http2.max_pings_without_data", 0),
            ("grpc.primary_user_agent", f"licagent/{settings.agent_version}"),
        ]
    return options


def retry_after_ms(error: grpc.aio.AioRpcError) -> int:
    """When the server asks to come back; 0 where it does not say."""
    for key, value in error.trailing_metadata() or ():
        if key == RETRY_AFTER and isinstance(value, str) and value.isdigit():
            return int(value[:12])
    return 0


def is_of_version(error: grpc.aio.AioRpcError) -> bool:
    """Whether the server does not serve this agent's version."""
    return any(pair == (REFUSAL, "version") for pair in error.trailing_metadata() or ())


def described(error: grpc.aio.AioRpcError, address: str) -> str:
    """A failed call, for people."""
    code = error.code()
    details = (error.details() or "").strip()[:400]
    way_out = uplink()
    if way_out is not None and (failure := way_out.failure_of(address)):
        details = failure  # what it sees itself is only that a local socket was closed
    if code is grpc.StatusCode.UNAVAILABLE:
        return f"no connection to {address}: {details}"
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return f"{address} did not answer in time"
    return f"{address} refused ({code.name.lower().replace('_', ' ')}): {details}"
