# SPDX-License-Identifier: Apache-2.0
"""How the schema came to be, step by step, for Alembic."""
