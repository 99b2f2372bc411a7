# SPDX-License-Identifier: Apache-2.0
"""Keys and the licenses they sign."""
