# SPDX-License-Identifier: Apache-2.0
"""The license format: claims, signatures, trust, armour, revocation statements.

`lictoken.claims` alone is pure standard library; the rest needs joserfc and cryptography.
"""
