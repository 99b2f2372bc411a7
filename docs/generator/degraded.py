# SPDX-License-Identifier: Apache-2.0
"""docs/reference/degraded.md: the codes for why a host is not well, read from the daemon's source.

A code that the daemon gives and that has no words here is an error, and so is the reverse.
"""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Final

from generator.pages import page, table

DAEMON: Final = Path(__file__).resolve().parents[2] / "agent" / "licagent" / "daemon"

_MEANING: Final = {
    "hook-missing": "a program that enforces is not attached: what it closes is open",
    "hook-partial": "a program is attached, but not on every interface",
    "kernel-changed": "somebody gave one of licagent's links another program",
    "hook-old": "the new program does not load; the one before is at work",
    "settings-refused": "agent.toml has mistakes; the last good settings are in force",
    "settings-wait": "a changed setting takes effect with the next start",
    "policy-refused": "the installed policy has mistakes; the last good one is in force",
    "no-policy": "there is no good policy, not even an earlier one",
    "trust-missing": "there are no issuers' keys to verify licenses with",
    "license-refused": "a file in `licenses/` is no license that counts",
    "metrics-unserved": "the address of `metrics_listen` cannot be had",
    "state-damaged": "a damaged file of the state was set aside",
    "control-lost": "something that the control plane gave is lost on the disk",
    "control-cloned": "another machine speaks for this host too",
    "control-banned": "the control plane has banned this host",
    "control-evicted": "the control plane has evicted this host",
    "control-version": "the control plane does not serve this version of the agent",
    "control-leaving": "this host leaves its control plane, and its last usage is not settled yet",
    "control-refused": "the host cannot put the newest revision in force, and keeps the one before",
    "lease-lost": "the leases ended; licenses do what their failure mode says",
    "lease-ending": "the leases are about to end and are not renewed",
    "spool-full": "the bound of undelivered usage is reached; usage is merged in the kernel",
    "usage-unwritable": "records held impossible numbers and were set aside",
    "meter-missing": "this kernel cannot measure something exactly; records say so",
    "usage-refused": "the control plane has set records aside",
    "metering-stopped": "usage cannot be committed to the disk; it adds up in the kernel",
    "usage-ledger": "the ledger on the disk is damaged, or not this host's",
    "footprint": "a footprint of the settings cannot be measured",
    "usage-alarm": "delivery found that records were altered, or are not this host's",
}


def degraded() -> str:
    """The page."""
    given = _codes()
    if given != _MEANING.keys():
        raise LookupError(f"codes without words, or words without code: {given ^ _MEANING.keys()}")
    return page(
        "Why a host is degraded",
        "A host is `degraded` (exit status 150 of `licagent status`) while there is one of these. "
        "Most take nothing from enforcement; `licagent status` has, for each, the words with names "
        "and numbers, and the next step. With `--json` they are `reasons`, in metrics the label "
        "`code` of `licagent_degraded_reasons`.",
        table(
            ("code", "what it means"),
            ((f"`{code}`", _MEANING[code]) for code in _MEANING),
        ),
        "What to do is in [runbooks](../operations/runbooks.md) by alert, and in "
        "[troubleshooting](../operations/troubleshooting.md) by symptom.",
    )


def _codes() -> set[str]:
    """The first argument of every call of the daemon's `_reason`."""
    found = set()
    for file in DAEMON.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            match node:
                case ast.Call(
                    func=ast.Name(id="_reason"), args=[ast.Constant(value=str(code)), *_]
                ):
                    found.add(code)
    return found
