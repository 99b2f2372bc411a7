# SPDX-License-Identifier: Apache-2.0
"""Taking usage in: each record once, whole, and as its host signed it.

A batch is taken only where the chain stands, so one that was repeated, reordered or brought by a
second connection changes nothing. Rows, evidence and the chain's new place commit together; the
acknowledgement is sent after that.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Final

from licplane.errors import Conflict, ExitCode, PlaneError
from licplane.service.core import Core
from licplane.service.remembering import Remembered
from licplane.service.texts import shown, tidy
from licplane.service.usage_chain import (
    HASH_BYTES,
    KEY_BYTES,
    batch_words,
    chained,
    gap_words,
    is_signed,
)
from licplane.service.usage_doubts import doubts
from licplane.service.usage_licenses import UsageLicenses, without
from licplane.service.usage_values import (
    Position,
    ReadRecords,
    SentBatch,
    SentGap,
    UsageHello,
    UsageRefused,
)
from licplane.service.values import Actor, Role
from licplane.service.work import Work, perform_once
from licplane.store.postgres_servers import History
from licplane.store.reader import Reader
from licplane.store.recorder import Recorder
from licplane.store.usage_model import (
    DAY_MS,
    Batch,
    Chain,
    LostRange,
    Owner,
    UsageAlarm,
    UsageScope,
)
from licplane.store.usage_payloads import pack
from lictoken.claims import I64_MAX

EPOCHS_MAX: Final = 4_096
"""Chains of one host. A spool begins a new one when it is lost, or after a long outage."""
RECORDS_MAX: Final = 1_000
"""Of one batch: as many as licagent.store.ledger puts into one."""
EPOCH_ACTION: Final = "usage.epoch"
"""In the audit log: a host began a chain, with this key."""
GAP_ACTION: Final = "usage.gap"
"""In the audit log: a gap was taken that no host signed, for the epoch's key is lost."""
_BARE_GAPS_MAX: Final = 16
_BOOT_ID_MAX: Final = 64
_REASON_MAX: Final = 500
_OWNERS_BYTES: Final = 32 * 1024 * 1024
_OWNER_BYTES: Final = 300
"""What an owner takes besides its texts."""
_AHEAD_MS: Final = 3_600_000
"""A record that ends so much after its receipt comes from a host whose clock is wrong."""
_PARTS_BEFORE: Final = 800
_PARTS_AFTER: Final = 2
"""Days around today for which parts are made; rows of others go to the default part."""


def epoch_detail(chain: Chain) -> dict[str, object]:
    """What the audit log says of a new chain."""
    return {"epoch": chain.epoch, "public_key": chain.public_key.hex()}


def gap_detail(lost: LostRange) -> dict[str, object]:
    """What the audit log says of a gap that nobody signed."""
    return {
        "epoch": lost.epoch,
        "first": lost.first_sequence,
        "last": lost.last_sequence,
        "next_previous_hash": lost.next_previous_hash.hex(),
    }


class _Memory:
    """What one history of the database is known to hold. After a fail-over it may be gone."""

    def __init__(self, history: History) -> None:
        self.history: Final = history
        self.owners: Final[Remembered[Owner, int]] = Remembered(_OWNERS_BYTES)
        self.licenses: Final = UsageLicenses()
        self.scopes: Final[dict[UsageScope, int]] = {}
        self.parts: Final[set[int]] = set()

    def check(self, reader: Reader) -> None:
        """Raise Conflict where this transaction is of another history."""
        if reader.history != self.history:
            raise Conflict("The database goes on at another server", "Open a new stream")


class UsageIntake:
    """Takes what hosts send. Threads may share it."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._lock = threading.Lock()
        self._memory = _Memory(None)

    # --- the stream's beginning

    def open(self, host_id: str, hello: UsageHello) -> Chain:
        """Where the host's chain stands; made if it is a new epoch.

        Raises PlaneError USAGE for a hello that makes no sense, UsageRefused where the epoch has
        another key, or the host too many epochs.
        """
        if not 0 < hello.epoch <= I64_MAX or len(hello.public_key) != KEY_BYTES:
            raise _malformed("The hello has no epoch or no key")
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
            raise self._alarm(
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
            raise self._alarm(host_id, 0, "epochs", 0, f"The host has {EPOCHS_MAX} epochs already")
        return found

    # --- batches

    def check(self, chain: Chain, at: Position, sent: SentBatch) -> str:
        """Whether the batch follows `at` and is what the host signed; the host id that it signed
        with. Raises Conflict for one that does not follow, UsageRefused for a false one."""
        self._in_chain(chain, sent.epoch, sent.first, sent.last)
        _boot_id(sent.boot_id)
        if len(sent.records) > RECORDS_MAX:
            raise _malformed(f"The batch has more than {RECORDS_MAX} records")
        if sent.first != at.sequence + 1:
            raise _out_of_order(at, sent.first)
        if sent.previous_hash != at.hash:
            raise self._false(chain, "chain", sent.first, "The batch does not go on from the chain")
        if chained(sent.previous_hash, sent.first, sent.records) != sent.hash:
            raise self._false(chain, "hash", sent.first, "The records do not have the batch's hash")
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
        raise self._false(chain, "signature", sent.first, "The batch's signature does not verify")

    def store(
        self, chain: Chain, at: Position, sent: SentBatch, signed_host_id: str, read: ReadRecords
    ) -> Position:
        """Commit a checked batch. Raises Conflict where the chain is no longer at `at`."""
        now_ms = self._core.now_ms()
        memory, scope_id, kept_ms, alien = self._place(
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
        owners = self._owner_ids(memory, {row.owner for row in read.rows})
        self._make_parts(memory, {row.end_ms // DAY_MS for row in read.rows}, now_ms)
        after = Position(sent.last, sent.hash)
        with self._core.store.recording() as recorder:
            memory.check(recorder)
            _locked(recorder, chain, at)
            recorder.put_batch(batch, owners, scope_id, now_ms)
            recorder.move_chain(chain, after.sequence, after.hash, now_ms)
            if read.refused:
                last = read.refused[-1]
                detail = f"Record {last.sequence} was set aside: {last.reason}"
                count = len(read.refused)
                recorder.put_alarm(
                    _alarm(chain, "refused", last.sequence, detail, now_ms, count=count)
                )
            if noted:
                detail = (
                    f"Records name {shown(min(alien))}, which is no license that was issued for"
                    " this host; they are counted under none"
                )
                recorder.put_alarm(
                    _alarm(chain, "license", noted[-1].sequence, detail, now_ms, count=len(noted))
                )
            for code, sequence, count, detail in doubts(read, kept_ms):
                recorder.put_alarm(_alarm(chain, code, sequence, detail, now_ms, count=count))
            if read.end_ms > now_ms + _AHEAD_MS:
                detail = f"Usage ends {(read.end_ms - now_ms) // 1000} s after it came in"
                recorder.put_alarm(_alarm(chain, "clock", sent.last, detail, now_ms))
        return after

    def repeated(self, chain: Chain, sent: SentBatch | SentGap) -> None:
        """Something that is behind the chain's place. UsageRefused if other records are stored
        under these sequences."""
        self._in_chain(chain, sent.epoch, sent.first, sent.last)
        with self._core.store.reading() as reader:
            stored = reader.stored_hash(chain.host_id, chain.epoch, sent.first, sent.last)
        claimed = sent.hash if isinstance(sent, SentBatch) else sent.next_previous_hash
        if stored is not None and stored != claimed:
            raise self._false(
                chain, "rewritten", sent.first, "Other records are stored under these sequences"
            )

    # --- gaps

    def store_gap(self, chain: Chain, at: Position, sent: SentGap) -> Position:
        """Commit a gap that follows `at`. Raises as `check` and `store` do."""
        self._in_chain(chain, sent.epoch, sent.first, sent.last)
        if sent.first != at.sequence + 1:
            raise _out_of_order(at, sent.first)
        if len(sent.next_previous_hash) != HASH_BYTES or len(sent.reason) > _REASON_MAX:
            raise _malformed("The gap has no hash, or too long a reason")
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
            _locked(recorder, chain, at)
            recorder.put_gap(lost, now_ms)
            recorder.move_chain(chain, after.sequence, after.hash, now_ms)
            recorder.put_alarm(_alarm(chain, "gap", sent.last, detail, now_ms))

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
            raise self._false(
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
        raise self._false(chain, "signature", sent.first, "The gap's signature does not verify")

    # --- what the rows refer to

    def _memory_of(self, reader: Reader) -> _Memory:
        """What is known of the history that `reader` reads."""
        with self._lock:
            if self._memory.history != reader.history:
                self._memory = _Memory(reader.history)
            return self._memory

    def _owner_ids(self, memory: _Memory, owners: set[Owner]) -> Mapping[Owner, int]:
        known = {one: number for one in owners if (number := memory.owners.get(one)) is not None}
        missing = owners - known.keys()
        if missing:
            # Committed before it is remembered, and before a row refers to it.
            with self._core.store.recording() as recorder:
                memory.check(recorder)
                made = recorder.owner_ids(missing)
            for one, number in made.items():
                memory.owners.put(one, number, _OWNER_BYTES + sum(map(sys.getsizeof, one)))
            known |= made
        return known

    def _place(self, host_id: str, licenses: set[str]) -> tuple[_Memory, int, int, set[str]]:
        """What is known, the host's scope, until when sums are deleted, and those of `licenses`
        that were never issued for it."""
        with self._core.store.reading() as reader:
            memory = self._memory_of(reader)
            host = reader.host(host_id)
            if host is None:
                raise Conflict("The host is gone", "Enrol it again")
            view = host.view
            alien = memory.licenses.not_given(reader, view, licenses)
            kept_ms = reader.usage_work().daily_kept_until_ms
        scope = UsageScope(view.org, view.project, view.environment, view.region)
        with self._lock:
            found = memory.scopes.get(scope)
        if found is None:
            with self._core.store.recording() as recorder:
                memory.check(recorder)
                found = recorder.scope_id(scope)
            with self._lock:
                memory.scopes[scope] = found
        return memory, found, kept_ms, alien

    def _make_parts(self, memory: _Memory, days: Iterable[int], now_ms: int) -> None:
        today = now_ms // DAY_MS
        wanted = {today, today + 1} | {
            day for day in days if today - _PARTS_BEFORE <= day <= today + _PARTS_AFTER
        }
        with self._lock:
            wanted -= memory.parts
        if not wanted:
            return
        try:
            with self._core.store.recording() as recorder:
                memory.check(recorder)
                recorder.make_parts(wanted)
        except PlaneError as error:
            # Somebody reads the default part. The rows go there, and are moved another time.
            if error.code is not ExitCode.BUSY:
                raise
            return
        with self._lock:
            memory.parts.update(wanted)

    # --- what is refused

    def _in_chain(self, chain: Chain, epoch: int, first: int, last: int) -> None:
        if epoch != chain.epoch:
            raise _malformed("The stream is another epoch's")
        if not 0 < first <= last <= I64_MAX:
            raise _malformed("There is no such range of sequences")

    def _false(self, chain: Chain, code: str, sequence: int, what: str) -> UsageRefused:
        return self._alarm(chain.host_id, chain.epoch, code, sequence, what)

    def _alarm(self, host_id: str, epoch: int, code: str, sequence: int, what: str) -> UsageRefused:
        now_ms = self._core.now_ms()
        alarm = UsageAlarm(host_id, epoch, code, sequence, what, now_ms, now_ms)
        with self._core.store.recording() as recorder:
            recorder.put_alarm(alarm)
        return UsageRefused(
            code,
            f"{what} (epoch {epoch}, sequence {sequence})",
            "Look at the host: its spool was altered, or put back from a copy",
        )


def _locked(recorder: Recorder, chain: Chain, at: Position) -> None:
    """Take the chain's row. Raises Conflict if it is not at this place."""
    found = recorder.locked_chain(chain.host_id, chain.epoch)
    if found is None or (found.acked_sequence, found.acked_hash) != at:
        raise Conflict("Another stream of the host was quicker", "Open a new stream")


def _alarm(
    chain: Chain, code: str, sequence: int, detail: str, now_ms: int, *, count: int = 1
) -> UsageAlarm:
    return UsageAlarm(chain.host_id, chain.epoch, code, sequence, detail, now_ms, now_ms, count)


def _out_of_order(at: Position, first: int) -> Conflict:
    return Conflict(
        f"Sequence {first} does not follow {at.sequence}", "Open a new stream, and go on from there"
    )


def _boot_id(text: str) -> str:
    if len(text) > _BOOT_ID_MAX or not text.isascii() or not text.isprintable():
        raise _malformed("The boot id is not printable or too long")
    return text


def _malformed(message: str) -> PlaneError:
    return PlaneError(ExitCode.USAGE, message, "See licapi.control.v1.Telemetry.Usage")
