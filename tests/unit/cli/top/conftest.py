# SPDX-License-Identifier: Apache-2.0
"""A host whose processes do what a test says, answered as the daemon's method `top` does."""

from __future__ import annotations

from typing import Any

import pytest

from licagent.local.usage_shapes import TOP_COLUMNS

SECOND = 10**9


class Host:
    """`ask` is what a Poll takes: each call is a second later than the one before."""

    def __init__(self) -> None:
        self.now_ns = 100 * SECOND
        self.rows: dict[str, list[dict[str, Any]]] = {"process": [], "unit": [], "license": []}
        self.growth: dict[object, dict[str, int]] = {}
        """By pid or name: how much is added each second."""
        self.more: dict[str, Any] = {}
        self.error: Exception | None = None
        self.asked: list[dict[str, Any]] = []
        self.step_ns = SECOND

    def process(
        self, pid: int, name: str, *, grows: dict[str, int] | None = None, **more: Any
    ) -> None:
        row = dict.fromkeys(TOP_COLUMNS, 0)
        row |= {"pid": pid, "start_ns": pid * SECOND // 1000, "ppid": 1, "name": name}
        row |= {"executable": f"/usr/bin/{name}", "user": "alice", "unit": f"{name}.service"}
        row |= {"license": "", "processes": 1, "stored_bytes": None, **more}
        self.rows["process"].append(row)
        self.growth[pid] = grows or {}

    def group(
        self, by: str, name: str, *, grows: dict[str, int] | None = None, **more: Any
    ) -> None:
        row = dict.fromkeys(TOP_COLUMNS, 0)
        row |= {"pid": None, "ppid": None, "name": name, "executable": "", "user": ""}
        row |= {"unit": name if by == "unit" else "", "license": "", "processes": 2, **more}
        self.rows[by].append(row)
        self.growth[name] = grows or {}

    def ask(self, method: str, **params: Any) -> dict[str, Any]:
        assert method == "top"
        self.asked.append(params)
        if self.error is not None:
            raise self.error
        self.now_ns += self.step_ns
        for rows in self.rows.values():
            for row in rows:
                for meter, amount in self.growth[row["pid"] or row["name"]].items():
                    row[meter] += amount
        return {
            "by": params["by"],
            "metering": "on",
            "boot": "one",
            "started_ns": 5,
            "at": "2026-03-02T12:00:05.000Z",
            "at_boottime_ns": self.now_ns,
            "host": {"name": "staging-1", "cpus": 2, "cpu_ns": self.now_ns,
                     "memory_bytes": 4 << 30, "memory_used_bytes": 3 << 29, "processes": 3},
            "meters": {
                "cpu_ns": {"quality": "exact", "source": "sum_exec_runtime"},
                "memory_bytes": {"quality": "estimated", "source": "sampled"},
            },
            "columns": list(TOP_COLUMNS),
            "rows": [[row[name] for name in TOP_COLUMNS] for row in self.rows[params["by"]]],
            "unattributed": {"cpu_ns": self.now_ns // 100},
        } | self.more  # fmt: skip


@pytest.fixture
def host() -> Host:
    """Three processes: orders with a child, and curl, which has ended."""
    found = Host()
    found.process(4242, "orders", user="orders", license="acme-orders-2026",
                  grows={"cpu_ns": SECOND // 2, "tx_payload_bytes": 2048,
                         "tx_wire_bytes": 4096})  # fmt: skip
    found.process(4300, "worker", ppid=4242, memory_bytes=64 << 20,
                  grows={"cpu_ns": SECOND, "read_bytes": 10 << 20})  # fmt: skip
    found.process(5120, "curl", exited_ns=99 * SECOND, processes=0, cpu_ns=SECOND)
    found.group("unit", "orders.service", license="acme-orders-2026", stored_bytes=3 << 30,
                grows={"cpu_ns": SECOND})  # fmt: skip
    found.group("unit", "", grows={"write_bytes": 1024})
    found.group("license", "acme-orders-2026", grows={"cpu_ns": SECOND}, stored_bytes=3 << 30)
    return found
