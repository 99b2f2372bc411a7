# SPDX-License-Identifier: Apache-2.0
"""Counting what is used, the ledger of it, and its way to the control plane."""
