# SPDX-License-Identifier: Apache-2.0
"""Taking usage in: each record once, whole, and as its host signed it.

A batch is taken only where the chain stands, so one that was repeated, reordered or brought by a
second connection changes nothing. Rows, evidence and the chain's new place commit together; the
acknowledgement is sent after that.
"""

from __future__ import annotations

from typing import Final

from licplane.service.core import Core
from licplane.service.texts import shown
from licplane.service.usage.chain import KEY_BYTES, batch_words, chained, is_signed
from licplane.service.usage.doubts import doubts
from licplane.service.usage.gaps import UsageGaps
from licplane.service.usage.licenses import without
from licplane.service.usage.references import UsageReferences
from licplane.service.usage.refusals import (
    UsageRefusals,
    alarm,
    in_chain,
    locked,
    malformed,
    out_of_order,
)
from licplane.service.usage.values import Position, ReadRecords, SentBatch, SentGap, UsageHello
from licplane.service.values import Actor, Role
from licplane.service.work import Work, perform_once
from licplane.store.usage_model import DAY_MS, Batch, Chain
from licplane.store.usage_payloads import pack
from lictoken.claims import I64_MAX

EPOCHS_MAX: Final = 4_096
"""Chains of one host. A spool begins a new one when it is lost, or after a long outage."""
RECORDS_MAX: Final = 1_000
"""Of one batch: as many as licagent.store.ledger puts into one."""
EPOCH_ACTION: Final = "usage.epoch"
"""In the audit log: a host began a chain, with this key."""
_BOOT_ID_MAX: Final = 64
_AHEAD_MS: Final = 3_600_000
"""A record that ends so much after its receipt comes from a host whose clock is wrong."""


def epoch_detail(chain: Chain) -> dict[str, object]:
    """What the audit log says of a new chain."""
    return {"epoch": chain.epoch, "public_key": chain.public_key.hex()}


class UsageIntake:
    """Takes what hosts send. Threads may share it."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._references = UsageReferences(core)
        self._refusals = UsageRefusals(core)
        self.gaps: Final = UsageGaps(core)
        """Takes what is lost."""

    # --- the stream's beginning

    def open(self, host_id: str, hello: UsageHello) -> Chain:
        """Where the host's chain stands; made if it is a new epoch.

        Raises PlaneError USAGE for a hello that makes no sense, UsageRefused where the epoch has
        another key, or the host too many epochs.
        """
        if not 0 < hello.epoch <= I64_MAX or len(hello.public_key) != KEY_BYTES:
            raise malformed("The hello has no epoch or no key")
        now_ms = self._core.now_ms()
        wanted = Chain(
            host_id=host_id,
            epoch=hello.epoch,
            public_key=hello.public_key,
            boot_id=_boot_id(hello.boot_id),
            host_first_sequence=min(hello.first_sequence, I64_MAX),
            host_next_sequence=min(hello.next_sequence, I64_MAX),
            begun_ms=now_ms,
            received_ms=now_ms,
        )
        with self._core.store.recording() as recorder:
            is_known = recorder.chain(host_id, hello.epoch) is not None
            found = recorder.begin_chain(wanted) if is_known else None
        if found is None:
            found = self._begin(wanted)
        if found.public_key != hello.public_key:
            raise self._refusals.alarmed(
                host_id, hello.epoch, "key", 0, "The epoch has another key than the first one seen"
            )
        return found

    def _begin(self, wanted: Chain) -> Chain:
        """Make a chain. Its key goes into the audit log, so that nobody changes it unseen."""
        host_id = wanted.host_id

        def body(work: Work) -> Chain | None:
            transaction = work.transaction
            if transaction.chain(host_id, wanted.epoch) is None:
                if transaction.count_chains(host_id) >= EPOCHS_MAX:
                    return None
                work.audit(EPOCH_ACTION, host_id, epoch_detail(wanted))
            return transaction.begin_chain(wanted)

        found = perform_once(self._core, Actor(f"host:{host_id}", Role.HOST), body)
        if found is None:
            raise self._refusals.alarmed(
                host_id, 0, "epochs", 0, f"The host has {EPOCHS_MAX} epochs already"
            )
        return found

    # --- batches

    def check(self, chain: Chain, at: Position, sent: SentBatch) -> str:
        """Whether the batch follows `at` and is what the host signed; the host id that it signed
        with. Raises Conflict for one that does not follow, UsageRefused for a false one."""
        in_chain(chain, sent.epoch, sent.first, sent.last)
        _boot_id(sent.boot_id)
        if len(sent.records) > RECORDS_MAX:
            raise malformed(f"The batch has more than {RECORDS_MAX} records")
        if sent.first != at.sequence + 1:
            raise out_of_order(at, sent.first)
        if sent.previous_hash != at.hash:
            raise self._refusals.false(
                chain, "chain", sent.first, "The batch does not go on from the chain"
            )
        if chained(sent.previous_hash, sent.first, sent.records) != sent.hash:
            raise self._refusals.false(
                chain, "hash", sent.first, "The records do not have the batch's hash"
            )
        for host_id in (chain.host_id, ""):
            words = batch_words(
                host_id=host_id,
                boot_id=sent.boot_id,
                epoch=sent.epoch,
                first=sent.first,
                last=sent.last,
                chain_hash=sent.hash,
            )
            if is_signed(chain.public_key, sent.signature, words):
                return host_id
        raise self._refusals.false(
            chain, "signature", sent.first, "The batch's signature does not verify"
        )

    def store(
        self, chain: Chain, at: Position, sent: SentBatch, signed_host_id: str, read: ReadRecords
    ) -> Position:
        """Commit a checked batch. Raises Conflict where the chain is no longer at `at`."""
        now_ms = self._core.now_ms()
        memory, scope_id, kept_ms, alien = self._references.place(
            chain.host_id, {row.license for row in read.rows}
        )
        read, noted = without(read, alien) if alien else (read, ())
        batch = Batch(
            host_id=chain.host_id,
            epoch=chain.epoch,
            boot_id=sent.boot_id,
            first_sequence=sent.first,
            last_sequence=sent.last,
            signed_host_id=signed_host_id,
            previous_hash=sent.previous_hash,
            hash=sent.hash,
            signature=sent.signature,
            payload=pack(sent.records),
            start_ms=read.start_ms,
            end_ms=read.end_ms,
            rows=read.rows,
            refused=[*read.refused, *noted],
        )
        owners = self._references.owner_ids(memory, {row.owner for row in read.rows})
        self._references.make_parts(memory, {row.end_ms // DAY_MS for row in read.rows}, now_ms)
        after = Position(sent.last, sent.hash)
        with self._core.store.recording() as recorder:
            memory.check(recorder)
            locked(recorder, chain, at)
            recorder.put_batch(batch, owners, scope_id, now_ms)
            recorder.move_chain(chain, after.sequence, after.hash, now_ms)
            if read.refused:
                last = read.refused[-1]
                detail = f"Record {last.sequence} was set aside: {last.reason}"
                count = len(read.refused)
                recorder.put_alarm(
                    alarm(chain, "refused", last.sequence, detail, now_ms, count=count)
                )
            if noted:
                detail = (
                    f"Records name {shown(min(alien))}, which is no license that was issued for"
                    " this host; they are counted under none"
                )
                recorder.put_alarm(
                    alarm(chain, "license", noted[-1].sequence, detail, now_ms, count=len(noted))
                )
            for code, sequence, count, detail in doubts(read, kept_ms):
                recorder.put_alarm(alarm(chain, code, sequence, detail, now_ms, count=count))
            if read.end_ms > now_ms + _AHEAD_MS:
                detail = f"Usage ends {(read.end_ms - now_ms) // 1000} s after it came in"
                recorder.put_alarm(alarm(chain, "clock", sent.last, detail, now_ms))
        return after

    def repeated(self, chain: Chain, sent: SentBatch | SentGap) -> None:
        """Something that is behind the chain's place. UsageRefused if other records are stored
        under these sequences."""
        in_chain(chain, sent.epoch, sent.first, sent.last)
        with self._core.store.reading() as reader:
            stored = reader.stored_hash(chain.host_id, chain.epoch, sent.first, sent.last)
        claimed = sent.hash if isinstance(sent, SentBatch) else sent.next_previous_hash
        if stored is not None and stored != claimed:
            raise self._refusals.false(
                chain, "rewritten", sent.first, "Other records are stored under these sequences"
            )


def _boot_id(text: str) -> str:
    if len(text) > _BOOT_ID_MAX or not text.isascii() or not text.isprintable():
        raise malformed("The boot id is not printable or too long")
    return text
