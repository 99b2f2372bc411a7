# SPDX-License-Identifier: Apache-2.0
"""The state of this host in one word, and why it is not well where it is not."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

from licagent.daemon.control import status as control_status
from licagent.daemon.metering import status as metering_status
from licagent.host import posture
from licagent.kernel.hook_model import HookKind
from licagent.kernel.hooks import hook as hook_named

if TYPE_CHECKING:
    from licagent.daemon.agent import Agent

Report = dict[str, Any]

STATES: Final = ("enforcing", "observing", "degraded", "break-glass")


def state_of(agent: Agent, reasons: list[Report]) -> str:
    """One of `STATES`. `reasons`: those of `reasons_of`."""
    left = agent.glass.left_s()
    if agent.glass.opening is not None and left is not None and left > 0:
        return "break-glass"
    if reasons:
        return "degraded"
    return "enforcing" if agent.config.mode == "enforce" else "observing"


def reasons_of(agent: Agent, hooks: list[Any]) -> list[Report]:
    """Why the host is not well, and what to do; nothing where it is."""
    found = []
    for each in hooks:
        hook = hook_named(each.name)
        # What only a newer kernel has is in the coverage table; all else should be there.
        expected = hook.required or posture.kernel_version() >= posture.kernel_version(hook.kernel)
        if expected and not each.attached:
            found.append(
                _reason(
                    "hook-missing",
                    f"{each.name} is not attached: {each.error}",
                    "restart licagent, or see `licagent doctor` for what this kernel lacks",
                )
            )
        elif expected and each.error and hook.kind is HookKind.INTERFACE:
            found.append(
                _reason(
                    "hook-partial",
                    f"{each.name} is not everywhere: {each.error}",
                    "it is tried again every few seconds; see `licagent doctor`",
                )
            )
        elif expected and each.error:
            found.append(
                _reason(
                    "hook-old",
                    f"{each.name} does not load, an earlier program is still at work: {each.error}",
                    "install licagent again, or see `licagent doctor`",
                )
            )
    found.extend(_settings_reasons(agent))
    found.extend(
        _reason(
            "kernel-changed",
            problem,
            "find out who did it (`licagent events`), then restart licagent",
        )
        for problem in agent.kernel_watch.replaced
    )
    if agent.policy.problem:
        found.append(
            _reason(
                "policy-refused",
                f"the installed policy is refused: {agent.policy.problem}",
                "see `licagent policy check`; the last good policy stays in force",
            )
        )
    if agent.policy.compiled is None:
        left = agent.kernel.control.generation
        what = f"generation {left} of an earlier start goes on" if left else "nothing is enforced"
        found.append(
            _reason(
                "no-policy",
                f"there is no good policy, and none of an earlier start can be read: {what}",
                "mend the installed policy, then: licagent policy apply",
            )
        )
    if agent.licensing.trust_problem:
        found.append(
            _reason(
                "trust-missing",
                f"no license verifies: {agent.licensing.trust_problem}",
                f"put the issuers' keys into {agent.config.trust_path}",
            )
        )
    found.extend(
        _reason("license-refused", f"{each.file}: {each.detail} ({each.reason})", each.hint)
        for each in agent.licensing.refused
    )
    if agent.metrics_problem:
        found.append(
            _reason(
                "metrics-unserved",
                f"metrics are not served: {agent.metrics_problem}",
                "mend metrics_listen, or free the address; it is tried again every few seconds",
            )
        )
    found.extend(control_status.reasons(agent))
    found.extend(metering_status.reasons(agent))
    found.extend(
        _reason(
            "state-damaged",
            f"a damaged file was set aside: {path}",
            "look into it, then remove it",
        )
        for path in agent.state.damaged()
    )
    return found


def _settings_reasons(agent: Agent) -> Iterator[Report]:
    """What is written in agent.toml and is not in force."""
    keeper = agent.settings
    if keeper is not None and keeper.problem:
        yield _reason(
            "settings-refused",
            f"the settings are refused, the last good ones are in force: {keeper.problem}",
            "see `licagent config check`, mend them, then: systemctl reload licagent",
        )
    if keeper is not None and keeper.waiting:
        yield _reason(
            "settings-wait",
            f"changed settings wait for the next start: {', '.join(keeper.waiting)}",
            "systemctl restart licagent; enforcement goes on meanwhile",
        )


def _reason(code: str, message: str, hint: str) -> Report:
    return {"code": code, "message": message, "hint": hint}
