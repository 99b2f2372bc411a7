# SPDX-License-Identifier: Apache-2.0
"""What `licagent status` and the settings are answered with (docs/reference/commands.md)."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from licagent.daemon.control import status as control_status
from licagent.daemon.decisions import rfc3339
from licagent.daemon.licensing.reports import holders_by_license, license_row
from licagent.daemon.metering import status as metering_status
from licagent.daemon.policy.reports import amounts
from licagent.daemon.status_reasons import reasons_of, state_of
from licagent.domain.config_reader import values
from licagent.host.posture import kernel_release
from licagent.kernel.hooks import hook as hook_named
from licagent.kernel.numbers import Fault
from licapi.version import installed

if TYPE_CHECKING:
    from licagent.daemon.agent import Agent

Report = dict[str, Any]

VERSION = installed()


def status(agent: Agent) -> Report:
    """Is this host enforcing, and is all well?"""
    kernel = agent.kernel
    hooks = kernel.hooks()
    counters = kernel.counters.read()
    holders = holders_by_license(agent)
    reasons = reasons_of(agent, hooks)
    compiled = agent.policy.compiled
    reading = agent.clock_keeper.reading()
    return {
        "schema_version": 1,
        "version": VERSION,
        "state": state_of(agent, reasons),
        "reasons": reasons,
        "pid": os.getpid(),
        "started_at": rfc3339(agent.started_at),
        "mode": agent.config.mode,
        "policy": {
            "generation": kernel.control.generation,
            "loaded_at": rfc3339(agent.policy.loaded_at) if agent.policy.loaded_at else None,
            "files": [name for name, _ in compiled.texts] if compiled else [],
            **(amounts(compiled) if compiled else {"resources": 0, "bindings": 0, "rules": 0}),
        },
        "licenses": [
            license_row(agent, held.license, holders, counters)
            for held in agent.licensing.held.values()
        ],
        "refused_files": [
            {"file": each.file, "reason": each.reason, "detail": each.detail, "hint": each.hint}
            for each in agent.licensing.refused
        ],
        "kernel": {
            "release": kernel_release(),
            "loader": kernel.report["loader"],
            "load_ns": kernel.report["duration_ns"],
            "load_notes": kernel.report["notes"],
            "programs": [
                {
                    "hook": each.name,
                    "attached": each.attached,
                    "loader": each.loader,
                    "link_id": each.link_id,
                    "program_id": each.program_id,
                }
                for each in hooks
            ],
            "missing": [
                {
                    "hook": each.name,
                    "closes": hook_named(each.name).closes,
                    "consequence": hook_named(each.name).without,
                    "kernel": hook_named(each.name).kernel,
                    "error": each.error,
                }
                for each in hooks
                if not each.attached
            ],
        },
        "counters": [
            {
                "license": agent.records.jti_of(each.license) if each.license else None,
                "resource": agent.names.resource(each.resource),
                "verdict": each.verdict.name.lower(),
                "reason": each.reason.name.lower(),
                "count": each.count,
            }
            for each in counters
        ],
        "events": {
            "emitted": kernel.counters.fault(Fault.EVENT_EMITTED),
            "dropped": kernel.counters.fault(Fault.EVENT_DROPPED),
            "lost_on_disk": agent.log.lost,
        },
        "break_glass": (
            {key: agent.glass.opening[key] for key in ("until", "reason", "by")}
            if agent.glass.opening
            else None
        ),
        "clock": {
            "trusted_now": rfc3339(agent.clock.now_ns(reading.boottime_ns) / 1e9),
            "wall_offset_s": round(agent.clock.wall_offset_ns(reading) / 1e9, 3),
            "high_water": rfc3339(agent.clock.high_water_ns / 1e9),
        },
        "control": control_status.control(agent),
        "metering": metering_status.metering(agent),
        "host": {
            "labels": dict(agent.licensing.host.labels),
            "facts": dict(agent.licensing.host.facts),
        },
        "shadow": agent.shadow.rows()[:50],
    }


def settings(agent: Agent) -> list[Report]:
    """The settings in force, written as in agent.toml."""
    return [{"key": key, "value": value} for key, value in values(agent.config).items()]
