# SPDX-License-Identifier: Apache-2.0
"""Why usage is not taken, and the alarms that say so."""

from __future__ import annotations

from licplane.errors import Conflict, ExitCode, PlaneError
from licplane.service.core import Core
from licplane.service.usage.values import Position, UsageRefused
from licplane.store.recorder import Recorder
from licplane.store.usage_model import Chain, UsageAlarm
from lictoken.claims import I64_MAX


class UsageRefusals:
    """Refuses what is false, and leaves an alarm of it."""

    def __init__(self, core: Core) -> None:
        self._core = core

    def false(self, chain: Chain, code: str, sequence: int, what: str) -> UsageRefused:
        """Something in a chain is not what its host signed."""
        return self.alarmed(chain.host_id, chain.epoch, code, sequence, what)

    def alarmed(
        self, host_id: str, epoch: int, code: str, sequence: int, what: str
    ) -> UsageRefused:
        """Leave an alarm; the error to raise."""
        now_ms = self._core.now_ms()
        with self._core.store.recording() as recorder:
            recorder.put_alarm(UsageAlarm(host_id, epoch, code, sequence, what, now_ms, now_ms))
        return UsageRefused(
            code,
            f"{what} (epoch {epoch}, sequence {sequence})",
            "Look at the host: its spool was altered, or put back from a copy",
        )


def locked(recorder: Recorder, chain: Chain, at: Position) -> None:
    """Take the chain's row. Raises Conflict if it is not at this place."""
    found = recorder.locked_chain(chain.host_id, chain.epoch)
    if found is None or (found.acked_sequence, found.acked_hash) != at:
        raise Conflict("Another stream of the host was quicker", "Open a new stream")


def alarm(
    chain: Chain, code: str, sequence: int, detail: str, now_ms: int, *, count: int = 1
) -> UsageAlarm:
    """An alarm about a place in a chain."""
    return UsageAlarm(chain.host_id, chain.epoch, code, sequence, detail, now_ms, now_ms, count)


def out_of_order(at: Position, first: int) -> Conflict:
    """The error for what does not follow `at`."""
    return Conflict(
        f"Sequence {first} does not follow {at.sequence}", "Open a new stream, and go on from there"
    )


def malformed(message: str) -> PlaneError:
    """The error for what no host of ours sends."""
    return PlaneError(ExitCode.USAGE, message, "See licapi.control.v1.Telemetry.Usage")


def in_chain(chain: Chain, epoch: int, first: int, last: int) -> None:
    """Raise PlaneError USAGE for another epoch, or a range that cannot be."""
    if epoch != chain.epoch:
        raise malformed("The stream is another epoch's")
    if not 0 < first <= last <= I64_MAX:
        raise malformed("There is no such range of sequences")
