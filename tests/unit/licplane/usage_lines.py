# SPDX-License-Identifier: Apache-2.0
"""Usage put straight into the tables, as intake leaves it there."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from typing import Any

from sqlalchemy import insert

from licplane.store.database import Store
from licplane.store.usage_model import METERS
from licplane.store.usage_schema import (
    usage_batches,
    usage_epochs,
    usage_owners,
    usage_pending,
    usage_records,
    usage_scopes,
)

DAY_MS = 86_400_000


@dataclass(frozen=True)
class Line:
    """A record, in the words of the dimensions."""

    start_ms: int
    end_ms: int
    host: str = "host-1"
    license: str = "acme-orders"
    resource: str = "orders-db"
    binding: str = "orders"
    unit: str = "orders.service"
    user: str = "orders"
    executable: str = "/usr/bin/orders"
    organization: str = "acme"
    project: str = "shop"
    environment: str = "prod"
    region: str = "eu-1"
    kind: int = 1
    pid: int = 0
    process_start_ms: int = 0
    protocol: int = 0
    loopback: int = 0
    estimated: int = 0
    quantities: dict[str, int] = field(default_factory=dict)


class Lines:
    """A store that usage comes into."""

    def __init__(self, store: Store, *, epoch: int = 1) -> None:
        self.store = store
        self.epoch = epoch
        self.all: list[tuple[int, Line]] = []
        self._next: dict[str, int] = {}
        self._ids: dict[str, dict[tuple[object, ...], int]] = {"owner": {}, "scope": {}}

    def add(self, *lines: Line, received_ms: int = 0) -> None:
        """One batch for each host in `lines`."""
        for host in sorted({line.host for line in lines}):
            self._batch(host, [line for line in lines if line.host == host], received_ms)

    def _batch(self, host: str, lines: list[Line], received_ms: int) -> None:
        first = self._next.get(host, 1)
        last = first + len(lines) - 1
        self._next[host] = last + 1
        start_ms = min(line.start_ms for line in lines)
        end_ms = max(line.end_ms for line in lines)
        received_ms = received_ms or end_ms
        chain: dict[str, Any] = {"host_id": host, "epoch": self.epoch}
        batch = chain | {
            "first_sequence": first,
            "last_sequence": last,
            "boot_id": "boot-1",
            "received_ms": received_ms,
            "start_ms": start_ms,
            "end_ms": end_ms,
        }
        with self.store.recording() as recorder:
            connection = recorder._connection
            rows = []
            for at, line in enumerate(lines):
                self.all.append((first + at, line))
                owner = (line.unit, "", line.user, 0, line.executable)
                scope = (line.organization, line.project, line.environment, line.region)
                rows.append(
                    chain
                    | dict.fromkeys((name for name, _ in METERS), 0)
                    | {
                        "boot_id": "boot-1",
                        "sequence": first + at,
                        "day": line.end_ms // DAY_MS,
                        "kind": line.kind,
                        "start_ms": line.start_ms,
                        "end_ms": line.end_ms,
                        "received_ms": received_ms,
                        "license": line.license,
                        "resource": line.resource,
                        "binding": line.binding,
                        "owner_id": self._id(connection, "owner", owner),
                        "scope_id": self._id(connection, "scope", scope),
                        "pid": line.pid,
                        "process_start_ms": line.process_start_ms,
                        "protocol": line.protocol,
                        "loopback": line.loopback,
                        "estimated": line.estimated,
                        "unsupported": 0,
                        "detail": "",
                        "payload_hash": bytes(32),
                        **line.quantities,
                    }
                )
            connection.execute(insert(usage_records), rows)
            blobs = {
                "signed_host_id": host,
                "payload": b"",
                "previous_hash": bytes(32),
                "hash": bytes(32),
                "signature": b"",
            }
            connection.execute(insert(usage_batches), [batch | blobs])
            connection.execute(insert(usage_pending), [batch])
            recorder._put(
                usage_epochs,
                [
                    chain
                    | {
                        "public_key": bytes(32),
                        "boot_id": "boot-1",
                        "acked_sequence": last,
                        "acked_hash": bytes(32),
                        "host_first_sequence": 1,
                        "host_next_sequence": last + 1,
                        "begun_ms": 0,
                        "received_ms": received_ms,
                    }
                ],
            )

    def _id(self, connection: Any, what: str, key: tuple[object, ...]) -> int:
        known = self._ids[what]
        if key in known:
            return known[key]
        number = known[key] = len(known) + 1
        digest = hashlib.sha256(repr(key).encode()).digest()
        if what == "owner":
            names = ("unit", "cgroup", "user_name", "uid_plus_one", "executable")
            row = {"owner_id": number, "owner_hash": digest, **dict(zip(names, key, strict=True))}
            connection.execute(insert(usage_owners), [row])
        else:
            names = ("org", "project", "environment", "region")
            row = {"scope_id": number, "scope_hash": digest, **dict(zip(names, key, strict=True))}
            connection.execute(insert(usage_scopes), [row])
        return number

    def roll_up(self, limit: int = 64) -> None:
        """As the regular work does."""
        while True:
            with self.store.recording() as recorder:
                recorder.lock_usage()
                if recorder.roll_up(limit) is None:
                    return

    def total(self, meter: str, since_ms: int, until_ms: int, **where: object) -> int:
        """What an answer must say, added up line by line."""
        return sum(
            line.quantities.get(meter, 0)
            for _, line in self.all
            if since_ms < line.end_ms <= until_ms
            and all(getattr(line, name) == value for name, value in where.items())
        )


def at(line: Line, **changes: Any) -> Line:
    """The line with something else in it."""
    return replace(line, **changes)
