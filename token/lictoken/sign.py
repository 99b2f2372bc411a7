# SPDX-License-Identifier: Apache-2.0
"""Signs licenses."""

from __future__ import annotations

from dataclasses import replace

from lictoken.claims import License
from lictoken.envelope import sign
from lictoken.keys import Purpose, SigningKey
from lictoken.payload import check_conditions, license_from_claims, license_to_claims


def sign_license(license: License, key: SigningKey, *, foreign_conditions: bool = False) -> str:
    """The armoured text of `license`, issued in the name of the key's issuer.

    `license.issuer` and `.kid` are taken from the key. Raises TokenError, with the reason a
    verifier would have, for a license that no verifier would accept; and for one with a
    condition that this version does not know, unless `foreign_conditions` says that agents of
    another version will judge it.
    """
    if not foreign_conditions:
        check_conditions(license)
    issued = replace(license, issuer=key.issuer, kid=key.kid)
    claims = license_to_claims(issued)
    license_from_claims(claims, audience=license.audience, issuer=key.issuer, kid=key.kid)
    return sign(claims, Purpose.LICENSE, key)
