# SPDX-License-Identifier: Apache-2.0
"""Rollups of usage, bills, triggers and budgets."""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0003"
down_revision: str | None = "0002"
branch_labels: str | None = None
depends_on: str | None = None

# Sorted by code points, whatever the database's locale is.
_WORDS: Final = sa.Text().with_variant(postgresql.TEXT(collation="C"), "postgresql")
_METERS: Final = (
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
_WORK: Final = ("leader_until_unix_ms", "kept_until_ms", "hourly_kept_until_ms")


def _text(name: str) -> sa.Column[str]:
    return sa.Column(name, _WORDS, nullable=False)


def _whole(name: str, *, null: bool = False) -> sa.Column[int]:
    return sa.Column(name, sa.BigInteger(), nullable=null)


def _short(name: str, length: int = 16) -> sa.Column[str]:
    return sa.Column(name, sa.String(length=length), nullable=False)


def _hash(name: str) -> sa.Column[bytes]:
    return sa.Column(name, sa.LargeBinary(length=32), nullable=False)


def _rollup(table: str, time: str, *more: str) -> None:
    keys = [time, "host_id", "owner_id", "scope_id", "kind", "license", "resource", "binding"]
    keys += ["protocol", "loopback", *more]
    texts = ("host_id", "license", "resource", "binding")
    op.create_table(
        table,
        *(_text(key) if key in texts else _whole(key) for key in keys),
        *map(_whole, ("records", "first_ms", "last_ms", "estimated", "unsupported")),
        *(_whole(name) for meter in _METERS for name in (meter, f"{meter}_high")),
        sa.PrimaryKeyConstraint(*keys, name=f"pk_{table}"),
    )


def upgrade() -> None:
    """Make all tables, and the one row of `usage_work`."""
    _rollup("usage_hourly", "hour_ms", "pid", "process_start_ms")
    _rollup("usage_daily", "day_ms")
    op.create_table(
        "usage_rolled",
        _text("host_id"),
        _whole("epoch"),
        _whole("sequence"),
        sa.PrimaryKeyConstraint("host_id", "epoch", name="pk_usage_rolled"),
    )
    op.create_table(
        "usage_purged",
        _text("host_id"),
        _whole("epoch"),
        _whole("sequence"),
        _hash("hash"),
        sa.PrimaryKeyConstraint("host_id", "epoch", name="pk_usage_purged"),
    )
    op.create_table(
        "usage_work",
        _whole("id"),
        _text("leader"),
        *map(_whole, (*_WORK, "daily_kept_until_ms")),
        sa.PrimaryKeyConstraint("id", name="pk_usage_work"),
    )
    op.create_table(
        "billing_documents",
        _short("kind"),
        _text("name"),
        _whole("version"),
        _text("document"),
        _text("actor"),
        _whole("at_unix_ms"),
        sa.PrimaryKeyConstraint("kind", "name", "version", name="pk_billing_documents"),
    )
    op.create_table(
        "billing_periods",
        _text("period"),
        _text("plan"),
        _whole("plan_version"),
        _whole("start_ms"),
        _whole("end_ms"),
        _whole("closed_at_unix_ms"),
        _text("closed_by"),
        sa.PrimaryKeyConstraint("period", name="pk_billing_periods"),
    )
    op.create_index("ix_billing_periods_plan_start_ms", "billing_periods", ["plan", "start_ms"])
    op.create_table(
        "billing_runs",
        _whole("run"),
        _text("period"),
        _short("kind"),
        _whole("at_unix_ms"),
        _text("actor"),
        _hash("digest"),
        sa.PrimaryKeyConstraint("run", name="pk_billing_runs"),
    )
    op.create_index("ix_billing_runs_period", "billing_runs", ["period"])
    op.create_table(
        "billing_entries",
        _whole("entry"),
        _whole("run"),
        _text("period"),
        _text("account"),
        _text("item"),
        _short("kind"),
        _text("quantity"),
        _text("amount"),
        _text("detail"),
        sa.PrimaryKeyConstraint("entry", name="pk_billing_entries"),
    )
    op.create_index(
        "ix_billing_entries_period_account_item",
        "billing_entries",
        ["period", "account", "item"],
    )
    op.create_index("ix_billing_entries_run", "billing_entries", ["run"])
    op.create_table(
        "billing_positions",
        _whole("run"),
        _text("host_id"),
        _whole("epoch"),
        _whole("sequence"),
        sa.PrimaryKeyConstraint("run", "host_id", "epoch", name="pk_billing_positions"),
    )
    op.create_table(
        "trigger_deliveries",
        _short("delivery", 64),
        _short("kind"),
        _text("name"),
        _short("channel"),
        _text("target"),
        _text("event"),
        _short("state"),
        _whole("created_at_unix_ms"),
        _whole("attempts"),
        _whole("next_at_unix_ms"),
        _whole("done_at_unix_ms", null=True),
        _text("problem"),
        sa.PrimaryKeyConstraint("delivery", name="pk_trigger_deliveries"),
    )
    op.create_index(
        "ix_trigger_deliveries_state_next_at_unix_ms",
        "trigger_deliveries",
        ["state", "next_at_unix_ms"],
    )
    op.create_index(
        "ix_trigger_deliveries_created_at_unix_ms", "trigger_deliveries", ["created_at_unix_ms"]
    )
    op.create_table(
        "host_drift",
        _text("host_id"),
        _hash("what_hash"),
        _whole("first_unix_ms"),
        _text("what"),
        _whole("last_unix_ms"),
        _whole("ended_unix_ms", null=True),
        sa.PrimaryKeyConstraint("host_id", "what_hash", "first_unix_ms", name="pk_host_drift"),
    )
    op.create_index("ix_host_drift_ended_unix_ms", "host_drift", ["ended_unix_ms"])

    names = ("id", "leader", *_WORK, "daily_kept_until_ms")
    work = sa.table("usage_work", *map(sa.column, names))
    op.execute(work.insert().values(**{**dict.fromkeys(names, 0), "id": 1, "leader": ""}))


def downgrade() -> None:
    """Remove all of it."""
    op.drop_index("ix_host_drift_ended_unix_ms", table_name="host_drift")
    op.drop_table("host_drift")
    op.drop_index("ix_trigger_deliveries_created_at_unix_ms", table_name="trigger_deliveries")
    op.drop_index("ix_trigger_deliveries_state_next_at_unix_ms", table_name="trigger_deliveries")
    op.drop_table("trigger_deliveries")
    op.drop_table("billing_positions")
    op.drop_index("ix_billing_entries_run", table_name="billing_entries")
    op.drop_index("ix_billing_entries_period_account_item", table_name="billing_entries")
    op.drop_table("billing_entries")
    op.drop_index("ix_billing_runs_period", table_name="billing_runs")
    op.drop_table("billing_runs")
    op.drop_index("ix_billing_periods_plan_start_ms", table_name="billing_periods")
    op.drop_table("billing_periods")
    op.drop_table("billing_documents")
    op.drop_table("usage_work")
    op.drop_table("usage_purged")
    op.drop_table("usage_rolled")
    op.drop_table("usage_daily")
    op.drop_table("usage_hourly")
