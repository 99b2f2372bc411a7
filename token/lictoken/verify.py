# SPDX-License-Identifier: Apache-2.0
"""Reads and verifies licenses: signature and structure.

Whether a license holds *now* is another question, answered by `lictoken.validity`.
"""

from __future__ import annotations

from pathlib import Path

from lictoken.armour import is_armoured
from lictoken.claims import AUDIENCE, License
from lictoken.envelope import open_token
from lictoken.keys import Purpose
from lictoken.limits import TOKEN_MAX_BYTES, read_bounded
from lictoken.payload import license_from_claims
from lictoken.trust import TrustStore

__all__ = ["is_armoured", "read_license_file", "verify_license"]


def read_license_file(path: Path) -> bytes:
    """The bytes of a .lic or .rev file, at most TOKEN_MAX_BYTES. Raises TokenError."""
    return read_bounded(path, TOKEN_MAX_BYTES)


def verify_license(data: bytes, trust: TrustStore, *, audience: str = AUDIENCE) -> License:
    """The license in `data` (armoured or JWS compact), if a trusted issuer signed it.

    Raises TokenError, and nothing else, whatever `data` holds.
    """
    claims, key = open_token(data, trust, Purpose.LICENSE)
    return license_from_claims(claims, audience=audience, issuer=key.issuer, kid=key.kid)
