# SPDX-License-Identifier: Apache-2.0
"""The agent's judgement of a verified license: does it hold now, here, and for what?

Signature and structure are `lictoken`'s; this module asks only what a host can know.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import Enum
from fnmatch import fnmatchcase
from types import MappingProxyType
from typing import Final

from licagent.domain.entitlements import judge_entitlements, refusals
from licagent.domain.reason import Reason
from lictoken.claims import License

__all__ = ["HostFacts", "Judgement", "LicenseState", "applicability", "judge", "refusals"]


class LicenseState(Enum):
    """What a license is worth on this host at a moment."""

    VALID = "valid"
    NOT_YET_VALID = "not_yet_valid"
    EXPIRED = "expired"
    REVOKED = "revoked"
    CONDITION = "condition"  # it holds, but not on this host
    LEASE_LOST = "lease_lost"  # of the control plane, which has not leased it to this host

    @property
    def reason(self) -> Reason:
        """The reason of the decisions that a license in this state leads to."""
        return _REASONS[self]


_REASONS: Final = {
    LicenseState.VALID: Reason.LICENSED,
    LicenseState.NOT_YET_VALID: Reason.NOT_YET_VALID,
    LicenseState.EXPIRED: Reason.EXPIRED,
    LicenseState.REVOKED: Reason.REVOKED,
    LicenseState.CONDITION: Reason.CONDITION,
    LicenseState.LEASE_LOST: Reason.LEASE_LOST,
}


@dataclass(frozen=True, slots=True)
class HostFacts:
    """What a license's scope, host list and conditions are compared with."""

    hostname: str = ""
    machine_id: str = ""
    labels: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    """`org`, `project`, `environment`, `region` and others: of the control plane's assignment,
    or else from agent.toml."""
    facts: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    """Posture by name (`kernel`, `secure_boot`...); what is not there is not known."""


@dataclass(frozen=True, slots=True)
class Judgement:
    """The state of a license and, where it is not valid, why and what to do about it."""

    state: LicenseState
    detail: str = ""
    hint: str = ""

    @property
    def valid(self) -> bool:
        """Whether the license grants anything now."""
        return self.state is LicenseState.VALID


def judge(
    license: License,
    now_s: float,
    host: HostFacts,
    *,
    revoked: bool = False,
    earliest_s: float | None = None,
    lease_end_s: float | None = math.inf,
) -> Judgement:
    """What `license` is worth on `host` at `now_s`, in seconds since 1970 UTC.

    `lease_end_s` is when its lease ends, grace included; infinity for one that needs no lease,
    None for one that has none.

    `earliest_s` is the time that it certainly is, where the host's clock is in doubt
    (`TrustedClock.earliest_ns`): a license begins only when that time has come. A license
    holds in not_before_s <= now < expires_at_s. Revocation is named first, then what is
    wrong with the place, then a missing lease, then the time, in the order in which the kernel
    looks.
    """
    if revoked:
        return Judgement(
            LicenseState.REVOKED, f"license {license.jti} was revoked", "ask its issuer for another"
        )
    for detail, hint in applicability(license, host):
        return Judgement(LicenseState.CONDITION, detail, hint)
    entitlements = judge_entitlements(license, host.labels, host.facts, now_s, earliest_s)
    if entitlements.none_left:
        why = entitlements.why_not()
        return Judgement(LicenseState.CONDITION, f"license {license.jti}: {why.detail}", why.hint)
    if lease_end_s is None and now_s >= license.expires_at_s:
        lease_end_s = math.inf  # no lease is given for what has ended: its end is the cause
    if lease_end_s is None:
        return Judgement(
            LicenseState.LEASE_LOST,
            f"license {license.jti} is the control plane's, which has not leased it to this host",
            "see `licagent status` for the link to the control plane",
        )
    if (now_s if earliest_s is None else min(now_s, earliest_s)) < license.not_before_s:
        return Judgement(
            LicenseState.NOT_YET_VALID,
            f"license {license.jti} does not begin before {_date(license.not_before_s)}",
            "wait, or check the clock with `licagent status`",
        )
    if lease_end_s < license.expires_at_s and now_s >= lease_end_s:
        return Judgement(
            LicenseState.LEASE_LOST,
            f"the lease of license {license.jti} ended at {_date(int(lease_end_s))}",
            "see `licagent status` for the link to the control plane",
        )
    if now_s >= license.expires_at_s:
        return Judgement(
            LicenseState.EXPIRED,
            f"license {license.jti} ended at {_date(license.expires_at_s)}",
            "add its renewal: licagent license add FILE",
        )
    return Judgement(LicenseState.VALID)


def _date(unix_s: int) -> str:
    try:
        return f"{datetime.fromtimestamp(unix_s, UTC):%Y-%m-%dT%H:%M:%SZ}"
    except (OverflowError, ValueError, OSError):  # after the year 9999
        return f"{unix_s} s after 1970"


def applicability(
    license: License,
    host: HostFacts,
) -> Iterable[tuple[str, str]]:
    """Why `license` is not for `host`, with what would change it; nothing where it is.

    Environments and regions must be declared by the host, for a host that keeps silent
    about where it stands must not gain by it. Organisation and project name the licensee:
    they exclude only hosts that declare another one.
    """
    if license.hosts and not any(_is_host(pattern, host) for pattern in license.hosts):
        yield (
            (
                f"license {license.jti} is for the hosts {', '.join(license.hosts)}, "
                f"and this is {host.hostname or 'a host without a name'}"
            ),
            "have it issued for this host",
        )
    scope = license.scope
    for label, wanted in (("org", scope.org), ("project", scope.project)):
        own = host.labels.get(label)
        if wanted and own is not None and own != wanted:
            yield (
                f"license {license.jti} is for the {label} {wanted}, and this host's is {own}",
                f"correct labels.{label} in agent.toml, or have the license issued for {own}",
            )
    for label, allowed in (("environment", scope.environments), ("region", scope.regions)):
        own = host.labels.get(label)
        if allowed and own not in allowed:
            words = ", ".join(allowed)
            yield (
                f"license {license.jti} is for the {label} {words}, and this host "
                + (f"is in {own}" if own is not None else "declares none"),
                f"set labels.{label} in agent.toml, or have the license issued for this host's",
            )


def _is_host(pattern: str, host: HostFacts) -> bool:
    """Whether `pattern` names the host: its name (`*` and `?` allowed), or `machine-id:...`."""
    if pattern.startswith("machine-id:"):
        return bool(host.machine_id) and pattern[len("machine-id:") :] == host.machine_id
    # Host names are compared without case (RFC 4343) and without the root's dot.
    name = host.hostname.lower().rstrip(".")
    return bool(name) and fnmatchcase(name, pattern.lower().rstrip("."))
