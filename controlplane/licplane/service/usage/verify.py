# SPDX-License-Identifier: Apache-2.0
"""Whether what is billed is what hosts signed: chains, signatures, rows, sums and bills."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from licplane.errors import PlaneError
from licplane.service.access import Permission, require
from licplane.service.billing.bills import digest_of
from licplane.service.core import Core
from licplane.service.usage.chain import batch_words, chained, gap_words, is_signed
from licplane.service.usage.gaps import GAP_ACTION, gap_detail
from licplane.service.usage.intake import EPOCH_ACTION
from licplane.service.usage.licenses import NOT_GIVEN, UsageLicenses
from licplane.service.usage.values import ReadRecords
from licplane.service.values import Actor
from licplane.store.money_schema import METERS
from licplane.store.reader import Reader
from licplane.store.usage_evidence import Evidence, StoredBatch
from licplane.store.usage_model import Chain, LostRange, Owner, UsageRow
from licplane.store.usage_payloads import unpack
from licplane.store.usage_rollups import DAY_MS
from licplane.store.usage_sums import FOREVER_MS, UsageSum, Window

PROBLEMS_MAX: Final = 200
"""More are counted and not told."""
_AUDIT_PAGE: Final = 1_000

Read = Callable[[int, Sequence[bytes]], ReadRecords]
"""Records from their bytes: licplane.api.usage_reading.RecordReader.read."""


@dataclass(slots=True)
class UsageCheck:
    """What was looked at, and what is wrong; nothing is wrong where `problems` is empty."""

    chains: int = 0
    batches: int = 0
    records: int = 0
    gaps: int = 0
    entries: int = 0
    unlicensed: int = 0  # records counted under none, for theirs was not issued for their host
    problems: list[str] = field(default_factory=list)
    untold: int = 0  # problems beyond PROBLEMS_MAX
    notes: list[str] = field(default_factory=list)

    def wrong(self, what: str) -> None:
        """Something is wrong."""
        if len(self.problems) < PROBLEMS_MAX:
            self.problems.append(what)
        else:
            self.untold += 1


class UsageVerify:
    """Checking everything again."""

    def __init__(self, core: Core) -> None:
        self._core = core

    def verify(self, actor: Actor, read: Read, host_id: str = "") -> UsageCheck:
        """Check the chains of all hosts, or of one, and all sums and bills."""
        require(actor, Permission.READ_USAGE)
        check = UsageCheck()
        with self._core.store.reading() as reader:
            kept_ms = reader.usage_work().kept_until_ms
            if kept_ms:
                check.notes.append("Records of days that were deleted cannot be checked any more")
            noted = _noted(reader)
            for chain in reader.chains(host_id):
                if noted.keys.get((chain.host_id, chain.epoch)) != chain.public_key.hex():
                    name = f"host {chain.host_id} epoch {chain.epoch}"
                    check.wrong(f"{name}: its key is not the one in the audit log")
                _chain(reader, chain, noted, read=read, check=check, kept_ms=kept_ms)
            if not host_id:
                _sums(reader, check, kept_ms)
                _bills(reader, check)
        return check


@dataclass(frozen=True, slots=True)
class _Noted:
    """What the audit log has of chains."""

    keys: dict[tuple[str, int], str] = field(default_factory=dict)  # by host and epoch
    gaps: dict[str, list[object]] = field(default_factory=dict)  # that no host signed, by host


def _noted(reader: Reader) -> _Noted:
    noted = _Noted()
    after = 0
    while rows := reader.audit(after_sequence=after, limit=_AUDIT_PAGE):
        for row in rows:
            if row.action == EPOCH_ACTION:
                detail = json.loads(row.detail)
                key = (row.target, int(detail["epoch"]))
                noted.keys.setdefault(key, str(detail["public_key"]))
            elif row.action == GAP_ACTION:
                noted.gaps.setdefault(row.target, []).append(json.loads(row.detail))
        after = rows[-1].sequence
    return noted


def _chain(
    reader: Reader, chain: Chain, noted: _Noted, *, read: Read, check: UsageCheck, kept_ms: int
) -> None:
    check.chains += 1
    name = f"host {chain.host_id} epoch {chain.epoch}"
    gaps = [one for one in reader.gaps(chain.host_id) if one.epoch == chain.epoch]
    sequence, chain_hash = purged, _ = reader.purged(chain.host_id, chain.epoch)
    begun = False
    for part in _parts(reader.stored_batches(chain.host_id, chain.epoch), gaps):
        if part.last_sequence <= purged:
            continue  # a gap among what was deleted
        begun = True
        where = f"{name}: records {part.first_sequence} to {part.last_sequence}"
        if part.first_sequence != sequence + 1:
            check.wrong(f"{where}: the ones from {sequence + 1} on are missing")
        if isinstance(part, LostRange):
            check.gaps += 1
            _gap(chain, part, noted, where, check)
            chain_hash = part.next_previous_hash
        else:
            if part.first_sequence == sequence + 1 and part.previous_hash != chain_hash:
                check.wrong(f"{where}: they do not follow from the ones before")
            _batch(reader, chain, part, read=read, where=where, check=check, kept_ms=kept_ms)
            chain_hash = part.hash
        sequence = part.last_sequence
    if begun and (sequence, chain_hash) != (chain.acked_sequence, chain.acked_hash):
        check.wrong(f"{name}: it ends at {sequence}, and {chain.acked_sequence} was acknowledged")
    if not begun and chain.acked_sequence != sequence:
        check.wrong(f"{name}: {chain.acked_sequence} records were acknowledged, and none is there")


def _parts(
    batches: Iterator[StoredBatch], gaps: Sequence[LostRange]
) -> Iterator[StoredBatch | LostRange]:
    """Batches and gaps in the order of their sequences."""
    waiting = sorted(gaps, key=lambda one: one.first_sequence)
    for batch in batches:
        while waiting and waiting[0].first_sequence < batch.first_sequence:
            yield waiting.pop(0)
        yield batch
    yield from waiting


def _gap(chain: Chain, gap: LostRange, noted: _Noted, where: str, check: UsageCheck) -> None:
    if not gap.signature and gap_detail(gap) in noted.gaps.get(chain.host_id, []):
        if len(check.notes) < PROBLEMS_MAX:
            check.notes.append(f"{where}: lost with the key of their epoch, so nobody signed it")
        return
    words = gap_words(
        host_id=gap.signed_host_id,
        epoch=gap.epoch,
        first=gap.first_sequence,
        last=gap.last_sequence,
        next_previous_hash=gap.next_previous_hash,
        reason=gap.reason,
    )
    if not is_signed(chain.public_key, gap.signature, words):
        check.wrong(f"{where}: the gap is not signed by the host")


def _batch(
    reader: Reader,
    chain: Chain,
    batch: StoredBatch,
    *,
    read: Read,
    where: str,
    check: UsageCheck,
    kept_ms: int,
) -> None:
    check.batches += 1
    try:
        records = unpack(batch.payload)
    except PlaneError as error:
        check.wrong(f"{where}: {error.message}")
        return
    check.records += len(records)
    if len(records) != batch.last_sequence - batch.first_sequence + 1:
        check.wrong(f"{where}: there are {len(records)} of them")
        return
    if chained(batch.previous_hash, batch.first_sequence, records) != batch.hash:
        check.wrong(f"{where}: their hash is another one than the host gave")
    words = batch_words(
        host_id=batch.signed_host_id,
        boot_id=batch.boot_id,
        epoch=batch.epoch,
        first=batch.first_sequence,
        last=batch.last_sequence,
        chain_hash=batch.hash,
    )
    if batch.signed_host_id not in ("", chain.host_id):
        check.wrong(f"{where}: they are signed for the host {batch.signed_host_id}")
    if not is_signed(chain.public_key, batch.signature, words):
        check.wrong(f"{where}: the signature is not the host's")
    found = read(batch.first_sequence, records)
    wanted = {row.sequence: row for row in found.rows}
    refused = {one.sequence for one in found.refused}
    stored = {
        one.sequence: one
        for one in reader.records_between(
            chain.host_id, chain.epoch, batch.first_sequence, batch.last_sequence
        )
    }
    bare = reader.noted_records(
        chain.host_id, chain.epoch, batch.first_sequence, batch.last_sequence, NOT_GIVEN
    )
    given = _given(reader, chain.host_id, {row.license for row in found.rows if bare})
    for sequence in sorted({*wanted, *stored}):
        row, line = wanted.get(sequence), stored.get(sequence)
        place = f"host {chain.host_id} epoch {chain.epoch} record {sequence}"
        if line is None and row is not None and row.end_ms <= kept_ms:
            continue  # deleted as old, with its day
        if line is None:
            check.wrong(f"{place}: the host sent it, and its row is missing")
        elif row is None:
            why = "was set aside" if sequence in refused else "was not sent"
            check.wrong(f"{place}: it has a row, and {why}")
        else:
            if sequence in bare:
                check.unlicensed += 1
                if row.license in given and len(check.notes) < PROBLEMS_MAX:
                    check.notes.append(
                        f"{place}: it counts under no license, though the host has"
                        f" {row.license} now"
                    )
                row = row._replace(license="")
            for what in _different(row, line, batch.boot_id):
                check.wrong(f"{place}: its row has another {what} than the host signed")


def _given(reader: Reader, host_id: str, names: set[str]) -> set[str]:
    """Those of the licenses that were issued for the host, as its labels are now."""
    host = reader.host(host_id) if names else None
    return names - UsageLicenses().not_given(reader, host.view, names) if host else set()


def _different(row: UsageRow, line: Evidence, boot_id: str) -> list[str]:
    """What of a row is not what the host sent."""
    owner = row.owner
    pairs: dict[str, tuple[object, object]] = {
        name: (getattr(row, name), getattr(line, name))
        for name in (
            "kind",
            "start_ms",
            "end_ms",
            "license",
            "resource",
            "binding",
            "pid",
            "process_start_ms",
            "protocol",
            "loopback",
            "estimated",
            "unsupported",
            "detail",
            "payload_hash",
        )
    }
    if isinstance(owner, Owner):
        for name in ("unit", "cgroup", "user", "uid", "executable"):
            pairs[name] = (getattr(owner, name), getattr(line, name))
    for meter, amount in zip(METERS, row.quantities, strict=True):
        pairs[meter] = (amount, line.quantities.get(meter, 0))
    pairs["boot_id"] = (boot_id, line.boot_id)
    return [name for name, (one, other) in pairs.items() if one != other]


def _sums(reader: Reader, check: UsageCheck, kept_ms: int) -> None:
    """The rollups are the sums of the records, for days whose records are all there."""
    since_ms = -(-kept_ms // DAY_MS) * DAY_MS
    window = Window(since_ms, FOREVER_MS)
    by = ("day", "host", "license", "resource")
    for source in ("daily", "hourly"):
        rolled = _by_key(reader.sums_of(source, window, by))
        records = _by_key(reader.sums_of("counted", window, by))
        for key in sorted({*rolled, *records}):
            one, other = rolled.get(key, {}), records.get(key, {})
            if one != other:
                names = sorted(
                    name for name in {*one, *other} if one.get(name, 0) != other.get(name, 0)
                )
                check.wrong(
                    f"the {source} sums of host {key[1]}, license {key[2] or '(none)'} on day"
                    f" {int(key[0]) // DAY_MS} are not those of its records: {', '.join(names)}"
                )


def _by_key(sums: Sequence[UsageSum]) -> Mapping[Any, Mapping[str, int]]:
    return {one.key: one.quantities for one in sums if one.quantities}


def _bills(reader: Reader, check: UsageCheck) -> None:
    """Entries are those whose digest the audit log has."""
    noted: dict[int, str] = {}
    after = 0
    while rows := reader.audit(after_sequence=after, limit=_AUDIT_PAGE):
        for row in rows:
            if row.action in ("billing.close", "billing.correction"):
                detail = json.loads(row.detail)
                noted[int(detail.get("run", 0))] = str(detail.get("sha256", ""))
        after = rows[-1].sequence
    for run in reader.billing_runs():
        entries = reader.billing_entries(run=run.run)
        check.entries += len(entries)
        digest = digest_of(entries)
        if digest != run.digest or noted.get(run.run) != digest.hex():
            check.wrong(
                f"the entries of run {run.run} ({run.period}) are not those of the audit log"
            )
        noted.pop(run.run, None)
    for number in sorted(noted):
        check.wrong(f"run {number} is in the audit log, and its entries are gone")
