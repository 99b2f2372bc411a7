# SPDX-License-Identifier: Apache-2.0
"""The agent's metrics at one moment, read on the kernel thread as a status is.

But for the walk over all sockets, which takes as long as there are sockets: a revocation must not
wait for a scrape.
"""

from __future__ import annotations

import time
from collections import Counter as Tally
from collections.abc import Iterator
from collections.abc import Mapping as Table
from functools import partial
from typing import TYPE_CHECKING, Final

from licagent.control.interface import ControlPhase
from licagent.daemon import reports, status_reasons
from licagent.daemon.decisions import boottime_to_unix
from licagent.daemon.licensing import reports as license_reports
from licagent.daemon.metering import status as metering_status
from licagent.daemon.metrics.families import FAMILIES, SERIES_MAX
from licagent.daemon.policy import reports as policy_reports
from licagent.domain.license import LicenseState
from licagent.domain.usage import Meter
from licagent.host.posture import kernel_release
from licagent.kernel.numbers import Fault
from licagent.observability.families import NONE, OTHER, Admitted, Readings

if TYPE_CHECKING:
    from licagent.daemon.agent import Agent

METERING_STATES: Final = ("on", "degraded", "off")
_EVENTS: Final = frozenset({Fault.EVENT_EMITTED, Fault.EVENT_DROPPED})
_HOLDING: Final = frozenset({LicenseState.VALID, LicenseState.NOT_YET_VALID})
_MS: Final = 1e-3
_NS: Final = 1e-9

_USED: Final[Table[Meter, tuple[str, float, tuple[str, ...]]]] = {
    Meter.CPU_NS: ("licagent_usage_cpu_seconds_total", _NS, ()),
    Meter.READ_BYTES: ("licagent_usage_storage_bytes_total", 1, ("read",)),
    Meter.WRITE_BYTES: ("licagent_usage_storage_bytes_total", 1, ("write",)),
    Meter.CANCELLED_BYTES: ("licagent_usage_storage_bytes_total", 1, ("cancelled",)),
    Meter.MEMORY_BYTE_MS: ("licagent_usage_memory_byte_seconds_total", _MS, ()),
    Meter.PROCESSES: ("licagent_usage_processes_total", 1, ()),
    Meter.TX_PAYLOAD_BYTES: ("licagent_usage_network_payload_bytes_total", 1, ("transmit",)),
    Meter.RX_PAYLOAD_BYTES: ("licagent_usage_network_payload_bytes_total", 1, ("receive",)),
    Meter.TX_WIRE_BYTES: ("licagent_usage_network_wire_bytes_total", 1, ("transmit",)),
    Meter.RX_WIRE_BYTES: ("licagent_usage_network_wire_bytes_total", 1, ("receive",)),
    Meter.TX_PACKETS: ("licagent_usage_network_packets_total", 1, ("transmit",)),
    Meter.RX_PACKETS: ("licagent_usage_network_packets_total", 1, ("receive",)),
    Meter.STORED_BYTE_MS: ("licagent_usage_stored_byte_seconds_total", _MS, ()),
}
"""Of each meter: its metric, how much of the metric's unit one of the meter's is, and labels."""

_UNATTRIBUTED: Final[Table[Meter, tuple[str, float, tuple[str, ...]]]] = {
    Meter.CPU_NS: ("licagent_unattributed_cpu_seconds_total", _NS, ()),
    Meter.TX_WIRE_BYTES: ("licagent_unattributed_network_wire_bytes_total", 1, ("transmit",)),
    Meter.RX_WIRE_BYTES: ("licagent_unattributed_network_wire_bytes_total", 1, ("receive",)),
}


class MetricsReader:
    """Reads them; knows from one reading to the next which series exist."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent
        self._pairs = Admitted(SERIES_MAX)
        self._footprints = Admitted(SERIES_MAX)

    def sockets(self) -> Tally[int]:
        """Open sockets by slot of the license table, for `read`. On any thread."""
        return license_reports.holders_by_slot(self._agent)

    def read(self, sockets: Tally[int]) -> Readings:
        """All metrics now. On the kernel thread."""
        began_ns = time.perf_counter_ns()
        found = Readings(FAMILIES)
        for part in (
            self._host,
            self._clock,
            self._policy,
            partial(self._licenses, sockets),
            self._decisions,
            self._control,
            self._metering,
            self._usage,
        ):
            part(found)
        found.put("licagent_metrics_read_seconds", (time.perf_counter_ns() - began_ns) * _NS)
        return found

    def _host(self, found: Readings) -> None:
        agent = self._agent
        kernel = agent.kernel
        hooks = kernel.hooks()
        why = status_reasons.reasons_of(agent, hooks)
        loader = str(kernel.report["loader"])
        found.put("licagent_build_info", 1, reports.VERSION, kernel_release(), loader)
        state = status_reasons.state_of(agent, why)
        for word in status_reasons.STATES:
            found.put("licagent_state", word == state, word)
        for reason in why:
            found.put("licagent_degraded_reasons", 1, str(reason["code"]))
        found.put("licagent_mode_enforce", agent.config.mode == "enforce")
        left_s = agent.glass.left_s()
        found.put("licagent_break_glass_active", state == "break-glass")
        if left_s is not None and left_s > 0:
            end_s = time.time() + left_s
            found.put("licagent_break_glass_end_timestamp_seconds", end_s)
        for hook in hooks:
            found.put("licagent_hook_attached", hook.attached, hook.name)
        found.put("licagent_guard_locked", agent.kernel_watch.is_locked)
        found.put("licagent_guard_refused_total", agent.kernel_watch.refusals)
        found.put("licagent_integrity_problems", len(agent.self_check.problems))
        found.put("licagent_kernel_tables_full", len(kernel.identity.full))
        for fault in Fault:
            if fault not in _EVENTS:
                count = kernel.counters.fault(fault)
                found.put("licagent_kernel_faults_total", count, fault.name.lower())

    def _clock(self, found: Readings) -> None:
        reading = self._agent.clock_keeper.reading()
        offset_ns = self._agent.clock.wall_offset_ns(reading)
        found.put("licagent_clock_offset_seconds", offset_ns * _NS)
        found.put("licagent_clock_synchronized", reading.synchronized)

    def _policy(self, found: Readings) -> None:
        agent, compiled = self._agent, self._agent.policy.compiled
        found.put("licagent_policy_generation", agent.kernel.control.generation)
        if agent.policy.loaded_at:
            found.put("licagent_policy_loaded_timestamp_seconds", agent.policy.loaded_at)
        amounts = {} if compiled is None else policy_reports.amounts(compiled)
        for part in ("resources", "bindings", "rules"):
            found.put(f"licagent_policy_{part}", amounts.get(part, 0))

    def _licenses(self, sockets: Tally[int], found: Readings) -> None:
        agent = self._agent
        holders = license_reports.numbered(agent, sockets)
        for each in LicenseState:
            found.put("licagent_licenses", 0, each.value)
        found.put("licagent_licenses_refused", len(agent.licensing.refused))
        held = sorted(
            (one.license for one in agent.licensing.held.values()),
            key=lambda license_: (license_.expires_at_s, license_.jti),
        )
        named = 0
        for license_ in held:
            state = agent.licensing.judge(license_).state
            found.put("licagent_licenses", 1, state.value)
            held_by = holders.get(license_.number, 0)
            holds = state in _HOLDING
            if not holds and not held_by:
                continue
            named += 1
            name = license_.jti if named <= SERIES_MAX else OTHER
            found.put("licagent_license_sockets", held_by, name)
            if holds:
                expiry = "licagent_license_expiry_timestamp_seconds"
                found.lowest(expiry, license_.expires_at_s, name)

    def _decisions(self, found: Readings) -> None:
        agent = self._agent
        counters = agent.kernel.counters
        # In the order of their numbers, so that a restart lets in the same ones.
        for each in sorted(counters.read(), key=lambda one: (one.license, one.resource)):
            license_ = agent.records.jti_of(each.license) if each.license else None
            resource = agent.names.resource(each.resource) if each.resource else None
            pair = self._pairs.of(license_ or NONE, resource or NONE)
            words = (each.verdict.name.lower(), each.reason.name.lower())
            found.put("licagent_decisions_total", each.count, *pair, *words)
        found.put("licagent_shadow_uses", len(agent.shadow.rows()))
        emitted = counters.fault(Fault.EVENT_EMITTED)
        found.put("licagent_events_emitted_total", emitted)
        found.put("licagent_events_dropped_total", counters.fault(Fault.EVENT_DROPPED))
        found.put("licagent_events_lost_on_disk_total", agent.log.lost)

    def _control(self, found: Readings) -> None:
        agent = self._agent
        state = agent.link.state
        is_enrolled = state.phase is not ControlPhase.UNENROLLED and not agent.link.is_off
        values: dict[str, float] = {
            "enrolled": is_enrolled,
            "connected": state.phase is ControlPhase.CONNECTED,
            "failed_attempts": state.attempts,
            "revision": agent.control.managed.revision,
            "lag_revisions": state.lag_revisions,
            "refused": bool(state.last_refusal),
            "reports_total": state.reports_sent,
        }
        times = {
            "last_contact": state.last_contact_unix_ms * _MS,
            "certificate_end": state.certificate_end_unix_ms * _MS,
        }
        end_ns = agent.membership.leases.end_boottime_ns
        if end_ns:
            times["lease_end"] = boottime_to_unix(end_ns)
        values |= {f"{name}_timestamp_seconds": time_s for name, time_s in times.items() if time_s}
        for name, value in values.items():
            found.put(f"licagent_control_{name}", value)

    def _metering(self, found: Readings) -> None:
        agent, keeper, parts = self._agent, self._agent.metering, self._agent.metering.parts
        state = metering_status.state_of(agent)
        for word in METERING_STATES:
            found.put("licagent_metering_state", word == state, word)
        if keeper.committed_at_s:
            committed_s = keeper.committed_at_s
            found.put("licagent_metering_last_commit_timestamp_seconds", committed_s)
        interval_s = agent.config.metering_interval_s * keeper.interval_factor
        found.put("licagent_metering_interval_seconds", interval_s)
        found.put("licagent_metering_step_seconds", keeper.step_s)
        found.put("licagent_metering_records_total", keeper.records)
        found.put("licagent_spool_max_bytes", agent.config.spool_max_bytes)
        if parts is not None:
            found.put("licagent_spool_bytes", parts.ledger.size_bytes)
            backlog = parts.ledger.backlog_records
            found.put("licagent_usage_unacknowledged_records", backlog)
            found.put("licagent_usage_gaps", len(parts.ledger.gaps))
            for each in parts.footing.states():
                name = self._footprints.of(each.name)
                found.put("licagent_footprint_bytes", each.stored_bytes or 0, *name)
        progress = agent.link.delivery.progress
        acknowledged = progress.acknowledged_records
        found.put("licagent_usage_acknowledged_records_total", acknowledged)
        found.put("licagent_usage_refused_records_total", progress.refused_records)
        found.put("licagent_usage_delivery_alarm", bool(progress.alarm))

    def _usage(self, found: Readings) -> None:
        totals = self._agent.metering.totals
        for pair, is_loopback, meter, amount in totals.used():
            name, unit, more = _USED[meter]
            path = ("loopback" if is_loopback else "network",) if _has_path(name) else ()
            found.put(name, amount * unit, *pair, *more, *path)
        for name, unit, meter, more in _published():
            found.put(name, totals.unattributed().get(meter, 0) * unit, *more)


def _has_path(name: str) -> bool:
    return FAMILIES[name].labels[-1] == "path"


def _published() -> Iterator[tuple[str, float, Meter, tuple[str, ...]]]:
    for meter, (name, unit, more) in _UNATTRIBUTED.items():
        yield name, unit, meter, more
