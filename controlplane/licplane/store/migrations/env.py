# SPDX-License-Identifier: Apache-2.0
"""Runs Alembic's steps on the connection of licplane.store.upgrading, in its transaction."""

from __future__ import annotations

from alembic import context

from licplane.store.schema import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    transactional_ddl=True,  # SQLite's too: BEGIN is ours, and it takes DDL back with the rest
)
context.run_migrations()
