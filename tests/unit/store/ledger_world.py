# SPDX-License-Identifier: Apache-2.0
"""A host, its kernel, its disk and a server, for tests of the ledger: all use is accounted for."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.simdisk import Cut, SimDisk

from licagent.store.ledger import Ledger
from licagent.store.ledger_types import Batch, Gap, LedgerBlocked, LedgerFull, LedgerLimits
from licagent.store.segments import TORN
from licagent.store.usagechain import batch_message, chain_hash, gap_message, is_signed

FOLDER = Path("/ledger")
LIMITS = LedgerLimits(spool_max_bytes=64 * 1024, segment_bytes=2500, keep_acknowledged_bytes=4000)


@dataclass
class Arrived:
    """An epoch, as the server has it."""

    public_key: bytes
    acked: int = 0
    hash: bytes = bytes(32)
    payloads: dict[int, bytes] = field(default_factory=dict)
    gaps: list[Gap] = field(default_factory=list)


class Server:
    """Believes nothing that is not signed, chained and in order; takes repetitions."""

    def __init__(self) -> None:
        self.epochs: dict[int, Arrived] = {}

    def receive(self, item: Batch | Gap, public_key: bytes, host_id: str) -> None:
        arrived = self.epochs.setdefault(item.epoch, Arrived(public_key))
        assert arrived.public_key == public_key
        if isinstance(item, Gap):
            self._gap(arrived, item, host_id)
            return
        message = batch_message(
            host_id=item.host_id,
            boot_id=item.boot_id,
            epoch=item.epoch,
            first=item.first,
            last=item.last,
            chain=item.hash,
        )
        assert item.host_id in ("", host_id)
        assert is_signed(arrived.public_key, item.signature, message)
        assert chain_hash(item.previous_hash, item.first, item.records) == item.hash
        assert item.first <= arrived.acked + 1, "a sequence is missing and not named"
        if item.first == arrived.acked + 1:
            assert item.previous_hash == arrived.hash
        for sequence, payload in enumerate(item.records, item.first):
            if sequence > arrived.acked:
                arrived.payloads[sequence] = payload
            elif sequence in arrived.payloads:
                assert arrived.payloads[sequence] == payload, "a sequence was given twice"
        if item.last > arrived.acked:
            arrived.acked, arrived.hash = item.last, item.hash

    @staticmethod
    def _gap(arrived: Arrived, gap: Gap, host_id: str) -> None:
        if gap.signature:
            message = gap_message(
                host_id=host_id,
                epoch=gap.epoch,
                first=gap.first,
                last=gap.last,
                next_previous_hash=gap.next_previous_hash,
                reason=gap.reason,
            )
            assert is_signed(arrived.public_key, gap.signature, message)
        assert gap.first == arrived.acked + 1
        assert gap.last >= gap.first
        arrived.gaps.append(gap)
        arrived.acked, arrived.hash = gap.last, gap.next_previous_hash

    def total(self) -> int:
        return sum(
            amount_of(payload)
            for arrived in self.epochs.values()
            for payload in arrived.payloads.values()
        )


def payload_of(number: int, amount: int) -> bytes:
    return number.to_bytes(8, "big") + amount.to_bytes(8, "big") + b"etl.service" * (number % 9)


def amount_of(payload: bytes) -> int:
    return int.from_bytes(payload[8:16], "big")


class Host:
    """The daemon as the contract has it, over a kernel that keeps two sheets."""

    def __init__(self, seed: int = 0, limits: LedgerLimits = LIMITS) -> None:
        self.dice = random.Random(seed)
        self.limits = limits
        self.disk = SimDisk()
        self.server = Server()
        self.host_id = ""
        self.clock_ms = 1_700_000_000_000
        self.boot = 1
        self.open: list[int] = []
        self.number = 1
        self.closed: tuple[int, list[int]] | None = None
        self.ledger: Ledger | None = None
        self.used = 0
        self.excused = 0
        """In the kernel when the power went."""
        self.given: dict[tuple[int, int], int] = {}
        self.doubt: tuple[str, list[tuple[int, int]], int] | None = None
        self.refused = 0
        self.told: set[Gap] = set()

    # ---- the kernel

    def use(self, records: int) -> None:
        for _ in range(records):
            amount = self.dice.randrange(2**40)
            self.open.append(amount)
            self.used += amount

    # ---- the daemon

    def start(self) -> Ledger:
        ledger = self.ledger = Ledger(
            FOLDER,
            boot_id=f"boot-{self.boot}",
            host_id=lambda: self.host_id,
            limits=self.limits,
            files=self.disk,
            now_unix_ms=lambda: self.clock_ms,
        )
        self._after_start(ledger)
        return ledger

    def _after_start(self, ledger: Ledger) -> None:
        self.told |= {gap for gap in ledger.gaps if gap.reason == TORN}
        try:
            ledger.settle()
        except LedgerBlocked:
            return
        mark = ledger.marks.get("sheet", b"").decode()
        if self.doubt is not None:
            # The power went while a sheet was being committed: it is there or it is not.
            sheet, sequences, amount = self.doubt
            self.doubt = None
            if sheet != mark:
                self.excused += amount
                for each in sequences:
                    self.given.pop(each, None)
        if self.closed is not None and mark == self._sheet(self.closed[0]):
            self.closed = None

    def commit(self) -> None:
        ledger = self.ledger
        assert ledger is not None
        if not ledger.settled:
            self._after_start(ledger)
            if not ledger.settled:
                self.refused += 1
                return
        if self.closed is None:
            self.closed = self.number, self.open
            self.number, self.open = self.number + 1, []
        number, amounts = self.closed
        payloads = [payload_of(self.dice.randrange(2**60), amount) for amount in amounts]
        ledger._epochs.follow_host(self.host_id)
        chain = ledger._epochs.current
        sequences = [(chain.epoch, chain.next_sequence + n) for n in range(len(amounts))]
        self.given |= dict(zip(sequences, amounts, strict=True))
        self.attempt = self._sheet(number), sequences, sum(amounts)
        marks = {"sheet": self._sheet(number).encode(), "footprint": bytes(300)}
        try:
            given = ledger.commit(payloads, marks)
        except (LedgerBlocked, LedgerFull):
            self.refused += 1
            return
        assert (given.epoch, given.first) == (chain.epoch, given.last - len(amounts) + 1)
        assert not sequences or sequences[0] == (given.epoch, given.first)
        self.closed = None

    def deliver(self, *, limit_bytes: int = 2000, lose_ack: bool = False) -> bool:
        """Whether there was something."""
        ledger = self.ledger
        assert ledger is not None
        moved = False
        for state in ledger.epochs():
            arrived = self.server.epochs.setdefault(state.epoch, Arrived(state.public_key))
            assert ledger.acknowledge(arrived.acked, arrived.hash, epoch=state.epoch)
            for item in ledger.batches(arrived.acked, limit_bytes=limit_bytes, epoch=state.epoch):
                self.server.receive(item, state.public_key, self.host_id)
                moved = True
            if not lose_ack:
                assert ledger.acknowledge(arrived.acked, arrived.hash, epoch=state.epoch)
        return moved

    def killed(self) -> None:
        self.ledger = None
        self.disk.restart()

    def power_cut(self) -> None:
        self.ledger = None
        if self.closed is not None:
            sheet = self._sheet(self.closed[0])
            known = getattr(self, "attempt", ("", [], 0))
            sequences = known[1] if known[0] == sheet else []
            self.doubt = sheet, sequences, sum(self.closed[1])
        self.excused += sum(self.open)
        self.open, self.closed = [], None
        self.boot, self.number = self.boot + 1, 1
        self.disk.power_cut(self.dice)

    def drain(self) -> None:
        """All is well again: everything goes to the server."""
        self.disk.plan = lambda _number, _what: None
        self.disk.is_read_only = False
        self.disk.space = None
        if self.ledger is None:
            self.start()
        for _ in range(3):
            self.commit()
        while self.deliver():
            pass

    def named_as_lost(self) -> int:
        return sum(
            amount
            for (epoch, sequence), amount in self.given.items()
            if any(gap.first <= sequence <= gap.last for gap in self._gaps(epoch))
            and not self._has_arrived(epoch, sequence)
        )

    def _has_arrived(self, epoch: int, sequence: int) -> bool:
        arrived = self.server.epochs.get(epoch)
        return arrived is not None and sequence in arrived.payloads

    def check(self) -> None:
        """To the byte."""
        assert self.closed is None
        assert not self.open
        found = self.server.total() + self.named_as_lost() + self.excused
        assert found == self.used, (found - self.used, self.disk.log[-30:])
        for epoch, arrived in self.server.epochs.items():
            for sequence, payload in arrived.payloads.items():
                assert self.given[epoch, sequence] == amount_of(payload)

    def _gaps(self, epoch: int) -> Iterator[Gap]:
        """That the server was told, and that only the host's people can be."""
        if epoch in self.server.epochs:
            yield from self.server.epochs[epoch].gaps
        yield from (gap for gap in self.told if gap.epoch == epoch)

    def _sheet(self, number: int) -> str:
        return f"{self.boot}:{number}"


def scenario(host: Host, steps: int = 9, *, power: float = 0.0) -> None:
    """Some minutes of a host's life: commits, restarts, epochs, delivery with lost acks.

    A cut restarts the daemon, or the host (`power`: how likely), and life goes on with the next
    step.
    """
    for step in range(steps):
        try:
            if host.ledger is None:
                host.start()
            assert host.ledger is not None
            host.use(host.dice.randrange(1, 9))
            if step == steps // 2:
                host.disk.is_read_only = False
                host.ledger.begin_epoch("a test")
            host.commit()
            if step % 3 == 1:
                host.deliver(lose_ack=step % 2 == 0)
            if step % 4 == 2:
                host.ledger.close()
                host.ledger = None
        except Cut:
            if host.dice.random() < power:
                host.power_cut()
            else:
                host.killed()
        except LedgerBlocked:  # of begin_epoch
            host.refused += 1
        host.clock_ms += 5000
