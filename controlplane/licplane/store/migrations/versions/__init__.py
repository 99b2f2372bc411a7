# SPDX-License-Identifier: Apache-2.0
"""One module a step; each names the one before it."""
