# SPDX-License-Identifier: Apache-2.0
"""What `licplane serve` can be told."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

MIB: Final = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Admission:
    """How many hosts may come at once. Each worker process counts for itself."""

    streams_a_second: float = 200.0
    """Sync streams begun; a token bucket refills at this rate."""
    streams_burst: int = 400
    cold_syncs: int = 64
    """Hosts that are being sent a large delta at the same time."""
    cold_waiting: int = 2_000
    """Hosts that wait for their turn at that; the next ones are told to come back."""
    cold_bytes: int = 64 * 1024
    """What is a large delta."""
    cold_hold_s: float = 30.0
    """A host that does not answer a large delta for that long no longer holds others up."""
    retry_after_min_ms: int = 500
    retry_after_max_ms: int = 10_000
    """Who is turned away gets a time between the two, at random, longer the more wait."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What one peer may use. Beyond it the peer is refused or cut, and a metric counts it."""

    message_bytes: int = 4 * MIB
    sync_message_bytes: int = 64 * 1024
    """Of a message on a sync stream; the longest is a NACK with 4 KiB of words."""
    delta_part_bytes: int = MIB
    hello_timeout_s: float = 10.0
    """A sync stream whose Hello has not come by then is ended."""
    write_timeout_s: float = 30.0
    """A peer that takes longer over one message is cut: it does not read."""
    queue_messages: int = 64
    """Messages waiting for one stream; one more, and the stream is cut."""
    streams_waiting: int = 1_000
    """Sync streams without a Hello, over all peers."""
    streams_a_host: int = 4
    """Sync streams of one host that are being opened; the newest one stays."""
    streams_a_connection: int = 16
    messages_a_second: float = 50.0
    """From one sync stream, over a minute."""
    telemetry_reports: int = 8
    """Reports being stored at the same time; the others wait, unread."""
    telemetry_pause_ms: int = 5_000
    """What a host is told to pause when the reports do not keep up."""
    telemetry_interval_s: float = 1.0
    """A host's next report is not read before that."""
    usage_window: int = 4
    """Batches that a host may have on their way unacknowledged."""
    usage_batches: int = 2
    """Batches being committed at the same time; the others wait."""
    usage_rows: int = 50_000
    """Records that are read and not stored yet, over all streams, at about 2 KiB; the others wait,
    unread."""
    usage_held_bytes: int = 128 * MIB
    """Of batches in memory, over all streams; beyond it hosts are told to come back."""
    connections: int = 20_000
    handshake_timeout_s: float = 10.0
    calls_at_once: int = 256
    """Unary calls being served at the same time, per listener."""
    database_threads: int = 8
    public_failures_a_second: float = 20.0
    """Enrolments, re-enrolments and calls with a bearer token that are refused, over all peers;
    beyond it nobody is heard on the public listener until they are fewer."""
    public_failures_burst: int = 200


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """Where and how to serve. Addresses are `host:port`; port 0 takes a free one."""

    listen: str = "127.0.0.1:8443"
    """Mutual TLS: Sync, Telemetry, Enrollment.Renew, Admin."""
    public_listen: str = "127.0.0.1:8444"
    """TLS with the server's certificate only: Enroll, Reenroll, Admin by bearer token."""
    metrics_listen: str = ""
    """Prometheus text over plain HTTP; worker n takes the port plus n. Empty: none."""
    control_address: str = ""
    """The mutual TLS listener as hosts reach it; empty: as it listens."""
    public_address: str = ""
    """The public listener as hosts reach it; empty: as it listens."""
    server_names: tuple[str, ...] = ()
    """More DNS names and addresses for the server's certificate; those of the four addresses
    above are in it anyway."""
    workers: int = 1
    """Processes that share the two listeners by SO_REUSEPORT."""
    lease_ttl_s: int = 600
    certificate_ttl_s: int = 12 * 3600
    """Of the hosts' certificates, and of the server's own."""
    report_interval_s: int = 30
    trigger_commands: str = ""
    """Folder with the programs that triggers may run; empty: none."""
    usage_interval_s: float = 5.0
    """How often usage is added up, and what triggers have to tell is delivered."""
    stop_grace_s: float = 5.0
    """How long a stopping server lets streams and calls end by themselves."""
    admission: Admission = field(default_factory=Admission)
    limits: Limits = field(default_factory=Limits)


@dataclass(frozen=True, slots=True)
class Addresses:
    """Where a server listens, with the ports that it got."""

    control: str
    public: str
    metrics: tuple[str, ...] = ()
    """One for each worker."""
