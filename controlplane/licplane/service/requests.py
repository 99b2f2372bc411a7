# SPDX-License-Identifier: Apache-2.0
"""What callers hand to the service."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class PlaneSettings:
    """What the service needs to know of how it is deployed."""

    public_address: str = ""  # host:port of the public listener, for join tokens
    control_address: str = ""  # host:port of the mutual TLS listener
    lease_ttl_s: int = 600
    host_certificate_ttl_s: int = 12 * 3600
    admin_certificate_ttl_s: int = 90 * 86400
    server_certificate_ttl_s: int = 12 * 3600
    report_interval_s: int = 30
    connected_ttl_s: int = 90  # a host counts as connected that long after its last sign
    commands_folder: str = ""  # programs that triggers may run; empty: none


@dataclass(frozen=True, slots=True)
class Change:
    """What comes with every change (licapi.control.v1.Change)."""

    request_id: str = ""
    dry_run: bool = False
    etag: str = ""
    reason: str = ""


@dataclass(frozen=True, slots=True)
class PageRequest:
    """Which part of a list. A size of 0 is the default of 100; the most is 1,000."""

    size: int = 0
    token: str = ""


@dataclass(frozen=True, slots=True)
class Machine:
    """What a host says of itself."""

    hostname: str = ""
    machine_id: str = ""  # 32 hexadecimal digits or ""
    boot_id: str = ""
    agent_version: str = ""
    kernel_release: str = ""


@dataclass(frozen=True, slots=True)
class EnrollRequest:
    """A join token's id and secret, and a PKCS #10 request (DER, P-256)."""

    token_id: str
    token_secret: str = field(repr=False)
    csr: bytes = field(repr=False)
    machine: Machine


@dataclass(frozen=True, slots=True)
class ReenrollRequest:
    """See licapi.control.v1.ReenrollRequest."""

    host_id: str
    csr: bytes = field(repr=False)
    counter: bytes = field(repr=False)
    signed_at_unix_ms: int
    signature: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Document:
    """A resource, binding or license as its author writes it: a JSON object as text."""

    kind: str  # resource, binding or license
    name: str  # "" takes the one in the document
    json: str
    etag: str = ""
    revision: int = 0


@dataclass(frozen=True, slots=True)
class Progress:
    """What a host said on its sync stream about the revision in force."""

    host_id: str
    revision: int
    nack: str = ""  # "reason: detail" of a refusal; "" for an ACK
    at_unix_ms: int = 0  # 0: now


@dataclass(frozen=True, slots=True)
class HookReport:
    """licapi.control.v1.HookState."""

    hook: str
    attached: bool
    link_id: int = 0
    program_id: int = 0
    detail: str = ""


@dataclass(frozen=True, slots=True)
class MapReport:
    """licapi.control.v1.MapDigest."""

    map: str
    wanted: bytes
    found: bytes


@dataclass(frozen=True, slots=True)
class ShadowReport:
    """licapi.control.v1.ShadowUsage; totals since the agent's boot."""

    resource: str
    selector: str
    executable: str
    user: str
    count: int
    first_unix_ms: int
    last_unix_ms: int
    reason: str = ""


@dataclass(frozen=True, slots=True)
class LiveReport:
    """licapi.control.v1.LiveUse."""

    license: str
    resource: str
    selector: str
    sockets: int


@dataclass(frozen=True, slots=True)
class Report:
    """A host's report. `json` is the whole HostReport in the proto3 JSON mapping (with
    `preserving_proto_field_name=True`), kept for `host show`; the rest is what is judged."""

    json: str
    at_unix_ms: int
    boot_id: str
    hostname: str
    agent_version: str
    kernel_release: str
    mode: str
    revision: int
    generation: int = 0
    hooks: tuple[HookReport, ...] = ()
    maps: tuple[MapReport, ...] = ()
    degraded: tuple[str, ...] = ()
    break_glass_until_unix_ms: int = 0
    labels: Mapping[str, str] = field(default_factory=dict)
    refused_licenses: Mapping[str, str] = field(default_factory=dict)
    shadow: tuple[ShadowReport, ...] = ()
    live: tuple[LiveReport, ...] = ()
