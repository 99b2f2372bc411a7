# SPDX-License-Identifier: Apache-2.0
"""The tables of rollups, bills, triggers and budgets. migrations/step_0003 makes them.

A rolled-up quantity may be larger than 2**63 (the bytes of a large disk, times the milliseconds of
a day), which neither database can keep as a whole number. Each has two columns: `cpu_ns` holds
the lower 40 bits, `cpu_ns_high` the rest.
"""

from __future__ import annotations

from typing import Final

from sqlalchemy import Column, Index, LargeBinary, String, Table

from licplane.store import usage_model
from licplane.store.columns import NAME_MAX_BYTES, Whole, Words
from licplane.store.schema import metadata

METERS: Final = tuple(name for name, _ in usage_model.METERS)
"""Names of the meters, which are the names of columns."""
LOW_BITS: Final = 40


def high(meter: str) -> str:
    """The column of a quantity's upper part."""
    return f"{meter}_high"


def _name(name: str, *, key: bool = False) -> Column[str]:
    return Column(name, Words(NAME_MAX_BYTES), primary_key=key, nullable=False)


def _text(name: str) -> Column[str]:
    return Column(name, Words(), nullable=False)


def _whole(name: str, *, key: bool = False, null: bool = False) -> Column[int]:
    return Column(name, Whole(), primary_key=key, nullable=null, autoincrement=False)


def _quantities() -> list[Column[int]]:
    return [_whole(name) for meter in METERS for name in (meter, high(meter))]


def _common() -> list[Column[int]]:
    return [
        _whole("records"),  # how many of them are in this row
        _whole("first_ms"),  # start of the earliest, end of the latest
        _whole("last_ms"),
        _whole("estimated"),  # bit masks: in any of the records
        _whole("unsupported"),
        *_quantities(),
    ]


# A record counts in the hour, the day and the billing period that hold its last millisecond.
usage_hourly: Final = Table(
    "usage_hourly",
    metadata,
    _whole("hour_ms", key=True),
    Column("host_id", Words(64), primary_key=True, nullable=False),
    _whole("owner_id", key=True),
    _whole("scope_id", key=True),
    _whole("kind", key=True),
    _name("license", key=True),
    _name("resource", key=True),
    _name("binding", key=True),
    _whole("protocol", key=True),
    _whole("loopback", key=True),
    _whole("pid", key=True),
    _whole("process_start_ms", key=True),
    *_common(),
)

# The same without the process.
usage_daily: Final = Table(
    "usage_daily",
    metadata,
    _whole("day_ms", key=True),
    Column("host_id", Words(64), primary_key=True, nullable=False),
    _whole("owner_id", key=True),
    _whole("scope_id", key=True),
    _whole("kind", key=True),
    _name("license", key=True),
    _name("resource", key=True),
    _name("binding", key=True),
    _whole("protocol", key=True),
    _whole("loopback", key=True),
    *_common(),
)

# How far the records of an epoch are in the two tables above; written together with them.
usage_rolled: Final = Table(
    "usage_rolled",
    metadata,
    Column("host_id", Words(64), primary_key=True, nullable=False),
    _whole("epoch", key=True),
    _whole("sequence"),
)

# The last record of an epoch whose batch was deleted as old, and the chain's hash there.
usage_purged: Final = Table(
    "usage_purged",
    metadata,
    Column("host_id", Words(64), primary_key=True, nullable=False),
    _whole("epoch", key=True),
    _whole("sequence"),
    Column("hash", LargeBinary(32), nullable=False),
)

# One row: who changes rollups or bills holds its lock; and which replica does the regular work.
usage_work: Final = Table(
    "usage_work",
    metadata,
    _whole("id", key=True),
    _text("leader"),
    _whole("leader_until_unix_ms"),
    _whole("kept_until_ms"),  # records that ended before were deleted
    _whole("hourly_kept_until_ms"),
    _whole("daily_kept_until_ms"),
)

# Price plans, triggers and budgets, each version as it was written.
billing_documents: Final = Table(
    "billing_documents",
    metadata,
    Column("kind", String(16), primary_key=True, nullable=False),  # plan, trigger or budget
    _name("name", key=True),
    _whole("version", key=True),
    _text("document"),  # JSON object; empty: removed
    _text("actor"),
    _whole("at_unix_ms"),
)

# Periods that were closed. Open ones are computed when somebody asks.
billing_periods: Final = Table(
    "billing_periods",
    metadata,
    _name("period", key=True),  # PLAN/2026-10
    _name("plan"),
    _whole("plan_version"),
    _whole("start_ms"),
    _whole("end_ms"),
    _whole("closed_at_unix_ms"),
    _text("closed_by"),
    Index(None, "plan", "start_ms"),
)

# What was written into a period at one time: first its closing, then corrections.
billing_runs: Final = Table(
    "billing_runs",
    metadata,
    _whole("run", key=True),
    _name("period"),
    Column("kind", String(16), nullable=False),  # close or correction
    _whole("at_unix_ms"),
    _text("actor"),
    Column("digest", LargeBinary(32), nullable=False),  # of its entries; the audit log has it too
    Index(None, "period"),
)

billing_entries: Final = Table(
    "billing_entries",
    metadata,
    _whole("entry", key=True),
    _whole("run"),
    _name("period"),
    _name("account"),
    _name("item"),
    Column("kind", String(16), nullable=False),  # charge, minimum or correction
    _text("quantity"),  # a whole number in the meter's unit, with a sign
    _text("amount"),  # a decimal number in the plan's currency, with a sign
    _text("detail"),  # JSON object
    Index(None, "period", "account", "item"),
    Index(None, "run"),
)

# How far the records of each epoch were in the rollups when a run was made.
billing_positions: Final = Table(
    "billing_positions",
    metadata,
    _whole("run", key=True),
    Column("host_id", Words(64), primary_key=True, nullable=False),
    _whole("epoch", key=True),
    _whole("sequence"),
)

# The outbox: what is to be told to somebody, once.
trigger_deliveries: Final = Table(
    "trigger_deliveries",
    metadata,
    Column("delivery", String(64), primary_key=True, nullable=False),  # SHA-256, the key of it
    Column("kind", String(16), nullable=False),  # trigger or budget
    _name("name"),
    Column("channel", String(16), nullable=False),  # webhook, command or log
    _text("target"),
    _text("event"),  # JSON object: a CloudEvent
    Column("state", String(16), nullable=False),  # waiting, delivered or failed
    _whole("created_at_unix_ms"),
    _whole("attempts"),
    _whole("next_at_unix_ms"),
    _whole("done_at_unix_ms", null=True),
    _text("problem"),
    Index(None, "state", "next_at_unix_ms"),
    Index(None, "created_at_unix_ms"),
)

# What was found to differ on a host, and since when.
host_drift: Final = Table(
    "host_drift",
    metadata,
    Column("host_id", Words(64), primary_key=True, nullable=False),
    Column("what_hash", LargeBinary(32), primary_key=True, nullable=False),
    _whole("first_unix_ms", key=True),
    _text("what"),
    _whole("last_unix_ms"),  # of one that goes on: when it was first found
    _whole("ended_unix_ms", null=True),
    Index(None, "ended_unix_ms"),
)
