# SPDX-License-Identifier: Apache-2.0
"""The tables. migrations/ makes them; a test holds the two together.

Keys that peers choose are bounded or hashed: an index entry of PostgreSQL holds 2,704 bytes at
most, and a longer one would fail in the middle of a transaction.
"""

from __future__ import annotations

from typing import Final

from sqlalchemy import (
    Column,
    ForeignKey,
    Index,
    LargeBinary,
    MetaData,
    String,
    Table,
    UniqueConstraint,
)

from licplane.store.columns import NAME_MAX_BYTES, Whole, Words


def _name(name: str, *, key: bool = False) -> Column[str]:
    return Column(name, Words(NAME_MAX_BYTES), primary_key=key, nullable=False)


def _text(name: str) -> Column[str]:
    return Column(name, Words(), nullable=False)


def _whole(name: str, *, key: bool = False, null: bool = False) -> Column[int]:
    return Column(name, Whole(), primary_key=key, nullable=null, autoincrement=False)


def _blob(name: str, *, null: bool = False) -> Column[bytes]:
    return Column(name, LargeBinary(), nullable=null)


def _hash(name: str, *, key: bool = False) -> Column[bytes]:
    return Column(name, LargeBinary(32), primary_key=key, nullable=False)


metadata: Final = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

# One row, locked by each transaction for changes.
head: Final = Table(
    "head",
    metadata,
    _whole("id", key=True),
    _whole("revision"),
    _whole("oldest_revision"),
    _whole("fleet_revision"),
    _whole("audit_sequence"),
    _hash("audit_hash"),
    _whole("next_number"),
    _blob("seal_payload", null=True),
    Column("seal_kid", String(64)),
    _blob("seal_signature", null=True),
)

# One row: the hashes of all buckets of the catalog's digest (128 KiB). Not in `head`, because
# SQLite writes a changed row whole.
catalog_digest: Final = Table("catalog_digest", metadata, _whole("id", key=True), _blob("hashes"))

objects: Final = Table(
    "objects",
    metadata,
    _whole("kind", key=True),
    _name("name", key=True),
    _text("scope"),  # JSON: [org, project, [environments], [regions]]
    _blob("payload"),
    _text("document"),
    Column("etag", String(32), nullable=False),
    _whole("revision"),
    _whole("bucket"),
    Index(None, "bucket"),
)

changes: Final = Table(
    "changes",
    metadata,
    _whole("revision", key=True),
    _whole("position", key=True),
    _whole("kind"),
    _name("name"),
    _text("scope"),
    _blob("payload", null=True),  # NULL: removed
    Index(None, "kind", "name"),
)

hosts: Final = Table(
    "hosts",
    metadata,
    Column("host_id", Words(64), primary_key=True, nullable=False),
    _name("hostname"),
    _whole("status"),
    _text("labels"),  # JSON object
    _name("machine_id"),
    _hash("key_fingerprint"),
    _whole("assignment_sequence"),
    _whole("enrolled_at_unix_ms"),
    _name("join_token"),
    _text("agent_version"),
    _text("kernel_release"),
    _whole("fleet_revision"),
    UniqueConstraint("key_fingerprint"),
    Index(None, "hostname"),
    Index(None, "machine_id"),
    Index(None, "fleet_revision"),
)


def _host_id(*, key: bool = False) -> Column[str]:
    return Column(
        "host_id",
        Words(64),
        ForeignKey("hosts.host_id", ondelete="CASCADE"),
        primary_key=key,
        nullable=False,
    )


# The labels again, to search by.
host_labels: Final = Table(
    "host_labels",
    metadata,
    _host_id(key=True),
    _name("name", key=True),
    _name("value"),
    Index(None, "name", "value"),
)

host_counters: Final = Table(
    "host_counters", metadata, _host_id(key=True), _blob("current"), _blob("pending")
)

host_presence: Final = Table(
    "host_presence",
    metadata,
    _host_id(key=True),
    _whole("last_seen_unix_ms"),
    _whole("connected_until_unix_ms"),
    _text("replica"),
    _whole("acked_revision"),
    _text("last_nack"),
)

host_reports: Final = Table(
    "host_reports", metadata, _host_id(key=True), _whole("at_unix_ms"), _blob("report")
)

shadow: Final = Table(
    "shadow",
    metadata,
    _host_id(key=True),
    _hash("use_hash", key=True),  # of boot_id, resource, selector, executable and user
    _text("boot_id"),
    _text("resource"),
    _text("selector"),
    _text("executable"),
    Column("user_name", Words(), nullable=False),
    _whole("count"),
    _whole("first_unix_ms"),
    _whole("last_unix_ms"),
    _text("reason"),
)

certificates: Final = Table(
    "certificates",
    metadata,
    _hash("fingerprint", key=True),
    _name("serial"),
    _text("subject"),
    _hash("key_fingerprint"),
    _whole("not_before_unix_ms"),
    _whole("not_after_unix_ms"),
    Column("host_id", Words(64), nullable=False),  # of hosts that are gone too
    _whole("revoked_at_unix_ms", null=True),
    UniqueConstraint("serial"),
    Index(None, "host_id"),
    Index(None, "not_after_unix_ms"),
)

join_tokens: Final = Table(
    "join_tokens",
    metadata,
    _name("token_id", key=True),
    _hash("secret_hash"),
    _text("labels"),
    _whole("uses"),
    _whole("uses_max"),
    _whole("expires_at_unix_ms"),
    _text("created_by"),
    _whole("created_at_unix_ms"),
)

admins: Final = Table(
    "admins",
    metadata,
    _hash("fingerprint", key=True),
    _name("name"),
    Column("role", String(16), nullable=False),
    Column("credential", String(16), nullable=False),
    _text("created_by"),
    _whole("created_at_unix_ms"),
    _whole("expires_at_unix_ms"),
    _whole("revoked_at_unix_ms", null=True),
    Index(None, "name"),
)

keys: Final = Table(
    "keys",
    metadata,
    _name("key_id", key=True),
    Column("kind", String(16), nullable=False),
    _text("owner"),
    _text("document"),
    _whole("created_at_unix_ms"),
)

licenses: Final = Table(
    "licenses",
    metadata,
    _name("jti", key=True),
    _whole("number"),
    _whole("generation"),
    UniqueConstraint("number"),
)

license_tokens: Final = Table(
    "license_tokens",
    metadata,
    Column(
        "license",
        Words(NAME_MAX_BYTES),
        ForeignKey("licenses.jti", ondelete="CASCADE"),
        primary_key=True,
        nullable=False,
    ),
    _whole("position", key=True),  # in the order of signing; issues and statements apart
    Column("type", String(16), primary_key=True, nullable=False),  # issue or statement
    _text("document"),  # JSON object: all but the token
    _text("token"),
)

audit: Final = Table(
    "audit",
    metadata,
    _whole("sequence", key=True),
    _whole("at_unix_ms"),
    _text("actor"),
    _text("role"),
    _text("action"),
    _text("target"),
    _text("reason"),
    _text("request_id"),
    _text("detail"),
    _hash("previous_hash"),
    _hash("hash"),
)

audit_heads: Final = Table(
    "audit_heads",
    metadata,
    _whole("sequence", key=True),
    _hash("hash"),
    _blob("payload"),
    Column("kid", String(64), nullable=False),
    _blob("signature"),
)

requests: Final = Table(
    "requests",
    metadata,
    _name("actor", key=True),
    _name("request_id", key=True),
    _hash("request_digest"),
    _blob("result"),
    _whole("at_unix_ms"),
    Index(None, "at_unix_ms"),
)

spent: Final = Table(
    "spent",
    metadata,
    _hash("digest", key=True),
    _whole("until_unix_ms"),
    Index(None, "until_unix_ms"),
)

settings: Final = Table("settings", metadata, _name("name", key=True), _blob("value"))
