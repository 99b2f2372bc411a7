# SPDX-License-Identifier: Apache-2.0
"""How the schema came to be, step by step, for Alembic.

A new step is a module of versions/ in the form of the others; its id goes into
licplane.store.upgrading.NEWEST. The tests compare what all steps make with licplane.store.schema,
and take each step up and down.
"""
