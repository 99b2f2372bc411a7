# SPDX-License-Identifier: Apache-2.0
"""Numbering and licenses for the tests of the domain."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from lictoken.claims import Entitlement, License, LicenseScope


class Counting:
    """Numbers from 1 up, one sequence a space."""

    def __init__(self) -> None:
        self.spaces: dict[str, dict[str, int]] = {}

    def number(self, space: str, name: str) -> int:
        names = self.spaces.setdefault(space, {})
        return names.setdefault(name, len(names) + 1)


@pytest.fixture(scope="session")
def counting() -> type[Counting]:
    return Counting


@pytest.fixture(scope="session")
def make_license() -> Callable[..., License]:
    def make(jti: str = "acme", number: int = 1, *resources: str, **changes: Any) -> License:
        entitlements = tuple(Entitlement(name, ("connect", "bind", "use")) for name in resources)
        fields: dict[str, Any] = {
            "jti": jti,
            "issuer": "https://issuer.example",
            "subject": "acme",
            "audience": "licagent",
            "number": number,
            "generation": 1,
            "issued_at_s": 1_000,
            "not_before_s": 1_000,
            "expires_at_s": 2_000,
            "scope": LicenseScope("acme"),
            "entitlements": entitlements,
        }
        return License(**(fields | changes))

    return make
