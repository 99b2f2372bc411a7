# SPDX-License-Identifier: Apache-2.0
"""Usage as it comes in: chains, batches, records and what was set aside."""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0002"
down_revision: str | None = "0001"
branch_labels: str | None = None
depends_on: str | None = None

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
_TABLES: Final = (
    "usage_alarms",
    "usage_gaps",
    "usage_refused",
    "usage_records",
    "usage_scopes",
    "usage_owners",
    "usage_pending",
    "usage_batches",
    "usage_epochs",
)


def _words(*names: str) -> list[sa.Column[str]]:
    return [sa.Column(name, _WORDS, nullable=False) for name in names]


def _whole(*names: str) -> list[sa.Column[int]]:
    return [sa.Column(name, sa.BigInteger(), nullable=False) for name in names]


def _hash(*names: str) -> list[sa.Column[bytes]]:
    return [sa.Column(name, sa.LargeBinary(length=32), nullable=False) for name in names]


def _blob(*names: str) -> list[sa.Column[bytes]]:
    return [sa.Column(name, sa.LargeBinary(), nullable=False) for name in names]


def upgrade() -> None:
    """Make the tables; on PostgreSQL usage_records in parts, one a day, and one for the rest."""
    is_postgres = op.get_bind().dialect.name == "postgresql"
    op.create_table(
        "usage_epochs",
        *_words("host_id"),
        *_whole("epoch"),
        *_hash("public_key"),
        *_words("boot_id"),
        *_whole("acked_sequence"),
        *_hash("acked_hash"),
        *_whole("host_first_sequence", "host_next_sequence", "begun_ms", "received_ms"),
        sa.PrimaryKeyConstraint("host_id", "epoch", name="pk_usage_epochs"),
    )
    op.create_table(
        "usage_batches",
        *_words("host_id"),
        *_whole("epoch", "first_sequence", "last_sequence"),
        *_words("boot_id", "signed_host_id"),
        *_blob("payload"),
        *_hash("previous_hash", "hash"),
        *_blob("signature"),
        *_whole("received_ms", "start_ms", "end_ms"),
        sa.PrimaryKeyConstraint("host_id", "epoch", "first_sequence", name="pk_usage_batches"),
    )
    op.create_index("ix_usage_batches_received_ms", "usage_batches", ["received_ms"])
    op.create_table(
        "usage_pending",
        *_words("host_id"),
        *_whole("epoch", "first_sequence", "last_sequence"),
        *_words("boot_id"),
        *_whole("received_ms", "start_ms", "end_ms"),
        sa.PrimaryKeyConstraint("host_id", "epoch", "first_sequence", name="pk_usage_pending"),
    )
    op.create_table(
        "usage_owners",
        *_whole("owner_id"),
        *_hash("owner_hash"),
        *_words("unit", "cgroup", "user_name"),
        *_whole("uid_plus_one"),
        *_words("executable"),
        sa.PrimaryKeyConstraint("owner_id", name="pk_usage_owners"),
        sa.UniqueConstraint("owner_hash", name="uq_usage_owners_owner_hash"),
    )
    op.create_table(
        "usage_scopes",
        *_whole("scope_id"),
        *_hash("scope_hash"),
        *_words("org", "project", "environment", "region"),
        sa.PrimaryKeyConstraint("scope_id", name="pk_usage_scopes"),
        sa.UniqueConstraint("scope_hash", name="uq_usage_scopes_scope_hash"),
    )
    op.create_table(
        "usage_records",
        *_words("host_id", "boot_id"),
        *_whole("epoch", "sequence", "day", "kind", "start_ms", "end_ms", "received_ms"),
        *_words("license", "resource", "binding"),
        *_whole("owner_id", "scope_id", "pid", "process_start_ms", "protocol", "loopback"),
        *_whole("estimated", "unsupported"),
        *_words("detail"),
        *_hash("payload_hash"),
        *_whole(*_METERS),
        sa.PrimaryKeyConstraint(
            "host_id", "boot_id", "epoch", "sequence", "day", name="pk_usage_records"
        ),
        postgresql_partition_by="RANGE (day)",
    )
    op.create_table(
        "usage_refused",
        *_words("host_id"),
        *_whole("epoch", "sequence"),
        *_words("boot_id"),
        *_whole("received_ms"),
        *_words("reason"),
        *_blob("payload"),
        sa.PrimaryKeyConstraint("host_id", "epoch", "sequence", name="pk_usage_refused"),
    )
    op.create_table(
        "usage_gaps",
        *_words("host_id"),
        *_whole("epoch", "first_sequence", "last_sequence"),
        *_words("signed_host_id", "reason"),
        *_hash("next_previous_hash"),
        *_blob("signature"),
        *_whole("received_ms"),
        sa.PrimaryKeyConstraint("host_id", "epoch", "first_sequence", name="pk_usage_gaps"),
    )
    op.create_table(
        "usage_alarms",
        *_words("host_id"),
        *_whole("epoch"),
        *_words("code"),
        *_whole("count", "sequence"),
        *_words("detail"),
        *_whole("first_ms", "last_ms"),
        sa.PrimaryKeyConstraint("host_id", "epoch", "code", name="pk_usage_alarms"),
    )
    if is_postgres:
        op.execute("CREATE TABLE usage_records_default PARTITION OF usage_records DEFAULT")
        # The payload is compressed already.
        op.execute("ALTER TABLE usage_batches ALTER COLUMN payload SET STORAGE EXTERNAL")


def downgrade() -> None:
    """Remove them, with the parts."""
    for name in _TABLES:
        op.drop_table(name)
