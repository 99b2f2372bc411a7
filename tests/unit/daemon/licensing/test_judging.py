# SPDX-License-Identifier: Apache-2.0
"""Which licenses there are: of files and of a control plane, whatever keys come and go."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from licagent.daemon.licensing.judging import Licensing
from licagent.domain.clock import Reading, TrustedClock
from licagent.domain.license import HostFacts, LicenseState
from licagent.domain.reason import Reason
from licagent.domain.slot import ATTESTED_NS, OTHERS_SLACK_NS
from licagent.host.posture import boottime_ns
from licagent.store.licenses import LicenseRecords
from licagent.store.statedir import StateDir
from lictoken.claims import Condition, Entitlement, License, LicenseScope
from lictoken.keys import SigningKey
from lictoken.sign import sign_license
from lictoken.trust import TrustedKey, TrustStore

KEY = SigningKey("acme", bytes(range(32)))
OTHER = SigningKey("acme", bytes(range(1, 33)))
NOW_S = 1_770_000_000 // 86_400 * 86_400 + 6 * 3600 - 20  # 05:59:40 UTC


def trust(*keys: TrustedKey) -> TrustStore:
    return TrustStore(keys)


def trusted(key: SigningKey) -> TrustedKey:
    return TrustedKey.of(key.public_key, "acme")


def token(generation: int = 1, key: SigningKey = KEY, **changes: object) -> bytes:
    fields: dict[str, object] = {
        "jti": "one",
        "issuer": "acme",
        "subject": "tests",
        "audience": "licagent",
        "number": 7,
        "generation": generation,
        "issued_at_s": NOW_S - 10,
        "not_before_s": NOW_S - 10,
        "expires_at_s": NOW_S + 100_000,
        "scope": LicenseScope("acme"),
        "entitlements": (Entitlement("db"),),
    }
    return sign_license(License(**(fields | changes)), key).encode()  # type: ignore[arg-type]


@pytest.fixture
def reading() -> Reading:
    """Of the clock, when it was NOW_S."""
    return Reading(NOW_S * 10**9, boottime_ns(), "this-boot", synchronized=True)


@pytest.fixture
def licensing(tmp_path: Path, reading: Reading) -> Iterator[Licensing]:
    (tmp_path / "licenses").mkdir()
    (tmp_path / "trust.jwks").write_bytes(trust(trusted(KEY)).to_bytes())
    with StateDir(tmp_path / "state") as state:
        found = Licensing(
            tmp_path / "licenses",
            tmp_path / "trust.jwks",
            LicenseRecords(state),
            TrustedClock(reading),
            HostFacts(),
        )
        found.load()
        yield found


def held(licensing: Licensing) -> tuple[int, bool]:
    """Generation of the license that counts, and whether it is the control plane's."""
    one = licensing.held["one"]
    return one.license.generation, one.managed


def test_the_higher_generation_counts_and_the_managed_one_of_equals(licensing: Licensing) -> None:
    licensing.store(token(1))
    assert held(licensing) == (1, False)
    for generation, of_control_plane in ((1, True), (2, True)):
        assert licensing.set_managed({"one": token(generation)}) == ()
        assert held(licensing) == (generation, of_control_plane)
    licensing.store(token(3))
    assert held(licensing) == (3, False)
    licensing.load()
    assert held(licensing) == (3, False)
    assert licensing.forget("one")
    assert held(licensing) == (2, True)
    assert not licensing.forget("one"), "that has no file"
    licensing.set_managed({})
    assert licensing.held == {}


def test_what_was_put_back_survives_a_reload(licensing: Licensing) -> None:
    licensing.set_managed({"one": token(1)})
    before = licensing.managed()
    licensing.set_managed({"one": token(2)})
    licensing.put_back(before)
    assert held(licensing) == (1, True)
    licensing.load()
    assert held(licensing) == (1, True)
    assert licensing.refused == ()
    # But nobody else may deliver an old one.
    licensing.set_managed({})
    (refused,) = licensing.set_managed({"one": token(1)})
    assert "generation" in refused.detail


def test_keys_that_come_and_go_decide_of_what_was_verified_before(licensing: Licensing) -> None:
    tokens = {"one": token(1, OTHER)}
    (refused,) = licensing.set_managed(tokens)
    assert refused.reason == "unknown-key"
    licensing.set_managed_trust(trust(trusted(OTHER)))
    assert licensing.set_managed(tokens) == ()
    assert held(licensing) == (1, True)
    licensing.set_managed_trust(trust())
    (refused,) = licensing.set_managed(tokens)
    assert refused.reason == "unknown-key"
    assert licensing.held == {}


def test_a_bad_file_and_a_bad_delivery_are_both_named(licensing: Licensing, tmp_path: Path) -> None:
    (tmp_path / "licenses/bad.lic").write_text("nothing")
    licensing.load()
    licensing.set_managed({"two": token()})
    assert [each.file for each in licensing.refused] == ["bad.lic", "two (control plane)"]


def slot_s(licensing: Licensing) -> tuple[Reason, float, Reason]:
    """State, seconds from now until the end, reason of the end."""
    values = licensing.slot_of(licensing.held["one"].license)
    return values.state, (values.not_after_ns - boottime_ns()) / 1e9, values.end_reason


HOURS = (Condition("hours", ("Mon-Sun 00:00-06:00 UTC",)),)


def test_the_kernels_end_of_conditions(licensing: Licensing) -> None:
    licensing.store(token(entitlements=(Entitlement("db", conditions=HOURS),)))
    _, left_s, reason = slot_s(licensing)
    assert (left_s < 0, reason) == (True, Reason.CONDITION), "nobody has looked at the host yet"
    licensing.set_facts({})
    state, left_s, reason = slot_s(licensing)
    assert state is Reason.LICENSED
    assert reason is Reason.CONDITION
    assert 0 < left_s <= 20, "the hours end before the minute does"


def test_the_hours_of_one_entitlement_leave_the_others_a_moment(
    licensing: Licensing, reading: Reading
) -> None:
    licensing.set_facts({})
    licensing.store(token(entitlements=(Entitlement("db", conditions=HOURS), Entitlement("web"))))
    _, left_s, _ = slot_s(licensing)
    passed_s = (boottime_ns() - reading.boottime_ns) / 1e9
    slack_s = OTHERS_SLACK_NS / 1e9
    assert 20 - passed_s < left_s <= 20 + slack_s
    everything = (Condition("hours", ("Mon-Sun 00:00-24:00 UTC",)),)
    licensing.store(token(2, entitlements=(Entitlement("db", conditions=everything),)))
    _, left_s, _ = slot_s(licensing)
    assert 20 + slack_s < left_s <= ATTESTED_NS / 1e9


def test_where_no_policy_can_leave_it_out_all_of_a_license_goes(licensing: Licensing) -> None:
    lost = (Condition("label:region", ("eu",)),)
    licensing.store(token(entitlements=(Entitlement("db", conditions=lost), Entitlement("web"))))
    licensing.set_facts({})
    assert licensing.withheld() == {("one", "db")}
    assert slot_s(licensing)[0] is Reason.LICENSED
    licensing.all_or_nothing = True
    assert slot_s(licensing)[0] is Reason.CONDITION
    licensing.set_labels({"region": "eu"})
    assert licensing.withheld() == frozenset()
    assert slot_s(licensing)[0] is Reason.LICENSED


def test_a_license_of_which_nothing_is_left_is_withheld_by_its_slot(licensing: Licensing) -> None:
    lost = (Condition("label:region", ("eu",)),)
    licensing.store(token(entitlements=(Entitlement("db", conditions=lost),)))
    assert licensing.withheld() == frozenset()
    assert licensing.judge(licensing.held["one"].license).state is LicenseState.CONDITION
