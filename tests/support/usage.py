# SPDX-License-Identifier: Apache-2.0
"""A host's chain of usage in memory, written from the protocol's words and from no code of ours.

It is what hostile and broken hosts are made of, and the reference that stored rows are compared
with. It also has the shape that licagent.control delivers from.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from licapi.control.v1 import telemetry_pb2

METERS = (
    "cpu_ns",
    "read_bytes",
    "write_bytes",
    "cancelled_bytes",
    "memory_byte_ms",
    "processes",
    "tx_payload_bytes",
    "rx_payload_bytes",
    "tx_wire_bytes",
    "rx_wire_bytes",
    "tx_packets",
    "rx_packets",
    "stored_byte_ms",
)
ZEROS = bytes(32)
BASE_MS = 1_790_000_000_000  # 2026-09-21


def be8(number: int) -> bytes:
    return number.to_bytes(8, "big")


@dataclass(frozen=True)
class SpoolBatch:
    epoch: int
    boot_id: str
    first: int
    records: tuple[bytes, ...]
    previous_hash: bytes
    hash: bytes
    signature: bytes

    @property
    def last(self) -> int:
        return self.first + len(self.records) - 1

    def message(self) -> telemetry_pb2.UsageUp:
        return telemetry_pb2.UsageUp(
            batch=telemetry_pb2.UsageBatch(
                epoch=self.epoch,
                boot_id=self.boot_id,
                first_sequence=self.first,
                records=self.records,
                previous_hash=self.previous_hash,
                hash=self.hash,
                signature=self.signature,
            )
        )


@dataclass(frozen=True)
class SpoolGap:
    epoch: int
    first: int
    last: int
    reason: str
    next_previous_hash: bytes
    signature: bytes

    def message(self) -> telemetry_pb2.UsageUp:
        return telemetry_pb2.UsageUp(
            gap=telemetry_pb2.UsageGap(
                epoch=self.epoch,
                first_sequence=self.first,
                last_sequence=self.last,
                reason=self.reason,
                next_previous_hash=self.next_previous_hash,
                signature=self.signature,
            )
        )


@dataclass(frozen=True)
class SpoolEpoch:
    epoch: int
    public_key: bytes
    boot_id: str
    first_sequence: int
    next_sequence: int
    acked_sequence: int
    acked_hash: bytes
    is_current: bool


def record(number: int, **fields: object) -> bytes:
    """A record that says which one it is."""
    end_ms = BASE_MS + number * 5_000
    values: dict[str, object] = {
        "kind": 1,
        "start_unix_ms": end_ms - 5_000,
        "end_unix_ms": end_ms,
        "license": "acme-db",
        "resource": "db",
        "binding": "b",
        "unit": f"systemd:unit:app-{number % 7}.service",
        "cgroup": f"/system.slice/app-{number % 7}.service",
        "user": "app",
        "uid": 1000,
        "executable": "/usr/bin/app",
        "pid": 1000 + number % 50,
        "process_start_unix_ms": BASE_MS - 1_000_000,
        "cpu_ns": number * 1_000_003,
        "read_bytes": number * 4096,
        "memory_byte_ms": number * 12_345,
        **fields,
    }
    return telemetry_pb2.UsageRecord(**values).SerializeToString(deterministic=True)


def sums(records: Sequence[bytes]) -> dict[str, int]:
    """What these records add up to, by meter."""
    read = [telemetry_pb2.UsageRecord.FromString(one) for one in records]
    return {name: sum(getattr(one, name) for one in read) for name in METERS}


@dataclass
class Spool:
    """A chain that keeps everything."""

    host_id: str = ""
    epoch: int = 1
    boot_id: str = field(default_factory=lambda: str(uuid.uuid4()))
    key: Ed25519PrivateKey = field(default_factory=Ed25519PrivateKey.generate)
    items: list[SpoolBatch | SpoolGap] = field(default_factory=list)
    hash: bytes = ZEROS
    next_sequence: int = 1
    acked: tuple[int, bytes] = (0, ZEROS)
    given_up: list[str] = field(default_factory=list)

    @property
    def public_key(self) -> bytes:
        raw = serialization.Encoding.Raw
        return self.key.public_key().public_bytes(raw, serialization.PublicFormat.Raw)

    @property
    def records(self) -> list[bytes]:
        return [one for item in self.items if isinstance(item, SpoolBatch) for one in item.records]

    def made(self, records: Sequence[bytes], **changes: object) -> SpoolBatch:
        """The batch that would follow; with changes, one that is signed all the same."""
        chain, last = self.hash, self.next_sequence + len(records) - 1
        for sequence, one in enumerate(records, self.next_sequence):
            chain = hashlib.sha256(chain + be8(sequence) + one).digest()
        batch = SpoolBatch(
            self.epoch, self.boot_id, self.next_sequence, tuple(records), self.hash, chain, b""
        )
        batch = replace(batch, **changes)  # type: ignore[arg-type]
        words = (
            b"licagent-usage-v1\0"
            + self.host_id.encode()
            + b"\0"
            + batch.boot_id.encode()
            + b"\0"
            + be8(batch.epoch)
            + be8(batch.first)
            + be8(max(last, 0))
            + batch.hash
        )
        return batch if batch.signature else replace(batch, signature=self.key.sign(words))

    def commit(self, records: Sequence[bytes]) -> SpoolBatch:
        batch = self.made(records)
        self.items.append(batch)
        self.hash, self.next_sequence = batch.hash, batch.last + 1
        return batch

    def lose(self, count: int, reason: str = "a frame was damaged") -> SpoolGap:
        """Records that are gone, by name; the chain goes on as if they were there."""
        first, last = self.next_sequence, self.next_sequence + count - 1
        chain = hashlib.sha256(self.hash + b"lost").digest()
        words = (
            b"licagent-usage-gap-v1\0"
            + self.host_id.encode()
            + b"\0"
            + be8(self.epoch)
            + be8(first)
            + be8(last)
            + chain
            + reason.encode()
        )
        gap = SpoolGap(self.epoch, first, last, reason, chain, self.key.sign(words))
        self.items.append(gap)
        self.hash, self.next_sequence = chain, last + 1
        return gap

    def hello(self) -> telemetry_pb2.UsageUp:
        return telemetry_pb2.UsageUp(
            hello=telemetry_pb2.UsageHello(
                epoch=self.epoch,
                public_key=self.public_key,
                boot_id=self.boot_id,
                first_sequence=1,
                next_sequence=self.next_sequence,
            )
        )

    # --- as licagent.control asks for it

    def epochs(self) -> Sequence[SpoolEpoch]:
        return (
            SpoolEpoch(
                epoch=self.epoch,
                public_key=self.public_key,
                boot_id=self.boot_id,
                first_sequence=1,
                next_sequence=self.next_sequence,
                acked_sequence=self.acked[0],
                acked_hash=self.acked[1],
                is_current=True,
            ),
        )

    def past_epochs(self) -> Sequence[SpoolEpoch]:
        return ()

    def batches(
        self, after: int, *, limit_bytes: int, epoch: int | None = None
    ) -> Iterator[SpoolBatch | SpoolGap]:
        del epoch
        size = 0
        for item in list(self.items):
            if item.last > after and size < limit_bytes:
                size += sum(map(len, item.records)) if isinstance(item, SpoolBatch) else 0
                yield item

    def acknowledge(self, sequence: int, hash: bytes, *, epoch: int | None = None) -> bool:  # noqa: A002
        del epoch
        known = {
            item.last: item.hash if isinstance(item, SpoolBatch) else item.next_previous_hash
            for item in self.items
        }
        if known.get(sequence) != hash:
            return False
        self.acked = max(self.acked, (sequence, hash))
        return True

    def diverged(self, epoch: int, reason: str) -> None:
        assert epoch == self.epoch
        self.given_up.append(reason)
        self.epoch += 1
        self.items.clear()
        self.hash, self.next_sequence, self.acked = ZEROS, 1, (0, ZEROS)

    def begin_epoch(self, reason: str) -> int:
        raise NotImplementedError(reason)
