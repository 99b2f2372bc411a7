# SPDX-License-Identifier: Apache-2.0
"""The agent's configuration: every setting, and what it is where nothing is written."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from licagent.domain.footprint import FootprintSpec

if TYPE_CHECKING:
    from collections.abc import Mapping

SOCKET_NAME: Final = "licagent.sock"

RESOLVERS: Final = "resolvers"
"""As the cidr of a failsafe entry: the name servers of this host, whatever they are now."""


@dataclass(frozen=True, slots=True)
class FailsafeSetting:
    """One line of the failsafe list as written; the compiler turns it into table entries."""

    direction: str  # "out": destinations; "in": ports of this host
    cidr: str  # a network, "any", or "resolvers": the name servers of resolv.conf(5)
    ports: tuple[str, ...]  # "53", "67-68"; empty: every port
    protocol: str  # tcp | udp | icmp | sctp | other | any


DEFAULT_FAILSAFE: Final = (
    # What a host needs to have an address, a name and the time, and what its owner needs to
    # get in. Loopback needs no entry: what no resource names passes anyway.
    FailsafeSetting("out", "any", ("67-68", "546-547"), "udp"),  # DHCP, DHCPv6
    # Names from this host's own resolvers only: port 53 of everybody would be a way round.
    FailsafeSetting("out", RESOLVERS, ("53",), "udp"),
    FailsafeSetting("out", RESOLVERS, ("53",), "tcp"),
    FailsafeSetting("out", "any", ("123",), "udp"),  # NTP
    FailsafeSetting("out", "fe80::/10", (), "icmp"),  # neighbours and routers (RFC 4861):
    FailsafeSetting("out", "ff02::/16", (), "icmp"),  # without them there is no IPv6
    FailsafeSetting("in", "any", ("68", "546"), "udp"),
    FailsafeSetting("in", "any", ("22",), "tcp"),  # SSH
)
"""The failsafe list where agent.toml has none of its own."""


@dataclass(frozen=True, slots=True)
class AgentConfig:
    """The settings of one agent. Defaults are those of a packaged installation."""

    mode: str = "observe"  # observe: refuse nothing; enforce: each resource's own mode rules
    config_dir: Path = Path("/etc/licagent")
    state_dir: Path = Path("/var/lib/licagent")
    runtime_dir: Path = Path("/run/licagent")
    bpffs_dir: Path = Path("/sys/fs/bpf/licagent")
    cgroup_root: Path | None = None  # None ("auto"): the cgroup v2 mount
    loader: str = "auto"  # auto | prebuilt | bcc
    labels: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    failsafe: tuple[FailsafeSetting, ...] = DEFAULT_FAILSAFE  # what no policy can deny
    existing_sockets: str = "cut"  # unlicensed sockets older than the agent: cut | keep
    control: str = "auto"  # control plane: auto (as enrolled) | off | host:port instead
    report_interval_s: int = 0  # between reports of host state; 0: as the control plane says
    metering: str = "on"  # on | off
    metering_interval_s: int = 5  # between commits of usage; longer while the spool fills up
    spool_max_bytes: int = 512 * 1024 * 1024  # of usage on disk
    footprint: tuple[FootprintSpec, ...] = ()  # storage that is measured
    metrics_listen: str = "off"  # Prometheus and health over plain HTTP: off | host:port

    @property
    def licenses_dir(self) -> Path:
        """Where *.lic stand."""
        return self.config_dir / "licenses"

    @property
    def policy_dir(self) -> Path:
        """Where the policy's *.toml stand."""
        return self.config_dir / "policy.d"

    @property
    def trust_path(self) -> Path:
        """The issuers' public keys (JWKS)."""
        return self.config_dir / "trust.jwks"

    @property
    def usage_dir(self) -> Path:
        """The ledger of usage."""
        return self.state_dir / "usage"

    @property
    def socket_path(self) -> Path:
        """The local API's socket."""
        return self.runtime_dir / SOCKET_NAME
