# SPDX-License-Identifier: Apache-2.0
"""`licagent shadow`: recorded uses decided again, and for how long resources were watched."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
from tests.system.harness.scene import HOLDER, STRANGER, Scene, eventually

from lictoken.claims import Condition, Entitlement, Limit


@pytest.fixture
def observing(make_scene: Callable[..., Scene]) -> Scene:
    """An agent that observes, and has seen one use by a stranger."""
    scene = make_scene(mode="observe")
    scene.agent.start()
    scene.ready()
    assert scene.connect(STRANGER) == "ok"
    eventually(lambda: scene.ask("shadow")["rows"], "shadow usage")
    return scene


def bind(scene: Scene, *bindings: str) -> None:
    """The policy, with more bindings; each is license and selectors."""
    text = scene.policy_text("acme")
    for each in bindings:
        license_, selectors = each.split(" ", 1)
        text += f'[[binding]]\nlicense = "{license_}"\nselectors = [{selectors}]\n'
    scene.agent.policy(text)


def now(scene: Scene) -> dict[str, Any]:
    """What would become of the one use that was seen."""
    (row,) = scene.ask("shadow")["rows"]
    assert row["uid"] == STRANGER
    return {**row["now"]}


def test_a_use_is_decided_again_by_the_rules_of_now(observing: Scene) -> None:
    scene = observing
    (row,) = scene.ask("shadow")["rows"]
    assert (row["resource"], row["count"], row["refused"]) == ("db", 1, 0)
    assert (row["now"]["verdict"], row["now"]["reason"]) == ("deny", "no_binding")
    assert f"binding acme/1 asks for unix:uid:{HOLDER}" in row["now"]["why"]

    bind(scene, f'acme "unix:uid:{STRANGER}"')
    allowed = {"verdict": "allow", "reason": "licensed", "license": "acme", "binding": "acme/2"}
    assert now(scene) == {**allowed, "why": None}
    text = scene.cli("shadow").out
    assert "0 deny, 0 unknown, 1 allow" in text
    assert "nothing: license acme" in text

    # Only the most specific binding counts, and its license has ended.
    scene.agent.issue("ends", ["db"])
    bind(scene, f'acme "unix:uid:{STRANGER}"', f'ends "unix:uid:{STRANGER}", "unix:gid:{STRANGER}"')
    assert now(scene)["license"] == "ends"
    scene.agent.revoke("ends")
    assert (now(scene)["verdict"], now(scene)["reason"]) == ("deny", "revoked")

    # Of what a program contains no record tells.
    bind(scene, f'acme "unix:uid:{STRANGER}", "unix:sha256:{"a" * 64}"')
    assert now(scene)["verdict"] == "unknown"
    assert "unix:sha256" in now(scene)["why"]

    rows = scene.ask("shadow", "--since", "2099-01-01T00:00:00Z")["rows"]
    assert rows == []


NEVER = (Condition("hours", ("Mon-Mon 00:00-00:01 UTC", "Tue-Tue 00:00-00:01 UTC")),)
"""Hours that are over in a minute; a test that runs in it would find the same."""
ALWAYS = (Condition("hours", ("Mon-Sun 00:00-24:00 UTC",)),)
ELSEWHERE = (Condition("label:region", ("eu",)),)


@pytest.mark.parametrize(
    ("name", "entitlements", "verdict", "reason"),
    [
        ("action", (Entitlement("db", ("bind",)),), "deny", "no_binding"),
        ("label", (Entitlement("db", conditions=ELSEWHERE),), "deny", "condition"),
        ("hours", (Entitlement("db", conditions=ALWAYS),), "unknown", "condition"),
        ("closed", (Entitlement("db", conditions=NEVER),), "unknown", "condition"),
        ("limit", (Entitlement("db", limits=(Limit("egress_bytes", 1),)),), "deny", "condition"),
        # With another right that counts, the license is valid, and the rule leaves it out.
        (
            "one-label",
            (Entitlement("db", conditions=ELSEWHERE), Entitlement("other")),
            "deny",
            "condition",
        ),
        (
            "one-hours",
            (Entitlement("db", conditions=NEVER), Entitlement("other")),
            "unknown",
            "condition",
        ),
    ],
)
def test_what_a_license_says_of_the_resource_counts(
    observing: Scene, name: str, entitlements: tuple[Entitlement, ...], verdict: str, reason: str
) -> None:
    scene = observing
    scene.agent.issue(name, [], entitlements=entitlements)
    bind(scene, f'{name} "unix:uid:{STRANGER}"')
    found = now(scene)
    assert (found["verdict"], found["reason"]) == (verdict, reason)
    assert found["why"]
    assert found["license"] in (None, name)


def test_a_licenses_own_selectors_count(observing: Scene) -> None:
    scene = observing
    scene.agent.issue("etl", ["db"], selectors=["systemd:unit:etl.service"])
    bind(scene, f'etl "unix:uid:{STRANGER}"')
    assert now(scene)["verdict"] == "deny"


def test_rules_stay_as_old_as_they_are_and_a_renewal_explains(observing: Scene) -> None:
    scene = observing
    scene.agent.issue("late", ["db"], expires_in_s=1)
    bind(scene, f'late "unix:uid:{STRANGER}"')
    eventually(lambda: scene.state_of("late") == "expired", "expired")
    assert scene.connect(STRANGER) == "ok"
    eventually(lambda: scene.ask("shadow")["rows"][0]["count"] == 2, "counted again")
    assert (now(scene)["verdict"], now(scene)["reason"]) == ("deny", "expired")
    (resource,) = scene.ask("shadow")["resources"]

    # A restart changes no rule, and makes no use older than the rules.
    scene.agent.stop()
    scene.agent.start()
    (again,) = scene.ask("shadow")["resources"]
    assert again["rules_since"] == resource["rules_since"]
    assert now(scene)["verdict"] == "deny"

    scene.agent.issue("late", ["db"])
    assert now(scene)["verdict"] == "allow"


def test_each_resource_is_watched_since_it_is_as_it_is(observing: Scene) -> None:
    scene = observing

    def late(port: int) -> str:
        text = scene.policy_text(name="late", port=port)
        return text.replace('mode = "enforce"', 'mode = "observe"')

    def watched() -> dict[str, int]:
        found = scene.ask("shadow")
        return {each["name"]: each["watched_s"] for each in found["resources"]}

    eventually(lambda: watched()["db"] >= 2, "watched for a while")
    changed_s = time.monotonic()
    scene.agent.policy(scene.policy_text("acme") + late(4))
    assert watched()["late"] <= time.monotonic() - changed_s
    assert watched()["db"] >= 2

    # A restart keeps it, and the time without the daemon does not count.
    began_s = time.monotonic()
    before = watched()["db"]
    scene.agent.stop()
    stopped_s = time.monotonic()
    time.sleep(4)
    away_s = time.monotonic() - stopped_s
    scene.agent.start()
    after = watched()["db"]
    assert before <= after <= before + 1 + (time.monotonic() - began_s - away_s)

    # What matches something else begins anew.
    changed_s = time.monotonic()
    scene.agent.policy(scene.policy_text("acme") + late(5))
    assert watched()["late"] <= time.monotonic() - changed_s
    assert watched()["db"] >= before
    scene.agent.policy(late(5))
    assert list(watched()) == ["late"]
    changed_s = time.monotonic()
    scene.agent.policy(scene.policy_text("acme"))
    assert watched()["db"] <= time.monotonic() - changed_s
