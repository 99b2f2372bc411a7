# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from licagent.domain.license import HostFacts, LicenseState, judge, refusals
from licagent.domain.reason import Reason
from lictoken.claims import Condition, Entitlement, License, LicenseScope, Limit

Make = Callable[..., License]
HOST = HostFacts(
    "db1.example", "0123abcd", {"org": "acme", "environment": "production", "region": "eu"}
)


@pytest.mark.parametrize(
    ("now_s", "state"),
    [
        (999, LicenseState.NOT_YET_VALID),
        (1_000, LicenseState.VALID),
        (1_999.9, LicenseState.VALID),
        (2_000, LicenseState.EXPIRED),
    ],
)
def test_time(make_license: Make, now_s: float, state: LicenseState) -> None:
    judgement = judge(make_license(), now_s, HOST)
    assert judgement.state is state
    assert judgement.valid == (state is LicenseState.VALID)
    assert bool(judgement.hint) != judgement.valid


def test_begins_only_when_the_time_is_certain(make_license: Make) -> None:
    assert judge(make_license(), 1_500, HOST, earliest_s=999).state is LicenseState.NOT_YET_VALID
    assert judge(make_license(), 1_500, HOST, earliest_s=1_000).valid


def test_revocation_is_named_first(make_license: Make) -> None:
    judgement = judge(make_license(hosts=("other",)), 5_000, HOST, revoked=True)
    assert judgement.state.reason is Reason.REVOKED


@pytest.mark.parametrize(
    ("changes", "applies"),
    [
        ({"hosts": ("db1.example",)}, True),
        ({"hosts": ("web", "DB1.Example.")}, True),
        ({"hosts": ("*.example",)}, True),
        ({"hosts": ("db2.example",)}, False),
        ({"hosts": ("machine-id:0123abcd",)}, True),
        ({"hosts": ("machine-id:ffff",)}, False),
        ({"scope": LicenseScope("other")}, False),
        ({"scope": LicenseScope("acme", "orders")}, True),
        ({"scope": LicenseScope("acme", None, ("production", "staging"))}, True),
        ({"scope": LicenseScope("acme", None, ("staging",))}, False),
        ({"scope": LicenseScope("acme", None, (), ("eu",))}, True),
        ({"scope": LicenseScope("acme", None, (), ("us",))}, False),
    ],
)
def test_place(make_license: Make, changes: dict[str, Any], applies: bool) -> None:
    judgement = judge(make_license(**changes), 1_500, HOST)
    assert judgement.state is (LicenseState.VALID if applies else LicenseState.CONDITION)


def test_silence_about_the_place_gains_nothing(make_license: Make) -> None:
    silent = HostFacts()
    assert judge(make_license(), 1_500, silent).valid
    for scope in (
        LicenseScope("acme", None, ("staging",)),
        LicenseScope("acme", None, (), ("eu",)),
    ):
        judgement = judge(make_license(scope=scope), 1_500, silent)
        assert judgement.state is LicenseState.CONDITION
        assert "agent.toml" in judgement.hint
    assert not judge(make_license(hosts=("*",)), 1_500, silent).valid


def test_what_cannot_be_held_is_refused() -> None:
    assert refusals(Entitlement("db")) == ()
    (limit,) = refusals(Entitlement("db", limits=(Limit("egress_bytes", 5),)))
    (condition,) = refusals(Entitlement("db", conditions=(Condition("moon", ("full",)),)))
    assert "egress_bytes" in limit
    assert "moon" in condition


def test_every_state_has_its_reason() -> None:
    assert {state.reason for state in LicenseState} == {
        Reason.LICENSED,
        Reason.NOT_YET_VALID,
        Reason.EXPIRED,
        Reason.REVOKED,
        Reason.CONDITION,
        Reason.LEASE_LOST,
    }


def test_ends_and_beginnings_are_told_as_dates(make_license: Make) -> None:
    license_ = make_license(not_before_s=1_000_000_000, expires_at_s=2_000_000_000)
    host = HostFacts()
    assert "ended at 2033-05-18T03:33:20Z" in judge(license_, 2_000_000_000, host).detail
    assert "before 2001-09-09T01:46:40Z" in judge(license_, 0, host).detail
    assert "s after 1970" in judge(make_license(expires_at_s=2**62), 2**62, host).detail
