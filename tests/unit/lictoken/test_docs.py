# SPDX-License-Identifier: Apache-2.0
"""docs/reference/license-token.md says what the code does."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from lictoken_samples import Forge

from lictoken import base64url
from lictoken.armour import Label, unarmour
from lictoken.errors import NEXT_STEPS, Refusal
from lictoken.keys import Purpose, SigningKey
from lictoken.payload import license_to_claims
from lictoken.revocation import verify_revocation
from lictoken.sign import sign_license
from lictoken.trust import TrustStore
from lictoken.verify import verify_license

PAGE = (Path(__file__).parents[3] / "docs/reference/license-token.md").read_text()
BLOCKS = re.findall(r"```(?:text|json)\n(.*?)```", PAGE, re.DOTALL)


def block(first: str) -> str:
    return next(text for text in BLOCKS if first in text)


def objects(first: str) -> Any:
    return json.loads(block(first))


def test_the_worked_example_is_what_the_code_makes() -> None:
    trust = TrustStore.from_bytes(block('"keys"').encode())
    text = block("BEGIN LICAGENT LICENSE")
    license = verify_license(text.encode(), trust)
    assert sign_license(license, SigningKey("acme", bytes(range(32)))) == text
    assert license_to_claims(license) == objects('"entitlements"')
    header = unarmour(text.encode(), Label.LICENSE).partition(".")[0]
    assert json.loads(base64url.decode(header, "header")) == objects('"kid":')


def test_the_example_statement_is_accepted(forge: Forge) -> None:
    trust = TrustStore.from_bytes(block('"keys"').encode())
    found = verify_revocation(forge(objects('"rev"'), typ=Purpose.REVOCATION.typ), trust)
    assert found.license == "acme-orders-2026"


def test_every_refusal_is_in_the_table_with_its_next_step() -> None:
    rows = dict(re.findall(r"^\| `([a-z0-9-]+)` \| .+ \| (.+)\. \|$", PAGE, re.MULTILINE))
    assert rows == {refusal.value: NEXT_STEPS[refusal] for refusal in Refusal}
