# SPDX-License-Identifier: Apache-2.0
"""A license that a control plane delivered grants while it is leased; the kernel ends it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any, Final

import pytest
from tests.kernel.harness.agent import AgentUnderTest
from tests.kernel.harness.inside import Inside, inside
from tests.kernel.harness.probes import Probes, ask, eventually

from licagent.domain.license import LicenseState
from licagent.domain.reason import Reason
from licagent.host.posture import boottime_ns
from licagent.kernel.numbers import NANOSECONDS_MAX

pytest_plugins = ["tests.kernel.harness.kept"]

_S: Final = 1_000_000_000
SHORT_S: Final = 4
"""What is left of a lease that a test sees to its end, once everything is set up."""
SETTLED_S: Final = 1.0
"""For what is said not to happen any more: so long it is watched."""


class Managed:
    """An agent with a policy for the license "one", which it does not have yet."""

    def __init__(self, outer: AgentUnderTest, probes: Probes, found: Inside) -> None:
        self.outer, self.probes, self.found = outer, probes, found
        self.agent = found.agent
        self.licensed = probes.cgroups.licensed
        self.number = 0

    def deliver(self, jti: str = "one", **fields: Any) -> str:
        """Deliver a fresh generation of a license; its text."""
        text = self.outer.token(jti, ["probe", "offer"], **fields)
        self.number = self.outer._numbered[jti]
        self.give({jti: text})
        return text

    def give(self, texts: dict[str, str]) -> None:
        """What the control plane delivers from now on."""
        tokens = {jti: text.encode() for jti, text in texts.items()}
        assert self.agent.licensing.set_managed(tokens) == ()
        self.agent.write_licenses()
        self.agent.policy.load()

    def lease(self, for_s: float | None, *, denied: bool = False) -> None:
        """Lease the license from now on, or not."""
        ends = {} if for_s is None else {self.number: boottime_ns() + int(for_s * _S)}
        self.agent.licensing.set_leases(ends, {self.number} if denied else ())
        self.agent.write_licenses()

    def counts(self) -> bool:
        """Whether the license that counts is the control plane's."""
        return self.agent.licensing.held["one"].managed

    def use(self) -> str:
        """The errno of the licensed subject, "" if it passes."""
        return self.probes.once(self.licensed)

    def state(self) -> LicenseState:
        """As the agent judges it."""
        return self.agent.state_of(self.agent.licensing.held["one"].license)


@pytest.fixture
def managed(fresh_agent: AgentUnderTest) -> Iterator[Managed]:
    with Probes(fresh_agent.cgroup) as probes:
        fresh_agent.issue("base", ["probe", "offer"])
        fresh_agent.policy(
            probes.policy(
                "one", extra='[[binding]]\nlicense = "base"\nselectors = ["cgroup:path:/base"]\n'
            )
        )
        # The policy names a license that comes later, so it is installed when that is there.
        with inside(fresh_agent) as found:
            yield Managed(fresh_agent, probes, found)


def test_it_grants_while_it_is_leased_and_the_kernel_ends_it(managed: Managed) -> None:
    _, line = managed.probes.open(managed.probes.outside, "pour")
    managed.probes.port = line["port"]
    managed.outer.policy(managed.probes.policy("one"))
    managed.deliver()
    assert managed.use() == "EKEYEXPIRED"
    assert managed.state() is LicenseState.LEASE_LOST
    assert managed.found.count(verdict="DENY", reason="LEASE_LOST", license=managed.number) == 1

    managed.lease(600)
    assert managed.use() == ""
    assert managed.state() is LicenseState.VALID
    download, line = managed.probes.open(managed.licensed, "download", managed.probes.port)
    assert line["open"], line

    ends_at = time.monotonic() + SHORT_S
    managed.lease(SHORT_S)
    # Nobody does anything: the agent inside this process has no loop.
    eventually(lambda: managed.use() == "EKEYEXPIRED", "the lease ends")
    assert time.monotonic() >= ends_at, "it ended before its time"
    time.sleep(SETTLED_S)  # what had come before is read
    before = ask(download)
    time.sleep(SETTLED_S)
    assert ask(download)["received"] == before["received"], "bytes pass after the lease's end"
    assert managed.state() is LicenseState.LEASE_LOST
    assert managed.found.count(verdict="CUT", reason="LEASE_LOST", license=managed.number) > 0
    assert managed.probes.once(managed.probes.cgroups.unlicensed) == "ENOKEY"

    # Renewed, its socket goes on: nobody closed it.
    managed.lease(60)
    eventually(lambda: ask(download)["received"] > before["received"], "bytes pass again")
    managed.agent.cut()
    assert ask(download)["broken"] == ""


def test_the_agent_closes_the_sockets_of_a_lease_that_is_over(managed: Managed) -> None:
    managed.deliver()
    managed.lease(600)
    streams = managed.probes.many(managed.licensed)
    managed.lease(SHORT_S)
    left_s = managed.agent.license_end_s()
    assert left_s is not None
    assert left_s <= SHORT_S, "the daemon knows when to come back"
    eventually(lambda: managed.use() == "EKEYEXPIRED", "the lease ends")
    left_s = managed.agent.license_end_s()
    assert left_s is not None
    assert left_s <= 0

    managed.agent.cut()

    assert ask(streams)["broken"] == {"ECONNABORTED": 8}

    def is_dealt_with() -> bool:
        managed.agent.cut()
        left_s = managed.agent.license_end_s()
        return left_s is None or left_s > 60

    # A cut within a tick of the kernel's clock after the end is not the last one.
    eventually(is_dealt_with, "that end is dealt with")


def test_renewals_keep_sockets_alive(managed: Managed) -> None:
    managed.deliver()
    managed.lease(600)
    streams = managed.probes.many(managed.licensed)
    renewed_s = 8  # a test that stands still for as long would be none
    managed.lease(renewed_s)
    first = managed.found.slot(managed.number)
    for _ in range(renewed_s + 1):
        time.sleep(1)
        managed.lease(renewed_s)
        managed.agent.cut()
    slot = managed.found.slot(managed.number)
    assert slot.epoch == first.epoch
    assert slot.end_reason is Reason.LEASE_LOST
    assert ask(streams) == {"alive": 8, "broken": {}, "silent": 0}


def test_a_lease_that_is_taken_away_ends_the_sockets_at_once(managed: Managed) -> None:
    managed.deliver()
    managed.lease(600)
    streams = managed.probes.many(managed.licensed)

    managed.lease(None)

    assert ask(streams)["broken"] == {"ECONNABORTED": 8}
    assert managed.use() == "EKEYEXPIRED"
    managed.lease(600)
    assert managed.use() == ""
    streams = managed.probes.many(managed.licensed)
    managed.lease(-1)  # an end that is past already
    assert ask(streams)["broken"] == {"ECONNABORTED": 8}


def test_the_grace_of_a_license_counts_after_its_lease(managed: Managed) -> None:
    managed.deliver(grace_s=500)
    before = boottime_ns()
    managed.lease(100)
    slot = managed.found.slot(managed.number)
    assert 600 * _S <= slot.not_after_ns - before <= 610 * _S
    managed.lease(-100)
    assert managed.use() == ""
    managed.lease(-501)
    assert managed.use() == "EKEYEXPIRED"


def test_a_license_that_fails_open_goes_on_without_a_lease(managed: Managed) -> None:
    managed.deliver(failure_mode="open")
    assert managed.use() == ""
    managed.lease(600)
    assert managed.found.slot(managed.number).end_reason is Reason.EXPIRED
    streams = managed.probes.many(managed.licensed)
    managed.lease(-1)
    assert managed.use() == ""
    assert ask(streams)["alive"] == 8

    managed.lease(None, denied=True)  # the control plane was reached, and says no

    assert managed.use() == "EKEYEXPIRED"
    assert ask(streams)["broken"] == {"ECONNABORTED": 8}


def test_the_own_end_of_a_license_comes_first(managed: Managed) -> None:
    managed.deliver()
    managed.lease(600)
    assert managed.use() == ""
    managed.deliver(expires_in_s=SHORT_S)
    eventually(lambda: managed.use() == "EKEYEXPIRED", "the license ends")
    assert managed.found.count(verdict="DENY", reason="EXPIRED", license=managed.number) > 0
    assert managed.found.count(reason="LEASE_LOST", license=managed.number) == 0
    assert managed.state() is LicenseState.EXPIRED


def test_a_license_from_a_file_needs_no_lease(managed: Managed) -> None:
    licensing = managed.agent.licensing
    text = managed.outer.token("one", ["probe", "offer"])
    found, path, changed = licensing.store(text.encode())
    managed.number = found.number
    assert changed
    managed.agent.write_licenses()
    managed.agent.policy.load()
    assert managed.use() == ""

    # The same from the control plane: it counts, and needs its lease.
    managed.give({"one": text})
    assert managed.counts()
    assert managed.use() == "EKEYEXPIRED"
    # A newer file counts before it.
    newer = managed.outer.token("one", ["probe", "offer"])
    licensing.store(newer.encode())
    managed.agent.write_licenses()
    assert not managed.counts()
    assert managed.use() == ""
    # And the control plane's next before that.
    managed.deliver()
    managed.lease(600)
    assert managed.counts()
    assert managed.use() == ""
    assert licensing.forget("one")
    assert not path.exists()
    assert managed.counts()


def test_a_license_that_is_delivered_no_more_is_gone(managed: Managed) -> None:
    managed.deliver()
    managed.lease(600)
    streams = managed.probes.many(managed.licensed)

    assert managed.agent.licensing.set_managed({}) == ()
    managed.agent.write_licenses()

    assert ask(streams)["broken"] == {"ECONNABORTED": 8}
    assert managed.use() == "EKEYREVOKED"


def test_what_does_not_verify_costs_only_itself(managed: Managed) -> None:
    licensing = managed.agent.licensing
    good = managed.outer.token("one", ["probe", "offer"])
    other = managed.outer.token("two", ["probe"])
    tokens = {
        "one": good.encode(),
        "two": other.replace("A", "B").encode(),
        "three": other.encode(),  # under another's name
    }
    refused = licensing.set_managed(tokens)
    assert [each.file for each in refused] == ["two (control plane)", "three (control plane)"]
    assert all(each.detail for each in refused)
    assert {jti for jti, held in licensing.held.items() if held.managed} == {"one"}
    # An old generation is a replay.
    managed.give({"one": managed.outer.token("one", ["probe", "offer"])})
    (replayed,) = licensing.set_managed({"one": good.encode()})
    assert "generation" in replayed.detail
    assert managed.agent.kernel.licenses.get(managed.outer._numbered["one"]) is not None
    managed.agent.write_licenses()
    assert managed.found.slot(managed.outer._numbered["one"]).not_after_ns == NANOSECONDS_MAX
    assert managed.found.slot(managed.outer._numbered["one"]).state is Reason.REVOKED
