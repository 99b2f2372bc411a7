# SPDX-License-Identifier: Apache-2.0
"""The kernel's answer is the pure decision's, on random policies, programs and destinations.

connect(2) on a UDP socket sends nothing, and in the namespace of these tests every address is
local, so any address can be asked for. Both the errno that the program sees and the counters,
which name license, resource, verdict and reason, are compared.
"""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, event, given, settings
from hypothesis import strategies as st
from tests.kernel.harness import programs
from tests.kernel.harness.agent import ISSUER, AgentUnderTest
from tests.kernel.harness.dial import Dialer, binding, install, program_folder, settle
from tests.kernel.harness.oracle import Count, Flow, Oracle, Who, outcome
from tests.kernel.harness.random_policies import (
    CGROUPS,
    FAILSAFE,
    FAILSAFE_ENTRIES,
    RESOURCES,
    STATES,
    digest_of,
    flows,
    policies,
)
from tests.kernel.harness.sides import everywhere

from licagent.domain.policy import PolicyError
from licagent.local.errors import LocalError
from lictoken.claims import Condition, Entitlement, License
from lictoken.trust import TrustedKey, TrustStore
from lictoken.verify import verify_license


@dataclass(slots=True)
class World:
    """An agent with licenses in every state, and processes of every kind."""

    agent: AgentUnderTest
    licenses: dict[str, License]
    processes: list[tuple[Who, Dialer]]
    programs: tuple[Path, ...]


def issue_all(agent: AgentUnderTest) -> dict[str, License]:
    fields: dict[str, dict[str, Any]] = {
        "good-2": {"expires_in_s": 7200},
        "expired": {"expires_in_s": 1},
        "early": {"starts_in_s": 3000},
        "elsewhere": {"hosts": ("another-host",)},
        "limited": {
            "entitlements": tuple(
                Entitlement(name, ("connect", "bind"), conditions=(Condition("moon", ("full",)),))
                for name in RESOURCES
            )
        },
    }
    trust = TrustStore([TrustedKey.of(agent.key.public_key, ISSUER)])
    licenses = {}
    for jti in STATES:
        names = RESOURCES[:2] if jti == "some" else RESOURCES
        text = agent.token(jti, list(names), **fields.get(jti, {}))
        (agent.config / "licenses" / f"{jti}.lic").write_text(text)
        licenses[jti] = verify_license(text.encode(), trust)
    return licenses


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with contextlib.ExitStack() as stack:
        agent = AgentUnderTest(settings=FAILSAFE)
        stack.callback(agent.close)
        licenses = issue_all(agent)
        agent.start()
        agent.revoke("revoked")
        limit = time.monotonic() + 20
        while any(
            row["state"] != STATES[row["id"]].value
            for row in agent.call("status")["licenses"]
            if row["id"] != "limited"
        ):
            assert time.monotonic() < limit, agent.call("status")["licenses"]
            time.sleep(0.05)
        folder = stack.enter_context(program_folder())
        made = (
            install(folder / "one"),
            install(folder / "same-content"),
            install(folder / "two", variant="two"),
        )
        settle(made[-1])
        space = stack.enter_context(everywhere())
        processes = []
        for program, cgroup, uid, gid in all_subjects(made):
            place = agent.cgroup / cgroup.strip("/")
            place.mkdir(parents=True, exist_ok=True)
            owner = ["setpriv", f"--reuid={uid}", f"--regid={gid}", "--clear-groups", "--"]
            running = programs.start(place, [*owner, str(program)], namespace=space)
            who = Who(program, cgroup, uid, gid)
            processes.append((who, stack.enter_context(Dialer(running))))
        found = World(agent, licenses, processes, made)
        measure(found)
        yield found


def all_subjects(made: tuple[Path, ...]) -> Iterator[tuple[Path, str, int, int]]:
    owners = ((0, 0), (1001, 0), (1001, 1002), (0, 1002))
    for number in range(12):
        cgroup = CGROUPS[number % len(CGROUPS)]
        yield made[number % len(made)], cgroup, *owners[(number * 7 // 3) % len(owners)]


def measure(world: World) -> None:
    """Wait until the daemon has measured the programs: from then on it knows them at once."""
    flow = Flow("connect-udp", "198.51.100.1", 9)
    text = (
        '[[resource]]\nname = "r0"\nkind = "network"\nmode = "enforce"\n'
        'destinations = [{ cidr = "198.51.100.1/32" }]\n'
    )
    digests = dict.fromkeys(digest_of(program) for program in world.programs)
    world.agent.policy(text + "".join(binding("good-1", digest) for digest in digests))
    for _, process in world.processes:
        process.until("OK", flow.command)


def good_policy(world: World, parts: list[str], bound: list[str]) -> tuple[str, Oracle] | None:
    """The largest beginning of a drawn policy that the domain takes; the daemon must agree."""
    for count in range(len(parts), 0, -1):
        # Whatever else is bound, some user who is nobody here reaches every resource.
        text = "".join(parts[:count]) + binding("good-1", "unix:uid:4242") + "".join(bound)
        try:
            return text, Oracle(text, world.licenses, STATES, FAILSAFE_ENTRIES)
        except PolicyError:
            with pytest.raises(LocalError):
                world.agent.policy(text)
    return None


def counted(agent: AgentUnderTest) -> Counter[Count]:
    return Counter(
        {
            (row["license"], row["resource"], row["verdict"], row["reason"]): row["count"]
            for row in agent.counters()
        }
    )


@given(data=st.data())
@settings(
    max_examples=30,
    # A failure names policy and flow; making them smaller takes minutes.
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@pytest.mark.timeout(400)
def test_the_kernel_decides_as_the_domain_does(world: World, data: st.DataObject) -> None:
    subjects = tuple(who for who, _ in world.processes)
    parts, bound = data.draw(policies(subjects))
    policy = good_policy(world, parts, bound)
    if policy is None:
        return
    text, oracle = policy
    world.agent.policy(text)
    before, expected = counted(world.agent), Counter[Count]()
    wrong = []
    for who, process in world.processes:
        subject = oracle.subject(who)
        chosen = data.draw(st.lists(flows(), min_size=20, max_size=40))
        for flow in chosen:
            process.say(flow.command)
        for flow in chosen:
            decision = oracle.decide(subject, flow)
            event(f"{decision.verdict.name} {decision.reason.name}")
            said = outcome(process.number())
            if said != oracle.outcome(decision):
                wrong.append((who, flow, said, decision))
            if (row := oracle.count(decision)) is not None:
                expected[row] += 1

    assert not wrong, f"{wrong[:3]}\n{text}"
    assert counted(world.agent) - before == expected, text
