# SPDX-License-Identifier: Apache-2.0
"""The policy: read, compiled, put in force, kept for the next start, and reported."""
