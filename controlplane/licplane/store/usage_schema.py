# SPDX-License-Identifier: Apache-2.0
"""The tables of usage as it comes in. step_0002 makes them; PostgreSQL partitions usage_records.

Nothing here refers to `hosts`: what was used stays, and is billed, when its host is forgotten.

A record is named by (host_id, boot_id, epoch, sequence). `day` is in the key of usage_records
because PostgreSQL wants a partition's column in each unique key; it follows from the record's own
bytes, which the chain's hash fixes. That no sequence is stored twice is held by usage_epochs,
whose row each transaction locks and moves forward, and by the key of usage_batches.
"""

from __future__ import annotations

from typing import Final

from sqlalchemy import Column, Index, LargeBinary, Table, UniqueConstraint

from licplane.store.columns import NAME_MAX_BYTES, Whole, Words
from licplane.store.schema import metadata
from licplane.store.usage_model import METERS


def _whole(name: str, *, key: bool = False) -> Column[int]:
    return Column(name, Whole(), primary_key=key, nullable=False, autoincrement=False)


def _host() -> Column[str]:
    return Column("host_id", Words(64), primary_key=True, nullable=False)


def _text(name: str, max_bytes: int | None = None) -> Column[str]:
    return Column(name, Words(max_bytes), nullable=False)


def _hash(name: str) -> Column[bytes]:
    return Column(name, LargeBinary(32), nullable=False)


def _blob(name: str) -> Column[bytes]:
    return Column(name, LargeBinary(), nullable=False)


# One row for each chain of records: locked by whoever adds to it.
usage_epochs: Final = Table(
    "usage_epochs",
    metadata,
    _host(),
    _whole("epoch", key=True),
    _hash("public_key"),
    _text("boot_id", 64),  # the last one told
    _whole("acked_sequence"),
    _hash("acked_hash"),
    _whole("host_first_sequence"),
    _whole("host_next_sequence"),
    _whole("begun_ms"),
    _whole("received_ms"),
)

# What the host signed, as it came: the evidence for each row of usage_records.
usage_batches: Final = Table(
    "usage_batches",
    metadata,
    _host(),
    _whole("epoch", key=True),
    _whole("first_sequence", key=True),
    _whole("last_sequence"),
    _text("boot_id", 64),
    _text("signed_host_id", 64),
    _blob("payload"),  # licplane.store.usage_payloads
    _hash("previous_hash"),
    _hash("hash"),
    _blob("signature"),
    _whole("received_ms"),
    _whole("start_ms"),  # the earliest start and the latest end in it
    _whole("end_ms"),
    Index(None, "received_ms"),
)

# Batches that no rollup has counted yet. Written with the batch, deleted with the rollup's sums,
# in its transaction: that is how a rollup counts each record once.
usage_pending: Final = Table(
    "usage_pending",
    metadata,
    _host(),
    _whole("epoch", key=True),
    _whole("first_sequence", key=True),
    _whole("last_sequence"),
    _text("boot_id", 64),
    _whole("received_ms"),
    _whole("start_ms"),
    _whole("end_ms"),
)

usage_owners: Final = Table(
    "usage_owners",
    metadata,
    _whole("owner_id", key=True),
    _hash("owner_hash"),
    _text("unit"),
    _text("cgroup"),
    _text("user_name"),
    _whole("uid_plus_one"),  # 0: nobody in particular
    _text("executable"),
    UniqueConstraint("owner_hash"),
)

usage_scopes: Final = Table(
    "usage_scopes",
    metadata,
    _whole("scope_id", key=True),
    _hash("scope_hash"),
    _text("org"),
    _text("project"),
    _text("environment"),
    _text("region"),
    UniqueConstraint("scope_hash"),
)

usage_records: Final = Table(
    "usage_records",
    metadata,
    _host(),
    Column("boot_id", Words(64), primary_key=True, nullable=False),
    _whole("epoch", key=True),
    _whole("sequence", key=True),
    _whole("day", key=True),  # end_ms // 86,400,000
    _whole("kind"),
    _whole("start_ms"),
    _whole("end_ms"),
    _whole("received_ms"),
    _text("license", NAME_MAX_BYTES),
    _text("resource", NAME_MAX_BYTES),
    _text("binding", NAME_MAX_BYTES),
    _whole("owner_id"),
    _whole("scope_id"),
    _whole("pid"),
    _whole("process_start_ms"),
    _whole("protocol"),
    _whole("loopback"),
    _whole("estimated"),  # bit n: the meter with field 20 + n
    _whole("unsupported"),
    _text("detail"),
    _hash("payload_hash"),
    *(_whole(name) for name, _ in METERS),
)

usage_refused: Final = Table(
    "usage_refused",
    metadata,
    _host(),
    _whole("epoch", key=True),
    _whole("sequence", key=True),
    _text("boot_id", 64),
    _whole("received_ms"),
    _text("reason"),
    _blob("payload"),
)

usage_gaps: Final = Table(
    "usage_gaps",
    metadata,
    _host(),
    _whole("epoch", key=True),
    _whole("first_sequence", key=True),
    _whole("last_sequence"),
    _text("signed_host_id", 64),
    _text("reason"),
    _hash("next_previous_hash"),
    _blob("signature"),
    _whole("received_ms"),
)

# One row for each code of a chain, so that a hostile host does not fill the disk with them.
usage_alarms: Final = Table(
    "usage_alarms",
    metadata,
    _host(),
    _whole("epoch", key=True),
    Column("code", Words(32), primary_key=True, nullable=False),
    _whole("count"),
    _whole("sequence"),
    _text("detail"),
    _whole("first_ms"),
    _whole("last_ms"),
)
