# SPDX-License-Identifier: Apache-2.0
"""Use without a binding: noted as it happens, and judged again by the rules of now."""
