# SPDX-License-Identifier: Apache-2.0
"""Whether a verified license counts now. Pure: time and memory are passed in."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from enum import StrEnum

from lictoken.claims import License
from lictoken.errors import Refusal, TokenError
from lictoken.revocation import Revocation, RevocationAction


class Standing(StrEnum):
    """What the issuer's statements leave of a license."""

    ACTIVE = "active"
    SUSPENDED = "suspended"
    REVOKED = "revoked"


def rfc3339(time_s: int) -> str:
    """`time_s` (seconds since 1970) as people read it: 2026-01-02T03:04:05Z."""
    return datetime.fromtimestamp(time_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def check_time(license: License, now_s: int) -> None:
    """Raise NOT_YET_VALID or EXPIRED. `now_s` must come from a clock that cannot be turned."""
    if now_s < license.not_before_s:
        raise TokenError(
            Refusal.NOT_YET_VALID, f"{license.jti} starts at {rfc3339(license.not_before_s)}"
        )
    if now_s >= license.expires_at_s:
        raise TokenError(Refusal.EXPIRED, f"{license.jti} ended at {rfc3339(license.expires_at_s)}")


def check_generation(license: License, newest_seen: int) -> None:
    """Raise REPLAYED for a license older than one of the same jti that was accepted before.

    `newest_seen` is the highest generation of an accepted *license*, 0 for none. Statements
    do not count here: after a reinstatement the license that was suspended holds again.
    """
    if license.generation < newest_seen:
        raise TokenError(
            Refusal.REPLAYED,
            f"{license.jti} is of generation {license.generation}, {newest_seen} was seen",
        )


def standing(license: License, statements: Iterable[Revocation]) -> Standing:
    """What `statements` leave of `license`. The order they arrive in does not matter.

    Only statements of the license's issuer about its jti, of its generation or a later one,
    count. A revocation is final; otherwise the statement of the highest generation decides,
    and of two with the same the stricter one. A license issued again has a higher generation
    and is untouched by what was said before.
    """
    newest = 0
    result = Standing.ACTIVE
    for statement in statements:
        if (
            statement.license != license.jti
            or statement.issuer != license.issuer
            or statement.generation < license.generation
        ):
            continue
        if statement.action is RevocationAction.REVOKE:
            return Standing.REVOKED
        suspends = statement.action is RevocationAction.SUSPEND
        if statement.generation > newest:
            newest = statement.generation
            result = Standing.SUSPENDED if suspends else Standing.ACTIVE
        elif statement.generation == newest and suspends:
            result = Standing.SUSPENDED
    return result


def check_standing(license: License, statements: Iterable[Revocation]) -> None:
    """Raise REVOKED or SUSPENDED, as `standing` finds."""
    found = standing(license, statements)
    if found is Standing.REVOKED:
        raise TokenError(Refusal.REVOKED, f"{license.jti} is revoked")
    if found is Standing.SUSPENDED:
        raise TokenError(Refusal.SUSPENDED, f"{license.jti} is suspended")
