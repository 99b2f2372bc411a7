# SPDX-License-Identifier: Apache-2.0
"""Makes reference pages from the code; run docs/build_reference.py."""
