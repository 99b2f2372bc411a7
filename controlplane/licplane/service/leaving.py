# SPDX-License-Identifier: Apache-2.0
"""The end of a membership with its last usage settled: leaving, all of it stored, then out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from licplane.errors import ExitCode, PlaneError
from licplane.service.core import Core
from licplane.service.streams import host_of
from licplane.service.values import Actor, HostStatus, Identity, Role
from licplane.service.work import Work, perform_once

ENDS_MAX = 4_096
_GOING = (HostStatus.ACTIVE, HostStatus.DRAINING)


@dataclass(frozen=True, slots=True)
class UsageEnd:
    """The end of one chain of usage records, as its host says."""

    epoch: int
    sequence: int  # of its last record; 0: there is none


class Leaving:
    """What hosts ask for when they go."""

    def __init__(self, core: Core) -> None:
        self._core = core

    def announce(self, identity: Identity) -> None:
        """The host wishes to go: it is told to settle. Raises PlaneError REFUSED."""
        host_id = _host(identity)

        def body(work: Work) -> None:
            host = host_of(work.transaction, host_id)
            if host.status is HostStatus.LEAVING:
                return
            if host.status not in _GOING:
                raise _not_leaving(host.status)
            sequence = host.assignment_sequence + 1
            work.transaction.put_host(
                replace(host, status=HostStatus.LEAVING, assignment_sequence=sequence)
            )
            work.audit("host.leaving", host_id, {"hostname": host.hostname, "by": "the host"})

        perform_once(self._core, Actor(f"host:{host_id}", Role.HOST), body)

    def finish(self, identity: Identity, ends: Sequence[UsageEnd]) -> str:
        """The host is out, if all usage that it names is stored; its id. Repeated it is the same.

        Raises PlaneError REFUSED while usage is missing, and for a host that is not leaving.
        """
        host_id = _host(identity)
        if len(ends) > ENDS_MAX:
            raise PlaneError(
                ExitCode.USAGE, f"A host has at most {ENDS_MAX} chains", "Upgrade licagent"
            )

        def body(work: Work) -> None:
            host = host_of(work.transaction, host_id)
            if host.status is HostStatus.EVICTED:
                return
            if host.status is not HostStatus.LEAVING:
                raise _not_leaving(host.status)
            settled = []
            for end in ends:
                chain = work.transaction.chain(host_id, end.epoch)
                stored = chain.acked_sequence if chain is not None else 0
                if stored < end.sequence:
                    raise PlaneError(
                        ExitCode.REFUSED,
                        f"Usage of epoch {end.epoch} is stored up to {stored}, and"
                        f" {end.sequence} is the last",
                        "Deliver it first",
                    )
                digest = chain.acked_hash.hex() if chain is not None else ""
                settled.append({"epoch": end.epoch, "sequence": stored, "hash": digest})
            sequence = host.assignment_sequence + 1
            work.transaction.put_host(
                replace(host, status=HostStatus.EVICTED, assignment_sequence=sequence)
            )
            work.transaction.revoke_certificates(host_id, work.now_ms)
            work.audit("host.leave", host_id, {"hostname": host.hostname, "usage": settled})

        perform_once(self._core, Actor(f"host:{host_id}", Role.HOST), body)
        return host_id


def _host(identity: Identity) -> str:
    if identity.role is not Role.HOST:
        raise PlaneError(
            ExitCode.PERMISSION, "Only hosts leave", "See `licplane host decommission`"
        )
    return identity.host_id


def _not_leaving(status: HostStatus) -> PlaneError:
    return PlaneError(
        ExitCode.REFUSED,
        f"The host is {status.word}, not leaving",
        "Run `licagent leave` there, or `licplane host decommission HOST`",
    )
