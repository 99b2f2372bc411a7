# SPDX-License-Identifier: Apache-2.0
"""What the licenses of this host are worth now, and what the kernel is told of them."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

from licagent.daemon.licensing.files import Held, Refused, write_durably
from licagent.daemon.licensing.license_set import LicenseSet
from licagent.domain.clock import TrustedClock
from licagent.domain.entitlements import Entitlements, has_conditions, judge_entitlements
from licagent.domain.license import HostFacts, Judgement, LicenseState, judge
from licagent.domain.reason import Reason
from licagent.domain.slot import ATTESTED_NS, OTHERS_SLACK_NS, SlotValues, slot_values
from licagent.host.posture import boottime_ns
from licagent.kernel.licenses import LicenseTable
from licagent.kernel.numbers import NANOSECONDS_MAX
from licagent.store.licenses import LicenseRecords
from lictoken.claims import License

__all__ = ["Held", "Licensing", "Refused", "write_durably"]


class Licensing(LicenseSet):
    """The licenses of one host, judged by its clock, its leases and by what it is."""

    def __init__(
        self,
        folder: Path,
        trust_path: Path,
        records: LicenseRecords,
        clock: TrustedClock,
        host: HostFacts,
    ) -> None:
        super().__init__(folder, trust_path, records, clock)
        self.host = host
        self._facts_at_ns = 0  # CLOCK_BOOTTIME; nobody has looked yet
        self.all_or_nothing = False
        """A license of which conditions take something grants nothing: no policy could be made
        that leaves only that out."""
        self._left_out: frozenset[tuple[str, str]] = frozenset()
        self._written: dict[int, SlotValues] = {}
        self._leases: Mapping[int, int] = MappingProxyType({})  # number -> end, CLOCK_BOOTTIME
        self._denied: frozenset[int] = frozenset()

    # --- what this host is

    def set_labels(self, labels: Mapping[str, str]) -> None:
        """The host's labels from now on. Takes effect with the next `write`."""
        self.host = replace(self.host, labels=MappingProxyType(dict(labels)))

    def set_hostname(self, name: str) -> None:
        """The host's name from now on. Takes effect with the next `write`."""
        self.host = replace(self.host, hostname=name)

    def set_facts(self, facts: Mapping[str, str]) -> None:
        """The host's posture, as just read. Takes effect with the next `write`."""
        self._facts_at_ns = boottime_ns()
        self.host = replace(self.host, facts=MappingProxyType(dict(facts)))

    def set_leases(self, ends_ns: Mapping[int, int], denied: Collection[int] = ()) -> None:
        """The leases of managed licenses: license number -> end in CLOCK_BOOTTIME, in ns.

        One that is not named has no lease. `denied` are those that the control plane refuses to
        lease, which ends also those that would go on without a lease (failure_mode "open").
        Takes effect with the next `write`.
        """
        self._leases = MappingProxyType(dict(ends_ns))
        self._denied = frozenset(denied)

    # --- judgement

    def judge(self, license: License) -> Judgement:
        """The state of a license on this host now."""
        at_ns = boottime_ns()
        now_ns = self._clock.now_ns(at_ns)
        lease_end_ns = self._lease_end_ns(license)
        lease_end_s: float | None = math.inf
        if lease_end_ns is not None:
            lease_end_s = (now_ns + lease_end_ns - at_ns) / 1e9 if lease_end_ns else None
        return judge(
            license,
            now_ns / 1e9,
            self.host,
            revoked=self.revocation(license) is not None,
            earliest_s=self._clock.earliest_ns(at_ns) / 1e9,
            lease_end_s=lease_end_s,
        )

    def _lease_end_ns(self, license: License) -> int | None:
        """When the lease of a license ends, grace included; 0: it has none; None: needs none."""
        held = self.held.get(license.jti)
        if held is None or not held.managed:
            return None
        if license.number in self._denied:
            return 0
        if license.failure_mode == "open":
            return None
        end_ns = self._leases.get(license.number)
        return 0 if end_ns is None else end_ns + license.grace_s * 1_000_000_000

    # --- conditions

    def entitlements(self, license: License, host: HostFacts | None = None) -> Entitlements:
        """The entitlements of a license by their conditions, now; on this host or another."""
        at_ns = boottime_ns()
        host = host or self.host
        return judge_entitlements(
            license,
            host.labels,
            host.facts,
            self._clock.now_ns(at_ns) / 1e9,
            self._clock.earliest_ns(at_ns) / 1e9,
        )

    def withheld(self) -> frozenset[tuple[str, str]]:
        """(license id, resource) of the entitlements that a policy must leave out now.

        Of a license of which conditions leave nothing there is none: its slot grants nothing.
        """
        return frozenset(
            (one.license.jti, resource)
            for one in self.held.values()
            for resource in self._withheld_of(one.license)
        )

    def _withheld_of(self, license: License) -> frozenset[str]:
        found = self.entitlements(license)
        return frozenset() if found.none_left else found.failing

    def settle(self, withheld: AbstractSet[tuple[str, str]]) -> None:
        """Say what the tables in the kernel leave out.

        A license that granted nothing is given back only when they leave out all that must be.
        """
        self._left_out = frozenset(withheld)

    def _condition_end_ns(self, license: License) -> int | None:
        """Up to when conditions are taken to hold, by what is known now; None: it has none."""
        if not has_conditions(license):
            return None
        # From when the host was looked at, not from now: nobody may look any more.
        end_ns = self._facts_at_ns + ATTESTED_NS
        ends_s = set(self.entitlements(license).ends_s)
        first_s = min((end_s for end_s in ends_s if end_s is not None), default=None)
        if first_s is not None:
            hours_end_ns = self._clock.deadline_boottime_ns(first_s)
            # Others go on: the daemon takes away this one, and the kernel all where it is dead.
            end_ns = min(end_ns, hours_end_ns + (OTHERS_SLACK_NS if len(ends_s) > 1 else 0))
        return end_ns

    # --- the kernel

    def slot_of(self, license: License) -> SlotValues:
        """What the kernel should hold for a license now."""
        state = self.judge(license).state
        if state is LicenseState.VALID and self.all_or_nothing and self._withheld_of(license):
            state = LicenseState.CONDITION
        return slot_values(
            state,
            self._clock.start_boottime_ns(license.not_before_s),
            self._clock.deadline_boottime_ns(license.expires_at_s),
            lease_end_ns=self._lease_end_ns(license),
            condition_end_ns=self._condition_end_ns(license),
        )

    def write(self, table: LicenseTable) -> bool:
        """Bring the kernel's table up to date; True if some open sockets are dead by that."""
        died = False
        for one in self.held.values():
            died |= self.write_one(table, one.license)
        known = {one.license.number for one in self.held.values()}
        for number in table.numbers():
            if number not in known:
                died |= table.set(number, LicenseState.REVOKED.reason, 0, NANOSECONDS_MAX)
        self._written = {number: self._written[number] for number in known}
        return died

    def write_one(self, table: LicenseTable, license: License) -> bool:
        """Bring the slot of one license up to date; True if some open sockets are dead by that."""
        values = self.slot_of(license)
        before = table.get(license.number)
        granted = before is not None and before.state is Reason.LICENSED
        if values.state is Reason.LICENSED and not granted:
            left_out = {resource for jti, resource in self._left_out if jti == license.jti}
            if not self._withheld_of(license) <= left_out:
                values = replace(values, state=Reason.CONDITION)
        self._written[license.number] = values
        died = table.set(
            license.number,
            values.state,
            values.not_before_ns,
            values.not_after_ns,
            values.end_reason,
        )
        if granted and before is not None:  # an end that was moved into the past
            died |= before.not_after_ns > boottime_ns() >= values.not_after_ns
        return died

    def next_end_ns(self, after_ns: int) -> int | None:
        """The first license end after `after_ns`, both in trusted unix ns; it may be past.

        The ends of leases and conditions are those of the last `write`.
        """
        ends = [one.license.expires_at_s * 1_000_000_000 for one in self.held.values()]
        clock = self._clock.state
        ends += (
            # Not `now_ns`, which knows no time before the last reading.
            clock.now_ns + values.not_after_ns - clock.boottime_ns
            for values in self._written.values()
            if values.state is Reason.LICENSED and values.end_reason is not Reason.EXPIRED
        )
        return min((end for end in ends if end > after_ns), default=None)
