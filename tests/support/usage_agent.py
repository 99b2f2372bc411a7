# SPDX-License-Identifier: Apache-2.0
"""The agent's side of usage as a process of its own: real records, real ledger, real delivery.

`python -m tests.support.usage_agent SETTINGS.json`. It makes numbered records, commits them with
the number as the mark, and delivers; killed at any time and started again it goes on where the
ledger is. It ends when all is acknowledged, and says how it went as JSON on standard output.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import resource
import sys
import threading
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tests.bench import control_peer

from licagent.control.interface import ControlSettings
from licagent.control.usage import deliver_for_ever
from licagent.control.usage_source import UsageProgress
from licagent.control.usage_wire import encode
from licagent.domain.catalog import SignedBytes
from licagent.domain.hostidentity import Identity
from licagent.domain.usage import Meter, UsageKind, UsageOwner, UsageRecord
from licagent.store.ledger import Ledger
from licagent.store.ledger_types import LedgerFull, LedgerLimits

BASE_MS = 1_790_000_000_000
LICENSES = tuple(f"license-{number}" for number in range(20))
"""To which what it makes is charged."""


@dataclass(frozen=True)
class Settings:
    """What a run does."""

    folder: str
    identity: str
    """JSON of control_peer.Identity; "": nothing is delivered."""
    control: str = ""
    records: int = 0
    """Made in all, over all runs."""
    each: int = 1000
    """Of one commit."""
    a_second: int = 0
    """0: as fast as it goes."""
    base_ms: int = BASE_MS
    boot_id: str = "11111111-2222-4333-8444-555555555555"
    spool_max_bytes: int = 8 << 30
    backoff_cap_ms: int = 300
    beside: bool = False
    """Begin a new epoch for what is made in this run, as the daemon does behind a backlog."""


@dataclass
class Outcome:
    """How it went."""

    records: int = 0
    made_s: float = 0.0
    acked_s: float = 0.0
    cpu_s: float = 0.0
    spool_bytes: int = 0
    spool_max_bytes: int = 0
    lag_max_s: float = 0.0
    epochs: list[int] = field(default_factory=list)
    alarms: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


def usage(number: int, base_ms: int = BASE_MS) -> UsageRecord:
    """Record `number`: of one of 200 processes in 40 units, every 5 seconds."""
    process = number % 200
    end_ms = base_ms + number // 200 * 5_000
    return UsageRecord(
        kind=UsageKind.NETWORK if number % 4 == 3 else UsageKind.COMPUTE,
        start_unix_ms=end_ms - 5_000,
        end_unix_ms=end_ms,
        quantities=quantities(number),
        owner=UsageOwner(
            unit=f"systemd:unit:worker-{process % 40}.service",
            cgroup=f"/system.slice/worker-{process % 40}.service",
            user="worker",
            uid=1000 + process % 5,
            executable=f"/usr/lib/worker/bin/worker-{process % 10}",
            pid=20_000 + process,
            process_start_unix_ms=base_ms - 1_000_000 - process,
        ),
        license=LICENSES[process % 20],
        resource="orders-db" if number % 4 == 3 else "compute",
        binding=f"binding-{process % 20}",
        protocol=6 if number % 4 == 3 else 0,
    )


def quantities(number: int) -> dict[Meter, int]:
    """What record `number` says; tests add it up."""
    if number % 4 == 3:
        return {
            Meter.TX_PAYLOAD_BYTES: 1_000 + number,
            Meter.RX_PAYLOAD_BYTES: 3_000 + 2 * number,
            Meter.TX_WIRE_BYTES: 1_400 + number,
            Meter.RX_WIRE_BYTES: 3_400 + 2 * number,
            Meter.TX_PACKETS: 7 + number % 90,
            Meter.RX_PACKETS: 9 + number % 90,
        }
    return {
        Meter.CPU_NS: 1_000_003 * (number % 977) + number,
        Meter.READ_BYTES: 4096 * (number % 50),
        Meter.WRITE_BYTES: 4096 * (number % 31),
        Meter.MEMORY_BYTE_MS: 40_000_000_000 + number * 4096,
    }


def total(first: int, last: int) -> dict[str, int]:
    """The sums over records first..last."""
    found = {meter.key: 0 for meter in Meter}
    for number in range(first, last + 1):
        for meter, quantity in quantities(number).items():
            found[meter.key] += quantity
    return found


def identity_of(text: str) -> Identity:
    """The host's identity for licagent.control."""
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import Encoding

    peer = control_peer.Identity.read(text)

    def ders(pem: bytes) -> tuple[bytes, ...]:
        found = x509.load_pem_x509_certificates(pem)
        return tuple(one.public_bytes(Encoding.DER) for one in found)

    return Identity(
        key_pem=peer.key_pem,
        host_id=peer.host_id,
        certificate_chain=ders(peer.chain_pem),
        ca_certificates=ders(peer.ca_pem),
        trust=peer.trust,
        assignment=SignedBytes(b"", b"", ""),
        counter=peer.counter,
        control_address=peer.control,
        public_address="",
        not_after_unix_ms=0,
    )


class Run:
    """One life of the process."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.identity = identity_of(settings.identity) if settings.identity else None
        host_id = self.identity.host_id if self.identity else ""
        self.ledger = Ledger(
            Path(settings.folder),
            boot_id=settings.boot_id,
            host_id=lambda: host_id,
            limits=LedgerLimits(spool_max_bytes=settings.spool_max_bytes),
        )
        self.made = int(self.ledger.marks.get("at", b"0"))
        self.outcome = Outcome()
        self.began_s = time.monotonic()
        self._stop = threading.Event()

    def make(self) -> None:
        """Commit records until there are enough."""
        settings = self.settings
        begin = self.made
        if settings.beside and self.made < settings.records:
            self.ledger.begin_epoch("what is used now does not wait behind a backlog")
        while self.made < settings.records and not self._stop.is_set():
            until = min(self.made + settings.each, settings.records)
            payloads = [encode(usage(n, settings.base_ms)) for n in range(self.made + 1, until + 1)]
            try:
                self.ledger.commit(payloads, {"at": str(until).encode()})
            except LedgerFull:
                time.sleep(0.05)
                continue
            self.made = until
            if settings.a_second:
                due_s = self.began_s + (self.made - begin) / settings.a_second
                self._stop.wait(max(0.0, due_s - time.monotonic()))
        self.outcome.made_s = time.monotonic() - self.began_s

    def told(self, progress: UsageProgress) -> None:
        """Keep what is new of the progress."""
        for text, known in (
            (progress.alarm, self.outcome.alarms),
            (progress.last_error, self.outcome.errors),
        ):
            if text and text not in known:
                known.append(text)

    async def run(self) -> None:
        """Make and deliver side by side."""
        making = asyncio.ensure_future(asyncio.to_thread(self.make))
        delivering: asyncio.Task[Any] | None = None
        if self.identity is not None:
            settings = ControlSettings(
                boot_id=self.settings.boot_id,
                agent_version="0.0-test",
                backoff_first_ms=50,
                backoff_cap_ms=self.settings.backoff_cap_ms,
            )
            delivering = asyncio.ensure_future(
                deliver_for_ever(
                    self.identity, self.settings.control, settings, self.ledger, told=self.told
                )
            )
        try:
            while not making.done() or (delivering and self.ledger.backlog_records):
                for task in (making, delivering):
                    if task is not None and task.done():
                        task.result()
                size = self.ledger.size_bytes
                self.outcome.spool_max_bytes = max(self.outcome.spool_max_bytes, size)
                await asyncio.sleep(0.02)
        finally:
            self._stop.set()
            await making
            if delivering is not None:
                delivering.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await delivering
        self.outcome.acked_s = time.monotonic() - self.began_s

    def end(self) -> Outcome:
        """Close the ledger; how it went."""
        used = resource.getrusage(resource.RUSAGE_SELF)
        self.outcome.cpu_s = used.ru_utime + used.ru_stime
        self.outcome.records = self.made
        self.outcome.spool_bytes = self.ledger.size_bytes
        self.outcome.epochs = [one.epoch for one in self.ledger.epochs()]
        self.ledger.close()
        return self.outcome


def main() -> None:
    """One run."""
    run = Run(Settings(**json.loads(Path(sys.argv[1]).read_text())))
    try:
        asyncio.run(run.run())
    finally:
        print(json.dumps(asdict(run.end())), flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
