# SPDX-License-Identifier: Apache-2.0
"""A license follows what the host is: hours, posture and labels, on the real kernel, both ways."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import pytest
from tests.kernel.harness.agent import AgentUnderTest
from tests.kernel.harness.inside import inside
from tests.kernel.harness.probes import SILENCE_S, Probes, ask, eventually
from tests.kernel.harness.wall_clock import WallClock

from licagent.daemon.main import Daemon
from licagent.domain.reason import Reason
from licagent.domain.slot import ATTESTED_NS
from licagent.host.posture import boottime_ns
from licagent.kernel.bpffs import PinFolder
from licagent.kernel.licenses import LicenseTable
from lictoken.claims import Condition, Entitlement

pytest_plugins = ["tests.kernel.harness.kept", "tests.kernel.harness.shim"]

AHEAD_S: Final = 12
"""The daemon is started that long before a minute of its clock begins."""
LEFT_S: Final = 4
"""To that minute, once everything is set up; where less is left, it is the one after."""
HOURS_LIMIT_S: Final = 120.0
REBOOT_MARK: Final = Path("/run/reboot-required")
ACTIONS: Final = ("connect", "bind")


def entitlements(*conditions: Condition, free: str = "") -> tuple[Entitlement, ...]:
    """Both resources of the probes under the conditions, but for the one named."""
    return tuple(
        Entitlement(name, ACTIONS, conditions=() if name == free else conditions)
        for name in ("probe", "offer")
    )


@pytest.fixture
def probes(fresh_agent: AgentUnderTest) -> Iterator[Probes]:
    with Probes(fresh_agent.cgroup) as found:
        yield found


@pytest.fixture
def next_minute(
    fresh_agent: AgentUnderTest, probes: Probes, wall: WallClock
) -> Callable[[], datetime]:
    """A running daemon, and which minute of its clock begins soon."""
    offset_s = int(-time.time() % 60) - AHEAD_S
    wall.turn(offset_s)
    wall.start(fresh_agent)

    def found() -> datetime:
        earliest_s = time.time() + offset_s + LEFT_S
        return datetime.fromtimestamp(earliest_s - earliest_s % 60 + 60, UTC)

    return found


def hours(begin: datetime, end: datetime) -> Condition:
    """A window of less than a day."""
    until = "24:00" if (end.hour, end.minute) == (0, 0) else f"{end:%H:%M}"
    return Condition("hours", (f"{begin:%a %H:%M}-{until} UTC",))


def told(agent: AgentUnderTest, jti: str) -> list[dict[str, Any]]:
    """The records of changes that concern a license."""
    return [
        event
        for event in agent.events()
        if event["kind"] == "condition" and any(row["license"] == jti for row in event["licenses"])
    ]


@pytest.mark.parametrize("is_killed", [False, True], ids=["daemon", "no-daemon"])
def test_hours_end_on_time(
    fresh_agent: AgentUnderTest,
    probes: Probes,
    next_minute: Callable[[], datetime],
    is_killed: bool,
) -> None:
    agent = fresh_agent
    agent.issue("one", [], entitlements=entitlements())
    agent.policy(probes.policy("one"))
    streams = probes.many(probes.cgroups.licensed)
    before = agent.last_event()
    minute = next_minute()
    window = hours(minute - timedelta(minutes=20), minute)
    agent.issue("one", [], entitlements=entitlements(window))
    if is_killed:
        agent.kill()

    licensed = probes.cgroups.licensed
    eventually(lambda: probes.once(licensed) == "EKEYREJECTED", "the hours end", HOURS_LIMIT_S)

    assert probes.once(probes.cgroups.unlicensed) == "ENOKEY"
    if is_killed:
        numbers = ask(streams, patience_s=SILENCE_S)
        assert numbers["broken"] == {}, "with the daemon dead a socket is only silenced"
        agent.start()
    eventually(lambda: ask(streams)["broken"] == {"ECONNABORTED": 8}, "the sockets are closed")
    assert agent.count(verdict="deny", reason="condition", license="one") > 0
    if not is_killed:
        (record,) = eventually(lambda: told(agent, "one"), "it is on record")
        assert record["seq"] > before
        assert record["facts"] == []
        assert record["sockets_cut"] in {8, 9}, "the one that asked may have been open still"
        (row,) = record["licenses"]
        assert row["lost"] == ["offer", "probe"]
        assert "the hours are" in row["why"]
        (listed,) = agent.call("license.list")["licenses"]
        assert listed["state"] == "condition"
        assert "the hours are" in listed["reason"]


def test_hours_begin_on_time(
    fresh_agent: AgentUnderTest, probes: Probes, next_minute: Callable[[], datetime]
) -> None:
    agent = fresh_agent
    licensed = probes.cgroups.licensed
    later = next_minute() + timedelta(minutes=20)
    agent.issue("one", [], entitlements=entitlements(hours(later, later + timedelta(minutes=20))))
    agent.policy(probes.policy("one"))
    assert probes.once(licensed) == "EKEYREJECTED"
    agent.issue("one", [], entitlements=entitlements(hours(next_minute(), later)))

    eventually(lambda: probes.once(licensed) == "", "the hours begin", HOURS_LIMIT_S)

    (record,) = eventually(lambda: told(agent, "one"), "it is on record")
    assert record["licenses"][0]["gained"] == ["offer", "probe"]
    assert probes.once(probes.cgroups.unlicensed) == "ENOKEY"


def test_what_has_no_hours_outlives_those_that_end(
    fresh_agent: AgentUnderTest, probes: Probes, next_minute: Callable[[], datetime]
) -> None:
    """One license, two entitlements: only the one with the condition goes."""
    agent = fresh_agent
    licensed = probes.cgroups.licensed
    agent.issue("one", [], entitlements=entitlements())
    agent.policy(probes.policy("one"))
    streams = probes.many(licensed)
    minute = next_minute()
    window = hours(minute - timedelta(minutes=20), minute)
    agent.issue("one", [], entitlements=entitlements(window, free="offer"))

    eventually(lambda: probes.once(licensed) == "EKEYREJECTED", "the hours end", HOURS_LIMIT_S)

    for _ in range(3):
        assert probes.once(licensed, "bind-udp", port=probes.service) == ""
    eventually(lambda: ask(streams)["broken"] == {"ECONNABORTED": 8}, "the sockets are closed")
    (row,) = eventually(lambda: told(agent, "one"), "it is on record")[0]["licenses"]
    assert (row["lost"], row["gained"]) == (["probe"], [])
    (listed,) = agent.call("license.list")["licenses"]
    assert listed["state"] == "valid"
    explained = agent.call("explain", pid=streams.process.pid, socket=None)["resources"]
    rows = {row["resource"]: row for row in explained}
    assert (rows["probe"]["verdict"], rows["offer"]["verdict"]) == ("deny", "allow")
    assert rows["probe"]["errno"] == "EKEYREJECTED"
    assert "license one: the hours are" in rows["probe"]["missing"][0]
    assert "they begin at" in rows["probe"]["how"][0]
    shown = agent.call("license.show", id="one")["license"]["entitlements"]
    assert {each["resource"]: bool(each["refused"]) for each in shown} == {
        "probe": True,
        "offer": False,
    }


@pytest.fixture
def reboot_mark() -> Iterator[Path]:
    """The file by which Debian asks for a reboot; there is none before and after."""
    if REBOOT_MARK.exists():
        pytest.skip(f"this machine waits for a reboot: {REBOOT_MARK} is there")
    yield REBOOT_MARK
    REBOOT_MARK.unlink(missing_ok=True)


@pytest.mark.parametrize("free", ["", "offer"], ids=["whole", "part"])
def test_a_pending_reboot_takes_and_the_reboot_gives_back(
    fresh_agent: AgentUnderTest, probes: Probes, reboot_mark: Path, free: str
) -> None:
    agent = fresh_agent
    agent.start()
    settled = Condition("posture:pending_reboot", ("false",))
    agent.issue("one", [], entitlements=entitlements(settled, free=free))
    agent.policy(probes.policy("one"))
    licensed = probes.cgroups.licensed
    streams = probes.many(licensed)

    reboot_mark.touch()

    eventually(lambda: ask(streams)["broken"] == {"ECONNABORTED": 8}, "the sockets are closed")
    assert probes.once(licensed) == "EKEYREJECTED"
    (record,) = eventually(lambda: told(agent, "one"), "it is on record")
    assert record["facts"] == [{"fact": "posture:pending_reboot", "old": "false", "new": "true"}]
    assert record["sockets_cut"] == 8
    assert "pending_reboot must be false, and is true" in record["licenses"][0]["why"]
    assert probes.once(licensed, "bind-udp", port=probes.service) == (
        "" if free else "EKEYREJECTED"
    )

    reboot_mark.unlink()

    eventually(lambda: probes.once(licensed) == "", "the license is back")
    assert probes.once(licensed, "bind-udp", port=probes.service) == ""
    eventually(lambda: len(told(agent, "one")) == 2, "that is on record, too")
    (_, record) = told(agent, "one")
    assert "probe" in record["licenses"][0]["gained"]
    assert agent.count(reason="condition", verdict="cut", license="one") > 0
    assert ask(probes.many(licensed))["alive"] == 8


def test_a_clock_that_falls_out_of_step_takes_and_gives(
    fresh_agent: AgentUnderTest, probes: Probes, wall: WallClock
) -> None:
    agent = fresh_agent
    wall.turn(synchronized=True)
    wall.start(agent)
    in_sync = Condition("posture:clock_in_sync", ("true",))
    agent.issue("one", [], entitlements=entitlements(in_sync))
    agent.policy(probes.policy("one"))
    licensed = probes.cgroups.licensed
    assert probes.once(licensed) == ""

    wall.turn(synchronized=False)
    eventually(lambda: probes.once(licensed) == "EKEYREJECTED", "it is taken")
    wall.turn(synchronized=True)
    eventually(lambda: probes.once(licensed) == "", "it is given back")

    eventually(lambda: len(told(agent, "one")) == 2, "both are on record")
    assert [record["facts"][0]["new"] for record in told(agent, "one")] == ["false", "true"]


@pytest.mark.parametrize(
    "condition",
    [
        Condition("label:rack", ("7",)),
        Condition("posture:kernel", (">=99",)),
        Condition("hours", ("Mon-Sun 00:00-24:00 Mars/Base",)),
    ],
    ids=lambda one: one.kind,
)
def test_what_is_not_known_is_denied_in_enforce_and_told_of_in_observe(
    fresh_agent: AgentUnderTest, probes: Probes, condition: Condition
) -> None:
    agent = fresh_agent
    agent.start()
    agent.issue("one", [], entitlements=entitlements(condition))
    agent.policy(probes.policy("one"))
    assert probes.once(probes.cgroups.licensed) == "EKEYREJECTED"
    agent.stop()
    agent.mode = "observe"
    agent.start()

    assert probes.once(probes.cgroups.licensed) == ""

    assert agent.count(verdict="shadow", reason="condition", license="one") > 0


def test_without_a_daemon_conditions_are_believed_for_a_minute_at_most(
    fresh_agent: AgentUnderTest, probes: Probes
) -> None:
    agent = fresh_agent
    agent.start()
    on_linux = Condition("posture:kernel", (">=5.10",))
    agent.issue("one", [], entitlements=entitlements(on_linux))
    agent.issue("two", ["probe", "offer"])
    agent.policy(probes.policy("one"))
    assert probes.once(probes.cgroups.licensed) == ""
    table = LicenseTable(PinFolder(agent.bpffs))
    try:

        def end_ns(jti: str) -> int:
            slot = table.get(agent._numbered[jti])
            assert slot is not None
            assert slot.end_reason is (Reason.CONDITION if jti == "one" else Reason.EXPIRED)
            return slot.not_after_ns

        first_ns = end_ns("one")
        assert first_ns <= boottime_ns() + ATTESTED_NS
        assert end_ns("two") > boottime_ns() + ATTESTED_NS
        eventually(lambda: end_ns("one") > first_ns, "the daemon says again that it holds", 30)
        assert end_ns("one") <= boottime_ns() + ATTESTED_NS
        agent.kill()
        # A minute later, as the kernel would find it.
        table.set(agent._numbered["one"], Reason.LICENSED, 0, boottime_ns(), Reason.CONDITION)
    finally:
        table.close()

    assert probes.once(probes.cgroups.licensed) == "EKEYREJECTED"
    agent.start()
    assert probes.once(probes.cgroups.licensed) == "", "the daemon that is back sees that it holds"


def test_a_daemon_that_slept_too_long_closes_nothing_that_still_holds(
    fresh_agent: AgentUnderTest, probes: Probes
) -> None:
    """As after a suspend: the kernel's minute is over before the daemon can move it on."""
    outer = fresh_agent
    outer.settings = 'labels = { region = "eu" }'
    in_eu = Condition("label:region", ("eu",))
    outer.issue("one", [], entitlements=entitlements(in_eu))
    outer.policy(probes.policy("one"))
    number = outer._numbered["one"]
    with inside(outer) as found:
        daemon = object.__new__(Daemon)
        daemon._agent = agent = found.agent
        streams = probes.many(probes.cgroups.licensed)
        for labels, alive in (({"region": "eu"}, 8), ({"region": "us"}, 0)):
            agent.kernel.licenses.set(number, Reason.LICENSED, 0, boottime_ns(), Reason.CONDITION)
            assert probes.once(probes.cgroups.licensed) == "EKEYREJECTED"
            agent.licensing.set_labels(labels)

            daemon._end_what_is_over()

            assert ask(streams)["alive"] == alive
            errno = "" if alive else "EKEYREJECTED"
            assert probes.once(probes.cgroups.licensed) == errno


def test_a_label_that_changes_cuts_and_gives_back(
    fresh_agent: AgentUnderTest, probes: Probes
) -> None:
    outer = fresh_agent
    outer.settings = 'labels = { region = "eu" }'
    in_eu = Condition("label:region", ("eu",))
    outer.issue("one", [], entitlements=entitlements(in_eu))
    outer.issue("two", [], entitlements=entitlements(in_eu, free="probe"))
    outer.policy(
        probes.policy(
            "one", extra='[[binding]]\nlicense = "two"\nselectors = ["cgroup:path:/other"]\n'
        )
    )
    other = probes.cgroup("other")
    licensed = probes.cgroups.licensed
    with inside(outer) as found:
        agent = found.agent
        agent.conditions.judge()
        assert found.told("condition") == [], "a start is no change"
        streams, others = probes.many(licensed), probes.many(other)
        # Written again, but not looked at again: the kernel's end stays.
        end_ns = found.slot(outer._numbered["one"]).not_after_ns
        agent.write_licenses()
        assert found.slot(outer._numbered["one"]).not_after_ns == end_ns
        agent.conditions.refresh()

        agent.licensing.set_labels({"region": "us"})
        agent.conditions.judge()

        assert ask(streams)["broken"] == {"ECONNABORTED": 8}
        assert ask(others)["alive"] == 8, "its own entitlement has no condition"
        assert probes.once(licensed) == "EKEYREJECTED"
        assert probes.once(other, "bind-udp", port=probes.service) == "EKEYREJECTED"
        (record,) = found.told("condition")
        assert record["facts"] == [{"fact": "label:region", "old": "eu", "new": "us"}]
        assert record["sockets_cut"] in {8, 9}, "the one that asked may have been open still"
        lost = {row["license"]: row["lost"] for row in record["licenses"]}
        assert lost == {"one": ["offer", "probe"], "two": ["offer"]}

        agent.licensing.set_labels({"region": "eu"})
        agent.conditions.judge()

        assert probes.once(licensed) == ""
        assert probes.once(other, "bind-udp", port=probes.service) == ""
        assert ask(others)["alive"] == 8
        gained = {row["license"]: row["gained"] for row in found.told("condition")[1]["licenses"]}
        assert gained == lost


def test_a_host_that_is_renamed_is_another_one_for_a_license(
    fresh_agent: AgentUnderTest, probes: Probes
) -> None:
    outer = fresh_agent
    own = socket.gethostname()
    outer.issue("one", ["probe", "offer"], hosts=(own,))
    outer.policy(probes.policy("one"))
    with inside(outer) as found:
        streams = probes.many(probes.cgroups.licensed)

        found.agent.licensing.set_hostname("another")
        found.agent.conditions.judge()

        assert ask(streams)["broken"] == {"ECONNABORTED": 8}
        assert probes.once(probes.cgroups.licensed) == "EKEYREJECTED"
        (record,) = found.told("condition")
        assert record["facts"] == [{"fact": "hostname", "old": own, "new": "another"}]
        assert f"is for the hosts {own}" in record["licenses"][0]["why"]

        found.agent.conditions.refresh()  # it looks itself

        assert probes.once(probes.cgroups.licensed) == ""


def test_what_changed_while_no_daemon_ran_is_on_record(
    fresh_agent: AgentUnderTest, probes: Probes
) -> None:
    outer = fresh_agent
    in_eu = Condition("label:region", ("eu",))
    outer.issue("one", [], entitlements=entitlements(in_eu))
    outer.policy(probes.policy("one"))
    for region, errno in (("eu", ""), ("us", "EKEYREJECTED"), ("us", "EKEYREJECTED"), ("eu", "")):
        outer.settings = f'labels = {{ region = "{region}" }}'
        with inside(outer) as found:
            assert probes.once(probes.cgroups.licensed) == errno
            told = found.told("condition")
        if region == "us" and told:
            assert told[0]["facts"] == [{"fact": "label:region", "old": "eu", "new": "us"}]
            assert told[0]["licenses"][0]["lost"] == ["offer", "probe"]
    assert [row["gained"] for row in told[0]["licenses"]] == [["offer", "probe"]]


def test_a_program_that_is_taken_away_costs_the_agent_its_integrity(
    fresh_agent: AgentUnderTest, probes: Probes
) -> None:
    agent = fresh_agent
    agent.start()
    whole = Condition("posture:agent_integrity", ("true",))
    agent.issue("one", [], entitlements=entitlements(whole))
    agent.policy(probes.policy("one"))
    assert probes.once(probes.cgroups.licensed) == ""

    (PinFolder(agent.bpffs).links / "cgroup_rmdir").unlink()

    eventually(lambda: probes.once(probes.cgroups.licensed) == "EKEYREJECTED", "it is noticed", 30)
    (record,) = eventually(lambda: told(agent, "one"), "it is on record")
    assert record["facts"] == [{"fact": "posture:agent_integrity", "old": "true", "new": "false"}]
    (check,) = [row for row in agent.call("doctor")["checks"] if row["name"] == "integrity"]
    assert "cgroup_rmdir" in check["detail"]
    agent.kill()
    agent.start()
    assert probes.once(probes.cgroups.licensed) == "", "the start has put it back"


def test_nothing_is_granted_between_two_judgements(
    fresh_agent: AgentUnderTest, probes: Probes
) -> None:
    """All of a license is lost; then a part comes back: its slot must wait for the rules."""
    outer = fresh_agent
    parts = (
        Entitlement("probe", ACTIONS, conditions=(Condition("label:region", ("eu",)),)),
        Entitlement("offer", ACTIONS, conditions=(Condition("label:team", ("db",)),)),
    )
    outer.issue("one", [], entitlements=parts)
    outer.policy(probes.policy("one"))
    licensed = probes.cgroups.licensed
    with inside(outer) as found:
        agent = found.agent
        assert probes.once(licensed) == "EKEYREJECTED"
        agent.licensing.set_labels({"team": "db"})
        agent.write_licenses()

        # The rules in force still have both: nothing may pass by the slot alone.
        assert probes.once(licensed) == "EKEYREJECTED"
        agent.conditions.judge()

        assert probes.once(licensed) == "EKEYREJECTED"
        assert probes.once(licensed, "bind-udp", port=probes.service) == ""
