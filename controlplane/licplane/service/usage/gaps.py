# SPDX-License-Identifier: Apache-2.0
"""Taking gaps: records that a host says are lost, so that its chain can go on after them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from licplane.service.core import Core
from licplane.service.texts import tidy
from licplane.service.usage.chain import HASH_BYTES, gap_words, is_signed
from licplane.service.usage.refusals import (
    UsageRefusals,
    alarm,
    in_chain,
    locked,
    malformed,
    out_of_order,
)
from licplane.service.usage.values import Position, SentGap
from licplane.service.values import Actor, Role
from licplane.service.work import Work, perform_once
from licplane.store.recorder import Recorder
from licplane.store.usage_model import Chain, LostRange

GAP_ACTION: Final = "usage.gap"
"""In the audit log: a gap was taken that no host signed, for the epoch's key is lost."""
_BARE_GAPS_MAX: Final = 16
_REASON_MAX: Final = 500


def gap_detail(lost: LostRange) -> dict[str, object]:
    """What the audit log says of a gap that nobody signed."""
    return {
        "epoch": lost.epoch,
        "first": lost.first_sequence,
        "last": lost.last_sequence,
        "next_previous_hash": lost.next_previous_hash.hex(),
    }


class UsageGaps:
    """Takes them. Threads may share it."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._refusals = UsageRefusals(core)

    def store(self, chain: Chain, at: Position, sent: SentGap) -> Position:
        """Commit a gap that follows `at`. Raises as UsageIntake.check and UsageIntake.store do."""
        in_chain(chain, sent.epoch, sent.first, sent.last)
        if sent.first != at.sequence + 1:
            raise out_of_order(at, sent.first)
        if len(sent.next_previous_hash) != HASH_BYTES or len(sent.reason) > _REASON_MAX:
            raise malformed("The gap has no hash, or too long a reason")
        signed = self._gap_signer(chain, sent) if sent.signature else None
        now_ms = self._core.now_ms()
        lost = LostRange(
            host_id=chain.host_id,
            epoch=chain.epoch,
            first_sequence=sent.first,
            last_sequence=sent.last,
            signed_host_id=signed or "",
            reason=sent.reason.replace("\0", "?"),
            next_previous_hash=sent.next_previous_hash,
            signature=sent.signature,
        )
        after = Position(sent.last, sent.next_previous_hash)
        detail = f"Records {sent.first} to {sent.last} are lost: {tidy(sent.reason, _REASON_MAX)}"
        if signed is None:
            detail += " (not signed: the epoch's key is lost too)"

        def put(recorder: Recorder) -> None:
            locked(recorder, chain, at)
            recorder.put_gap(lost, now_ms)
            recorder.move_chain(chain, after.sequence, after.hash, now_ms)
            recorder.put_alarm(alarm(chain, "gap", sent.last, detail, now_ms))

        if signed is not None:
            with self._core.store.recording() as recorder:
                put(recorder)
        else:
            self._put_bare(chain, lost, put)
        return after

    def _put_bare(self, chain: Chain, lost: LostRange, put: Callable[[Recorder], None]) -> None:
        """Commit a gap without a signature, with an entry of the audit log in its place: else
        whoever has the database could take records away and call them lost."""

        def body(work: Work) -> bool:
            bare = [one for one in work.transaction.gaps(chain.host_id) if not one.signature]
            if sum(one.epoch == chain.epoch for one in bare) >= _BARE_GAPS_MAX:
                return False
            put(work.transaction)
            work.audit(GAP_ACTION, chain.host_id, gap_detail(lost))
            return True

        if not perform_once(self._core, Actor(f"host:{chain.host_id}", Role.HOST), body):
            raise self._refusals.false(
                chain, "signature", lost.first_sequence, "The epoch has too many unsigned gaps"
            )

    def _gap_signer(self, chain: Chain, sent: SentGap) -> str:
        for host_id in (chain.host_id, ""):
            words = gap_words(
                host_id=host_id,
                epoch=sent.epoch,
                first=sent.first,
                last=sent.last,
                next_previous_hash=sent.next_previous_hash,
                reason=sent.reason,
            )
            if is_signed(chain.public_key, sent.signature, words):
                return host_id
        raise self._refusals.false(
            chain, "signature", sent.first, "The gap's signature does not verify"
        )
