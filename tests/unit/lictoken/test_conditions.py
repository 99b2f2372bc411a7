# SPDX-License-Identifier: Apache-2.0
"""What an issuer may write into a condition."""

from __future__ import annotations

from dataclasses import replace

import pytest
from lictoken_samples import SAMPLE

from lictoken.claims import Condition, Entitlement
from lictoken.conditions import (
    KINDS,
    UnknownZone,
    kernel_satisfies,
    parse_hours,
    problem_of,
    split_values,
)
from lictoken.errors import Refusal, TokenError
from lictoken.keys import SigningKey
from lictoken.sign import sign_license
from lictoken.trust import TrustedKey, TrustStore
from lictoken.verify import verify_license

KEY = SigningKey("acme", bytes(range(32)))


@pytest.mark.parametrize(
    ("text", "days", "begin", "end"),
    [
        ("Mon-Fri 08:00-18:00 Europe/Berlin", {0, 1, 2, 3, 4}, 480, 1080),
        ("Sat,Sun 00:00-24:00 UTC", {5, 6}, 0, 1440),
        ("Mon-Sun 22:00-06:30 UTC", set(range(7)), 1320, 390),
        ("Fri-Mon 01:00-02:00 Asia/Kolkata", {4, 5, 6, 0}, 60, 120),
        ("Mon,Wed-Thu 01:00-02:00 UTC", {0, 2, 3}, 60, 120),
    ],
)
def test_hours(text: str, days: set[int], begin: int, end: int) -> None:
    found = parse_hours(text)
    assert (found.days, found.from_minute, found.to_minute) == (days, begin, end)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("9-17", "write it as"),
        ("Mon-Fri 8:00-18:00 UTC", "write it as"),
        ("Mon-Fri 08:00-18:00", "write it as"),
        ("mon 08:00-18:00 UTC", "did you mean Mon"),
        ("Mon- 08:00-18:00 UTC Ü", "write it as"),
        ("Mon,,Tue 08:00-18:00 UTC", "no day"),
        ("Mon 08:60-18:00 UTC", "no time of the day"),
        ("Mon 08:00-24:01 UTC", "no time of the day"),
        ("Mon 24:00-24:00 UTC", "begins at 24:00"),
        ("Mon 08:00-08:00 UTC", "whole day is 00:00-24:00"),
        ("Mon 08:00-00:00 UTC", "whole day is 00:00-24:00"),
    ],
)
def test_no_hours(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        parse_hours(text)


@pytest.mark.parametrize(
    "zone", ["Europe/Berlim", "Europe", "/etc/localtime", "UTC/", "a" * 64, "-"]
)
def test_zones_that_are_none(zone: str) -> None:
    with pytest.raises(UnknownZone):
        parse_hours(f"Mon 08:00-18:00 {zone}")


def test_a_zone_like_the_one_written_is_named() -> None:
    assert "did you mean Europe/Berlin?" in problem_of("hours", ["Mon 08:00-18:00 Europe/Berlim"])


@pytest.mark.parametrize(
    ("text", "release", "holds"),
    [
        (">=6.1", "6.1.0-18-amd64", True),
        (">=6.1", "6.1", True),
        (">=6.1", "6.0.19", False),
        (">=6.1.55", "6.1.54-generic", False),
        (">=6.1.55", "6.1.55", True),
        (">=5.10", "6.1", True),
        (">=6.9", "6.10.1", True),
        (">6.1", "6.1.55", False),
        (">6.1", "6.2", True),
        ("<=6.1", "6.1.55", True),
        ("<6.1", "6.1.0", False),
        ("<6.1", "5.15.200", True),
        ("==6.1", "6.1.77", True),
        ("==6.1.0", "6.1", True),
        (">=6.1,<7", "6.12.1", True),
        (">=6.1, <7", "7.0-rc1", False),
        (">=6.1", "custom", None),
        (">=6.1", "", None),
    ],
)
def test_kernels(text: str, release: str, holds: bool | None) -> None:
    assert kernel_satisfies(text, release) is holds


@pytest.mark.parametrize(
    ("kind", "values", "words"),
    [
        ("region", ["eu"], "did you mean label:region"),
        ("secure_boot", ["true"], "did you mean posture:secure_boot"),
        ("posture:secureboot", ["true"], "did you mean posture:secure_boot"),
        ("hour", ["x"], "did you mean hours"),
        ("moon", ["full"], "unknown"),
        ("label:", ["eu"], "names no label"),
        ("label:Region", ["eu"], "names no label"),
        ("posture:secure_boot", ["yes"], "true or false"),
        ("posture:kernel", ["6.1"], "write '>=6.1'"),
        ("posture:kernel", [">=6.1", "new"], "write '>=6.1'"),
        ("hours", ["Mon 08:00-18:00 UTC", "always"], "write it as"),
    ],
)
def test_what_is_wrong_is_said_with_what_was_meant(
    kind: str, values: list[str], words: str
) -> None:
    assert words in problem_of(kind, values)


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        ("label:region", ["eu-1", "eu-2"]),
        ("label:team.data/etl", ["x"]),
        ("hours", ["Mon-Fri 08:00-18:00 Europe/Berlin", "Sat 00:00-24:00 UTC"]),
        ("posture:kernel", [">=6.1,<7"]),
        *((kind, ["true", "false"]) for kind in KINDS[2:]),
    ],
)
def test_what_can_be_judged(kind: str, values: list[str]) -> None:
    assert problem_of(kind, values) == ""


def test_an_issuer_is_refused_what_no_agent_can_judge() -> None:
    bad = replace(
        SAMPLE, entitlements=(Entitlement("db", conditions=(Condition("region", ("eu",)),)),)
    )
    with pytest.raises(TokenError, match=r"entitlements\[0\].*did you mean label:region") as caught:
        sign_license(bad, KEY)
    assert caught.value.refusal is Refusal.BAD_VALUE
    # A later issuer may know more: the agent keeps it, and refuses the entitlement alone.
    text = sign_license(bad, KEY, foreign_conditions=True)
    trust = TrustStore([TrustedKey.of(KEY.public_key, "acme")])
    assert verify_license(text.encode(), trust).entitlements == bad.entitlements


def test_values_on_a_command_line() -> None:
    assert split_values("label:region", "eu-1,eu-2") == ("eu-1", "eu-2")
    assert split_values("hours", "Sat,Sun 00:00-24:00 UTC; Mon 01:00-02:00 UTC") == (
        "Sat,Sun 00:00-24:00 UTC",
        "Mon 01:00-02:00 UTC",
    )
