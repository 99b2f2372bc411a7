# SPDX-License-Identifier: Apache-2.0
"""Every metric of the agent (docs/reference/metrics.md is made from this table)."""

from __future__ import annotations

from typing import Final

from licagent.domain.license import LicenseState
from licagent.domain.reason import Reason, Verdict
from licagent.observability.families import Family, table

SERIES_MAX: Final = 200
"""Licenses, or pairs of license and resource, that have series of their own; the others are one."""

_PAIRS: Final = f"{SERIES_MAX} pairs of license and resource, the others are `other`"
_LICENSES: Final = f"the {SERIES_MAX} licenses that end first, the others are `other`"
_LICENSE_STATES: Final = f"{len(LicenseState)} states"
_CODES: Final = "the agent's own words"


def _gauge(name: str, words: str, labels: tuple[str, ...] = (), bound: str = "") -> Family:
    return Family(f"licagent_{name}", "gauge", words, labels, bound)


def _counter(name: str, words: str, labels: tuple[str, ...] = (), bound: str = "") -> Family:
    return Family(f"licagent_{name}_total", "counter", words, labels, bound)


_USE: Final = ("license", "resource")

FAMILIES: Final = table(
    (
        # ------------------------------------------------------------------- the host
        _gauge("build_info", "1; what runs here, as labels.", ("version", "kernel", "loader"), "1"),
        _gauge("state", "1 for the state that `licagent status` shows.", ("state",), "4 states"),
        _gauge("degraded_reasons", "Why the host is degraded, by code.", ("code",), _CODES),
        _gauge("mode_enforce", "1: the settings let resources be enforced; 0: observe."),
        _gauge("break_glass_active", "1 while the host is open by break-glass."),
        _gauge("break_glass_end_timestamp_seconds", "When break-glass ends; absent without."),
        _gauge(
            "hook_attached",
            "1: the program is attached, as the kernel says now.",
            ("hook",),
            "the agent's hooks",
        ),
        _gauge("guard_locked", "1: the kernel refuses others what would take enforcement away."),
        _counter("guard_refused", "Tries to take enforcement away that were refused."),
        _gauge("integrity_problems", "Files and programs that are not as installed."),
        _gauge("kernel_tables_full", "Identity tables that something did not fit into."),
        _counter(
            "kernel_faults",
            "What a kernel table could not take, by fault.",
            ("fault",),
            "the kernel's faults",
        ),
        _gauge("clock_offset_seconds", "The wall clock's distance from trusted time."),
        _gauge("clock_synchronized", "1: the kernel says that its clock is synchronized."),
        _gauge("metrics_read_seconds", "How long reading these metrics held up the kernel thread."),
        # ---------------------------------------------------------- policy and licenses
        _gauge("policy_generation", "Generation of the policy in force; 0: none."),
        _gauge("policy_loaded_timestamp_seconds", "When it came into force; absent: not yet."),
        _gauge("policy_resources", "Resources of the policy in force."),
        _gauge("policy_bindings", "Bindings of the policy in force."),
        _gauge("policy_rules", "Compiled rules in force."),
        _gauge("licenses", "Licenses on the host, by state.", ("state",), _LICENSE_STATES),
        _gauge("licenses_refused", "License files that were refused."),
        _gauge(
            "license_expiry_timestamp_seconds",
            "End of a license that holds, or will; `other`: the first end of the others.",
            ("license",),
            _LICENSES,
        ),
        _gauge("license_sockets", "Open sockets tagged with a license.", ("license",), _LICENSES),
        # ------------------------------------------------------------------ decisions
        _counter(
            "decisions",
            "Decisions of the kernel, exact also where events were dropped.",
            (*_USE, "verdict", "reason"),
            f"{_PAIRS}; {len(Verdict)} verdicts, {len(Reason)} reasons",
        ),
        _gauge("shadow_uses", "Kinds of use without a binding that were seen (user, program...)."),
        _counter("events_emitted", "Events that the kernel told of."),
        _counter("events_dropped", "Events that did not fit the ring; counters have them."),
        _counter("events_lost_on_disk", "Events that the disk did not take."),
        # -------------------------------------------------------------- control plane
        _gauge("control_enrolled", "1: the host has joined a control plane, and the link is on."),
        _gauge("control_connected", "1: the stream to the control plane is open."),
        _gauge("control_last_contact_timestamp_seconds", "Last message of it; absent: none yet."),
        _gauge("control_failed_attempts", "Failed tries since the link was last open."),
        _gauge("control_revision", "Revision of its catalog that is in force."),
        _gauge("control_lag_revisions", "Revisions that were offered and are not in force."),
        _gauge("control_refused", "1: its newest revision is refused; the one before holds."),
        _gauge("control_lease_end_timestamp_seconds", "When the leases end; absent: none."),
        _gauge("control_certificate_end_timestamp_seconds", "End of the host's certificate."),
        _counter("control_reports", "Reports of host state that were sent."),
        # ------------------------------------------------------------------- metering
        _gauge("metering_state", "1 for the state of metering.", ("state",), "3 states"),
        _gauge("metering_last_commit_timestamp_seconds", "Last commit of usage; absent: none yet."),
        _gauge("metering_interval_seconds", "Between commits: longer while the spool fills up."),
        _gauge("metering_step_seconds", "CPU time that the last commit took."),
        _counter("metering_records", "Usage records committed."),
        _gauge("spool_bytes", "Usage on disk."),
        _gauge("spool_max_bytes", "The most it may be."),
        _gauge("usage_unacknowledged_records", "Committed and not acknowledged yet."),
        _gauge("usage_gaps", "Losses of usage that are known by name."),
        _counter("usage_acknowledged_records", "Acknowledged by the control plane."),
        _counter("usage_refused_records", "Set aside by the control plane, and not billed."),
        _gauge("usage_delivery_alarm", "1: the control plane finds fault with the host's usage."),
        _gauge(
            "footprint_bytes",
            "Measured storage, by footprint.",
            ("footprint",),
            f"{SERIES_MAX} footprints of the settings, the others are `other`",
        ),
        # ---------------------------------------------------------------------- usage
        _counter("usage_cpu_seconds", "CPU time.", _USE, _PAIRS),
        _counter(
            "usage_storage_bytes",
            "Storage input and output; `cancelled`: written, and truncated before it got there.",
            (*_USE, "operation"),
            f"{_PAIRS}; read, write, cancelled",
        ),
        _counter("usage_memory_byte_seconds", "Resident memory over time.", _USE, _PAIRS),
        _counter("usage_processes", "Processes that ended.", _USE, _PAIRS),
        _counter(
            "usage_network_payload_bytes",
            "Payload; `loopback` told apart.",
            (*_USE, "direction", "path"),
            f"{_PAIRS}; 2 directions, 2 paths",
        ),
        _counter(
            "usage_network_wire_bytes",
            "IP packets with headers and repetitions; `loopback` told apart.",
            (*_USE, "direction", "path"),
            f"{_PAIRS}; 2 directions, 2 paths",
        ),
        _counter(
            "usage_network_packets",
            "IP packets; `loopback` told apart.",
            (*_USE, "direction", "path"),
            f"{_PAIRS}; 2 directions, 2 paths",
        ),
        _counter("usage_stored_byte_seconds", "Footprints over time.", _USE, _PAIRS),
        _counter(
            "unattributed_cpu_seconds", "CPU time of the host that no process could be given."
        ),
        _counter(
            "unattributed_network_wire_bytes",
            "Bytes of the interfaces that nobody could be given.",
            ("direction",),
            "2 directions",
        ),
    )
)
"""By name, in the order in which they are served."""
