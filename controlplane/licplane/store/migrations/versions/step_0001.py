# SPDX-License-Identifier: Apache-2.0
"""The first schema."""

from __future__ import annotations

import hashlib
from typing import Final

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision: str | None = None
branch_labels: str | None = None
depends_on: str | None = None

# Sorted by code points, whatever the database's locale is.
_WORDS: Final = sa.Text().with_variant(postgresql.TEXT(collation="C"), "postgresql")
_BUCKETS: Final = 4096
_FIRST_REVISION: Final = {
    "revision": 0,
    "oldest_revision": 0,
    "fleet_revision": 0,
    "audit_sequence": 0,
    "audit_hash": bytes(32),
    "next_number": 1,
}


def upgrade() -> None:
    """Make all tables, the head and the digest of an empty catalog."""
    op.create_table(
        "admins",
        sa.Column("fingerprint", sa.LargeBinary(length=32), nullable=False),
        sa.Column("name", _WORDS, nullable=False),
        sa.Column("role", sa.String(length=16), nullable=False),
        sa.Column("credential", sa.String(length=16), nullable=False),
        sa.Column("created_by", _WORDS, nullable=False),
        sa.Column("created_at_unix_ms", sa.BigInteger(), nullable=False),
        sa.Column("expires_at_unix_ms", sa.BigInteger(), nullable=False),
        sa.Column("revoked_at_unix_ms", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("fingerprint", name="pk_admins"),
    )
    op.create_index("ix_admins_name", "admins", ["name"])
    op.create_table(
        "audit",
        sa.Column("sequence", sa.BigInteger(), nullable=False),
        sa.Column("at_unix_ms", sa.BigInteger(), nullable=False),
        sa.Column("actor", _WORDS, nullable=False),
        sa.Column("role", _WORDS, nullable=False),
        sa.Column("action", _WORDS, nullable=False),
        sa.Column("target", _WORDS, nullable=False),
        sa.Column("reason", _WORDS, nullable=False),
        sa.Column("request_id", _WORDS, nullable=False),
        sa.Column("detail", _WORDS, nullable=False),
        sa.Column("previous_hash", sa.LargeBinary(length=32), nullable=False),
        sa.Column("hash", sa.LargeBinary(length=32), nullable=False),
        sa.PrimaryKeyConstraint("sequence", name="pk_audit"),
    )
    op.create_table(
        "audit_heads",
        sa.Column("sequence", sa.BigInteger(), nullable=False),
        sa.Column("hash", sa.LargeBinary(length=32), nullable=False),
        sa.Column("payload", sa.LargeBinary(), nullable=False),
        sa.Column("kid", sa.String(length=64), nullable=False),
        sa.Column("signature", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("sequence", name="pk_audit_heads"),
    )
    op.create_table(
        "catalog_digest",
        sa.Column("id", sa.BigInteger(), nullable=False),
        sa.Column("hashes", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_catalog_digest"),
    )
    op.create_table(
        "certificates",
        sa.Column("fingerprint", sa.LargeBinary(length=32), nullable=False),
        sa.Column("serial", _WORDS, nullable=False),
        sa.Column("subject", _WORDS, nullable=False),
        sa.Column("key_fingerprint", sa.LargeBinary(length=32), nullable=False),
        sa.Column("not_before_unix_ms", sa.BigInteger(), nullable=False),
        sa.Column("not_after_unix_ms", sa.BigInteger(), nullable=False),
        sa.Column("host_id", _WORDS, nullable=False),
        sa.Column("revoked_at_unix_ms", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("fingerprint", name="pk_certificates"),
        sa.UniqueConstraint("serial", name="uq_certificates_serial"),
    )
    op.create_index("ix_certificates_host_id", "certificates", ["host_id"])
    op.create_index("ix_certificates_not_after_unix_ms", "certificates", ["not_after_unix_ms"])
    op.create_table(
        "changes",
        sa.Column("revision", sa.BigInteger(), nullable=False),
        sa.Column("position", sa.BigInteger(), nullable=False),
        sa.Column("kind", sa.BigInteger(), nullable=False),
        sa.Column("name", _WORDS, nullable=False),
        sa.Column("scope", _WORDS, nullable=False),
        sa.Column("payload", sa.LargeBinary(), nullable=True),
        sa.PrimaryKeyConstraint("revision", "position", name="pk_changes"),
    )
    op.create_index("ix_changes_kind_name", "changes", ["kind", "name"])
    op.create_table(
        "head",
        sa.Column("id", sa.BigInteger(), nullable=False),
        sa.Column("revision", sa.BigInteger(), nullable=False),
        sa.Column("oldest_revision", sa.BigInteger(), nullable=False),
        sa.Column("fleet_revision", sa.BigInteger(), nullable=False),
        sa.Column("audit_sequence", sa.BigInteger(), nullable=False),
        sa.Column("audit_hash", sa.LargeBinary(length=32), nullable=False),
        sa.Column("next_number", sa.BigInteger(), nullable=False),
        sa.Column("seal_payload", sa.LargeBinary(), nullable=True),
        sa.Column("seal_kid", sa.String(length=64), nullable=True),
        sa.Column("seal_signature", sa.LargeBinary(), nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_head"),
    )
    op.create_table(
        "hosts",
        sa.Column("host_id", _WORDS, nullable=False),
        sa.Column("hostname", _WORDS, nullable=False),
        sa.Column("status", sa.BigInteger(), nullable=False),
        sa.Column("labels", _WORDS, nullable=False),
        sa.Column("machine_id", _WORDS, nullable=False),
        sa.Column("key_fingerprint", sa.LargeBinary(length=32), nullable=False),
        sa.Column("assignment_sequence", sa.BigInteger(), nullable=False),
        sa.Column("enrolled_at_unix_ms", sa.BigInteger(), nullable=False),
        sa.Column("join_token", _WORDS, nullable=False),
        sa.Column("agent_version", _WORDS, nullable=False),
        sa.Column("kernel_release", _WORDS, nullable=False),
        sa.Column("fleet_revision", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("host_id", name="pk_hosts"),
        sa.UniqueConstraint("key_fingerprint", name="uq_hosts_key_fingerprint"),
    )
    op.create_index("ix_hosts_fleet_revision", "hosts", ["fleet_revision"])
    op.create_index("ix_hosts_hostname", "hosts", ["hostname"])
    op.create_index("ix_hosts_machine_id", "hosts", ["machine_id"])
    op.create_table(
        "join_tokens",
        sa.Column("token_id", _WORDS, nullable=False),
        sa.Column("secret_hash", sa.LargeBinary(length=32), nullable=False),
        sa.Column("labels", _WORDS, nullable=False),
        sa.Column("uses", sa.BigInteger(), nullable=False),
        sa.Column("uses_max", sa.BigInteger(), nullable=False),
        sa.Column("expires_at_unix_ms", sa.BigInteger(), nullable=False),
        sa.Column("created_by", _WORDS, nullable=False),
        sa.Column("created_at_unix_ms", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("token_id", name="pk_join_tokens"),
    )
    op.create_table(
        "keys",
        sa.Column("key_id", _WORDS, nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("owner", _WORDS, nullable=False),
        sa.Column("document", _WORDS, nullable=False),
        sa.Column("created_at_unix_ms", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("key_id", name="pk_keys"),
    )
    op.create_table(
        "licenses",
        sa.Column("jti", _WORDS, nullable=False),
        sa.Column("number", sa.BigInteger(), nullable=False),
        sa.Column("generation", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("jti", name="pk_licenses"),
        sa.UniqueConstraint("number", name="uq_licenses_number"),
    )
    op.create_table(
        "objects",
        sa.Column("kind", sa.BigInteger(), nullable=False),
        sa.Column("name", _WORDS, nullable=False),
        sa.Column("scope", _WORDS, nullable=False),
        sa.Column("payload", sa.LargeBinary(), nullable=False),
        sa.Column("document", _WORDS, nullable=False),
        sa.Column("etag", sa.String(length=32), nullable=False),
        sa.Column("revision", sa.BigInteger(), nullable=False),
        sa.Column("bucket", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("kind", "name", name="pk_objects"),
    )
    op.create_index("ix_objects_bucket", "objects", ["bucket"])
    op.create_table(
        "requests",
        sa.Column("actor", _WORDS, nullable=False),
        sa.Column("request_id", _WORDS, nullable=False),
        sa.Column("request_digest", sa.LargeBinary(length=32), nullable=False),
        sa.Column("result", sa.LargeBinary(), nullable=False),
        sa.Column("at_unix_ms", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("actor", "request_id", name="pk_requests"),
    )
    op.create_index("ix_requests_at_unix_ms", "requests", ["at_unix_ms"])
    op.create_table(
        "settings",
        sa.Column("name", _WORDS, nullable=False),
        sa.Column("value", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_settings"),
    )
    op.create_table(
        "spent",
        sa.Column("digest", sa.LargeBinary(length=32), nullable=False),
        sa.Column("until_unix_ms", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("digest", name="pk_spent"),
    )
    op.create_index("ix_spent_until_unix_ms", "spent", ["until_unix_ms"])
    op.create_table(
        "host_counters",
        sa.Column("host_id", _WORDS, nullable=False),
        sa.Column("current", sa.LargeBinary(), nullable=False),
        sa.Column("pending", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(
            ["host_id"], ["hosts.host_id"], name="fk_host_counters_host_id", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("host_id", name="pk_host_counters"),
    )
    op.create_table(
        "host_labels",
        sa.Column("host_id", _WORDS, nullable=False),
        sa.Column("name", _WORDS, nullable=False),
        sa.Column("value", _WORDS, nullable=False),
        sa.ForeignKeyConstraint(
            ["host_id"], ["hosts.host_id"], name="fk_host_labels_host_id", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("host_id", "name", name="pk_host_labels"),
    )
    op.create_index("ix_host_labels_name_value", "host_labels", ["name", "value"])
    op.create_table(
        "host_presence",
        sa.Column("host_id", _WORDS, nullable=False),
        sa.Column("last_seen_unix_ms", sa.BigInteger(), nullable=False),
        sa.Column("connected_until_unix_ms", sa.BigInteger(), nullable=False),
        sa.Column("replica", _WORDS, nullable=False),
        sa.Column("acked_revision", sa.BigInteger(), nullable=False),
        sa.Column("last_nack", _WORDS, nullable=False),
        sa.ForeignKeyConstraint(
            ["host_id"], ["hosts.host_id"], name="fk_host_presence_host_id", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("host_id", name="pk_host_presence"),
    )
    op.create_table(
        "host_reports",
        sa.Column("host_id", _WORDS, nullable=False),
        sa.Column("at_unix_ms", sa.BigInteger(), nullable=False),
        sa.Column("report", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(
            ["host_id"], ["hosts.host_id"], name="fk_host_reports_host_id", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("host_id", name="pk_host_reports"),
    )
    op.create_table(
        "license_tokens",
        sa.Column("license", _WORDS, nullable=False),
        sa.Column("position", sa.BigInteger(), nullable=False),
        sa.Column("type", sa.String(length=16), nullable=False),
        sa.Column("document", _WORDS, nullable=False),
        sa.Column("token", _WORDS, nullable=False),
        sa.ForeignKeyConstraint(
            ["license"], ["licenses.jti"], name="fk_license_tokens_license", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("license", "position", "type", name="pk_license_tokens"),
    )
    op.create_table(
        "shadow",
        sa.Column("host_id", _WORDS, nullable=False),
        sa.Column("use_hash", sa.LargeBinary(length=32), nullable=False),
        sa.Column("boot_id", _WORDS, nullable=False),
        sa.Column("resource", _WORDS, nullable=False),
        sa.Column("selector", _WORDS, nullable=False),
        sa.Column("executable", _WORDS, nullable=False),
        sa.Column("user_name", _WORDS, nullable=False),
        sa.Column("count", sa.BigInteger(), nullable=False),
        sa.Column("first_unix_ms", sa.BigInteger(), nullable=False),
        sa.Column("last_unix_ms", sa.BigInteger(), nullable=False),
        sa.Column("reason", _WORDS, nullable=False),
        sa.ForeignKeyConstraint(
            ["host_id"], ["hosts.host_id"], name="fk_shadow_host_id", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("host_id", "use_hash", name="pk_shadow"),
    )

    empty = hashlib.sha256(b"licplane-bucket-v1\0").digest() * _BUCKETS
    head = sa.table("head", *(sa.column(name) for name in ("id", *_FIRST_REVISION)))
    op.execute(head.insert().values(id=1, **_FIRST_REVISION))
    digest = sa.table("catalog_digest", sa.column("id"), sa.column("hashes"))
    op.execute(digest.insert().values(id=1, hashes=empty))


def downgrade() -> None:
    """Remove all of it."""
    op.drop_table("shadow")
    op.drop_table("license_tokens")
    op.drop_table("host_reports")
    op.drop_table("host_presence")
    op.drop_index("ix_host_labels_name_value", table_name="host_labels")
    op.drop_table("host_labels")
    op.drop_table("host_counters")
    op.drop_index("ix_spent_until_unix_ms", table_name="spent")
    op.drop_table("spent")
    op.drop_table("settings")
    op.drop_index("ix_requests_at_unix_ms", table_name="requests")
    op.drop_table("requests")
    op.drop_index("ix_objects_bucket", table_name="objects")
    op.drop_table("objects")
    op.drop_table("licenses")
    op.drop_table("keys")
    op.drop_table("join_tokens")
    op.drop_index("ix_hosts_machine_id", table_name="hosts")
    op.drop_index("ix_hosts_hostname", table_name="hosts")
    op.drop_index("ix_hosts_fleet_revision", table_name="hosts")
    op.drop_table("hosts")
    op.drop_table("head")
    op.drop_index("ix_changes_kind_name", table_name="changes")
    op.drop_table("changes")
    op.drop_index("ix_certificates_not_after_unix_ms", table_name="certificates")
    op.drop_index("ix_certificates_host_id", table_name="certificates")
    op.drop_table("certificates")
    op.drop_table("catalog_digest")
    op.drop_table("audit_heads")
    op.drop_table("audit")
    op.drop_index("ix_admins_name", table_name="admins")
    op.drop_table("admins")
