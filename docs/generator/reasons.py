# SPDX-License-Identifier: Apache-2.0
"""docs/reference/reasons.md: why a decision was taken, and what to do."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from typing import Final

from generator.pages import page, table
from licagent.cli.sentences import why
from licagent.domain.reason import REASON_ERRNO, Reason

_NEXT: Final[Mapping[Reason, str]] = {
    Reason.LICENSED: "nothing",
    Reason.NO_RESOURCE: "nothing: what no resource names is not licensed",
    Reason.FAILSAFE: "nothing: [the failsafe list](policy.md) lets it through",
    Reason.BREAK_GLASS: "`licagent break-glass --end`, when the emergency is over",
    Reason.NO_BINDING: "`licagent explain PID` names the selectors that are missing; add a "
    "binding, or use `licagent run --license ID -- CMD`",
    Reason.EXPIRED: "add the renewed license: `licagent license add FILE`",
    Reason.NOT_YET_VALID: "wait; `licagent license show ID` has the beginning, "
    "`licagent status -v` the trusted time",
    Reason.LEASE_LOST: "`licagent status` has the link to the control plane, which leases the "
    "license to this host, and when leases end",
    Reason.REVOKED: "ask the issuer; `licagent events` has who revoked it and why",
    Reason.CONDITION: "`licagent explain PID` names the [condition](conditions.md), and what was "
    "found; or the other host, environment or region, or a limit that this version cannot hold",
    Reason.NO_SEAT: "this version has no seats and never gives this reason",
    Reason.QUOTA: "this version has no quotas and never gives this reason",
    Reason.MALFORMED: "no ordinary program sends such packets; see who does in `licagent events`",
}


def reasons() -> str:
    """docs/reference/reasons.md."""
    known = [reason for reason in Reason if reason is not Reason.NONE]
    return page(
        "Reasons",
        "Each decision has one reason: in events, counters, `explain`, and in the error that a "
        "refused program sees. Numbers are those of `bpf/layout/numbers.h` and never used again.",
        table(
            ("reason", "number", "what it means", "errno", "a program prints", "what to do"),
            (
                (
                    f"`{reason.name.lower()}`",
                    reason.value,
                    why(reason.name),
                    _errno(reason),
                    _message(reason),
                    _NEXT[reason],
                )
                for reason in known
            ),
        ),
        "The errno is that of connect(2), sendto(2), sendmsg(2), bind(2) or socket(2). Kernels "
        f"before 5.18 cannot choose it: there a program sees EPERM, `{os.strerror(errno.EPERM)}`, "
        "whatever the reason is. A packet that is dropped without a call to answer (raw sockets, "
        "packets of an open connection) fails with EPERM or is lost silently.",
        "curl hides the errno: `curl -v` has the line `Immediate connect fail for ...: "
        f"{os.strerror(errno.ENOKEY)}`, without `-v` it prints `Couldn't connect to server` and "
        "ends with status 7. nc, ssh, psql, Python and most others print it.",
        "A connection that is open when its license ends is closed with ECONNABORTED "
        f"(`{os.strerror(errno.ECONNABORTED)}`) by a running daemon. While no daemon runs the "
        "kernel drops its packets, and it is closed when the daemon is back.",
        "## Verdicts",
        table(
            ("verdict", "meaning"),
            (
                ("`allow`", "used under a license, or let through by break-glass"),
                ("`deny`", "refused before the first byte"),
                ("`shadow`", "let through in observe; enforce would have refused it"),
                (
                    "`cut`",
                    "a packet of an open connection was dropped: its license ended meanwhile",
                ),
            ),
        ),
    )


def _errno(reason: Reason) -> str:
    number = REASON_ERRNO.get(reason)
    return "-" if number is None else errno.errorcode[number]


def _message(reason: Reason) -> str:
    number = REASON_ERRNO.get(reason)
    return "-" if number is None else f"`{os.strerror(number)}`"
