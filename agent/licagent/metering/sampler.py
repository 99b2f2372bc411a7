# SPDX-License-Identifier: Apache-2.0
"""From sheets to the ledger: each sheet is committed once, whatever ends the daemon in between."""

from __future__ import annotations
