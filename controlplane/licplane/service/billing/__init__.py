# SPDX-License-Identifier: Apache-2.0
"""What usage comes to: price plans, periods, bills, budgets and their forecast."""
