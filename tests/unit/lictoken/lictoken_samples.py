# SPDX-License-Identifier: Apache-2.0
"""The license that the tests sign, damage and forge."""

from __future__ import annotations

from collections.abc import Callable

from lictoken.claims import Condition, Entitlement, License, LicenseScope, Limit

Forge = Callable[..., bytes]
"""Makes a token with a valid signature over any payload and header (see conftest.py)."""

SAMPLE = License(
    jti="acme-orders-2026",
    issuer="acme",
    subject="Acme Ltd",
    audience="licagent",
    number=7,
    generation=3,
    issued_at_s=1_760_000_000,
    not_before_s=1_760_000_000,
    expires_at_s=1_790_000_000,
    scope=LicenseScope("acme", "orders", ("prod",), ("eu-1", "eu-2")),
    entitlements=(
        Entitlement(
            "orders-db",
            ("connect", "bind"),
            (Limit("egress_bytes", 10**9, "day", "throttle"),),
            (Condition("label:region", ("eu-1",)), Condition("posture:secure_boot", ("true",))),
        ),
        Entitlement("web"),
    ),
    selectors=("systemd:unit:orders.service",),
    hosts=("db-1.example.net",),
    grace_s=3600,
    failure_mode="open",
)
