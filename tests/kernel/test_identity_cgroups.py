# SPDX-License-Identifier: Apache-2.0
"""Units, slices, containers and cgroup paths, also of cgroups that are made later."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest
from tests.kernel.harness.cgroups import CgroupTree
from tests.kernel.harness.dial import Destination, answer_of, binding, dialer
from tests.kernel.harness.subjects import NO_LICENSE, Rules, new_jti

pytest_plugins = ["tests.kernel.harness.fixtures"]

CONTAINER: Final = "0123456789abcdef" * 4
OTHER_CONTAINER: Final = "fedcba9876543210" * 4
UNIT: Final = "systemd:unit:etl.service"


@dataclass(slots=True)
class Places:
    """Cgroups directly below the agent's root, as systemd would make them."""

    rules: Rules
    stack: contextlib.ExitStack

    def make(self, path: str) -> Path:
        """Make a cgroup by its path below the agent's root."""
        top, *rest = path.split("/")
        root = self.rules.agent.cgroup / top
        if not root.exists():
            self.stack.enter_context(CgroupTree(self.rules.agent.cgroup, top))
        place = root.joinpath(*rest)
        place.mkdir(parents=True, exist_ok=True)
        return place


@pytest.fixture
def places(rules: Rules) -> Iterator[Places]:
    with contextlib.ExitStack() as stack:
        yield Places(rules, stack)
    if rules.agent.process is None:
        rules.agent.start()


HOLDS: Final = (
    ("systemd:unit:etl.service", "system.slice/etl.service"),
    ("systemd:unit:etl.service", "etl.service"),
    ("systemd:unit:etl.service", "system.slice/etl.service/inner/deeper"),
    ("systemd:unit:etl.service", "batch.slice/batch-night.slice/etl.service"),
    ("systemd:unit:etl.service", "system.slice/etl.service/etl.service"),
    ("systemd:unit:etl@1.service", "system.slice/system-etl.slice/etl@1.service"),
    ("systemd:unit:session-3.scope", "user.slice/user-1000.slice/session-3.scope"),
    ("systemd:unit:user@1000.service", "user.slice/user-1000.slice/user@1000.service/app.slice"),
    ("systemd:slice:batch.slice", "batch.slice"),
    ("systemd:slice:batch.slice", "batch.slice/any.service"),
    ("systemd:slice:batch-night.slice", "batch.slice/batch-night.slice/etl.service/x"),
    ("systemd:slice:user-1000.slice", "user.slice/user-1000.slice/user@1000.service/a.service"),
    ("cgroup:path:/batch/etl", "batch/etl"),
    ("cgroup:path:/batch/etl", "batch/etl/child/grandchild"),
    ("cgroup:path:/batch", "batch/etl"),
    (f"container:id:{CONTAINER}", f"system.slice/docker-{CONTAINER}.scope"),
    (f"container:id:{CONTAINER}", f"docker/{CONTAINER}"),
    (f"container:id:{CONTAINER}", f"machine.slice/libpod-{CONTAINER}.scope/container"),
    (f"container:id:{CONTAINER}", f"kubepods.slice/pod1.slice/crio-{CONTAINER}.scope"),
    (f"container:id:{CONTAINER}", f"kubepods.slice/pod1.slice/cri-containerd-{CONTAINER}.scope"),
    (f"container:id:{CONTAINER}", f"system.slice/nerdctl-{CONTAINER}.scope/init.scope"),
    ("host", "anything/at-all"),
)

DOES_NOT_HOLD: Final = (
    ("systemd:unit:etl.service", "system.slice/other.service"),
    ("systemd:unit:etl.service", "system.slice/etl.service2"),
    ("systemd:unit:etl.service", "system.slice/my-etl.service"),
    # a delegated cgroup: whoever has it may give its children any name
    ("systemd:unit:etl.service", "system.slice/delegated.service/etl.service"),
    ("systemd:unit:etl.service", "delegated/etl.service"),
    ("systemd:unit:etl.service", "delegated/system.slice/etl.service"),
    ("systemd:unit:etl.service", "system.slice/delegated.service/system.slice/etl.service"),
    ("systemd:unit:etl.service", "user.slice/user-1000.slice/user@1000.service/etl.service"),
    (
        "systemd:unit:etl.service",
        "user.slice/user-1000.slice/user@1000.service/app.slice/etl.service",
    ),
    ("systemd:unit:etl.service", "user@1000.service/etl.service"),
    ("systemd:unit:etl.service", ".slice/x.slices/etl.service"),
    ("systemd:slice:batch.slice", "delegated.service/batch.slice/x.service"),
    ("systemd:slice:batch.slice", "batch.slice2/x.service"),
    ("cgroup:path:/batch/etl", "batch"),
    ("cgroup:path:/batch/etl", "batch/etl2"),
    ("cgroup:path:/batch/etl", "other/batch/etl"),
    (f"container:id:{CONTAINER}", f"system.slice/docker-{OTHER_CONTAINER}.scope"),
    (f"container:id:{CONTAINER}", f"user.slice/user@1000.service/docker-{CONTAINER}.scope"),
    (f"container:id:{CONTAINER}", f"user.slice/user@1000.service/user.slice/{CONTAINER}"),
    (f"container:id:{CONTAINER}", f"machine.slice/libpod-conmon-{CONTAINER}.scope"),
)

CONTAINERS_IN_CONTAINERS: Final = (
    f"docker/{OTHER_CONTAINER}/{CONTAINER}",
    f"system.slice/docker-{OTHER_CONTAINER}.scope/x/{CONTAINER}",
)

WHEN: Final = ("before the policy", "after the policy", "with the daemon dead")


def answer(when: str, selector: str, path: str, places: Places, dial: Path) -> str:
    """What the first try says in a cgroup that is made at a moment."""
    if when == "before the policy":
        places.make(path)
    places.rules.allow(selector)
    if when == "with the daemon dead":
        places.rules.agent.kill()
    return answer_of(places.make(path), dial, places.rules.to)


@pytest.mark.parametrize(("selector", "path"), HOLDS)
@pytest.mark.parametrize("when", WHEN[:2])
def test_who_is_in_the_cgroup_may_connect_at_once(
    when: str, selector: str, path: str, places: Places, dial: Path
) -> None:
    assert answer(when, selector, path, places, dial) == "OK"


@pytest.mark.parametrize(("selector", "path"), DOES_NOT_HOLD)
@pytest.mark.parametrize("when", WHEN[:2])
def test_who_only_looks_like_it_may_not(
    when: str, selector: str, path: str, places: Places, dial: Path
) -> None:
    assert answer(when, selector, path, places, dial) == NO_LICENSE


@pytest.mark.parametrize("path", CONTAINERS_IN_CONTAINERS)
@pytest.mark.parametrize("when", WHEN)
def test_what_a_container_makes_in_its_own_part_of_the_tree_is_no_other_container(
    when: str, path: str, places: Places, dial: Path
) -> None:
    assert answer(when, f"container:id:{CONTAINER}", path, places, dial) == NO_LICENSE


def test_cgroups_are_known_at_once_with_the_daemon_dead(places: Places, dial: Path) -> None:
    rules = places.rules
    kinds: dict[str, list[tuple[str, str]]] = {}
    for answers, cases in (("OK", HOLDS), (NO_LICENSE, DOES_NOT_HOLD)):
        for selector, path in cases:
            kinds.setdefault(selector, []).append((path, answers))
    for selector, cases_of_one in kinds.items():
        rules.allow(selector)
        rules.agent.kill()
        found = [(path, answer_of(places.make(path), dial, rules.to)) for path, _ in cases_of_one]
        places.stack.close()
        rules.agent.start()
        assert found == cases_of_one, selector


def test_a_process_that_moves_into_a_child_keeps_its_license(places: Places, dial: Path) -> None:
    unit = places.make("system.slice/etl.service")
    places.rules.allow(UNIT)
    deep = unit.joinpath(*(f"level-{number}" for number in range(20)))

    with dialer(unit, dial, places.rules.to) as running:
        answers = [running.ask()]
        deep.mkdir(parents=True)
        assert running.ask(f"move {deep}") == "OK"
        answers.append(running.ask())
        assert running.ask(f"move {places.make('elsewhere')}") == "OK"
        answers.append(running.ask())
        assert running.ask(f"move {unit}") == "OK"
        answers.append(running.ask())

    assert answers == ["OK", "OK", NO_LICENSE, "OK"]


def test_a_unit_that_starts_again_is_known_again(places: Places, dial: Path) -> None:
    places.rules.allow(UNIT)
    for _ in range(20):
        unit = places.make("system.slice/etl.service")
        assert answer_of(unit, dial, places.rules.to) == "OK"
        unit.rmdir()
        other = places.make("system.slice/other.service")
        assert answer_of(other, dial, places.rules.to) == NO_LICENSE
        other.rmdir()


@pytest.mark.parametrize("when", WHEN[:2])
def test_the_deeper_cgroup_decides(when: str, places: Places, dial: Path) -> None:
    rules = places.rules
    if when == "before the policy":
        places.make("system.slice/etl.service/worker")
    _, inner = rules.allow_each(
        ((UNIT,), {}), (("cgroup:path:/system.slice/etl.service/worker",), {})
    )
    rules.agent.revoke(inner)
    worker = places.make("system.slice/etl.service/worker")
    beside = places.make("system.slice/etl.service/beside")

    assert answer_of(worker, dial, rules.to) == "EKEYREVOKED"
    assert answer_of(worker.parent, dial, rules.to) == "OK"
    assert answer_of(beside, dial, rules.to) == "OK"


@pytest.mark.parametrize("revoked", [0, 1])
@pytest.mark.parametrize("when", WHEN[:2])
def test_two_names_of_one_cgroup_have_an_order(
    when: str, revoked: int, places: Places, dial: Path
) -> None:
    """The path is asked before the unit's name, whenever the cgroup was made."""
    rules = places.rules
    if when == "before the policy":
        places.make("system.slice/etl.service")
    licenses = rules.allow_each(((UNIT,), {}), (("cgroup:path:/system.slice/etl.service",), {}))
    rules.agent.revoke(licenses[revoked])

    said = answer_of(places.make("system.slice/etl.service"), dial, rules.to)
    assert said == ("EKEYREVOKED" if revoked == 1 else "OK")


def test_a_container_by_the_first_digits_of_its_id(places: Places, dial: Path) -> None:
    """Which the daemon finds on its rounds: the kernel itself compares whole ids."""
    rules = places.rules
    rules.allow(f"container:id:{CONTAINER[:12]}")

    with dialer(places.make(f"system.slice/docker-{CONTAINER}.scope"), dial, rules.to) as running:
        running.until("OK")
    other = places.make(f"system.slice/docker-{OTHER_CONTAINER}.scope")
    assert answer_of(other, dial, rules.to) == NO_LICENSE


def test_slices_and_units_with_a_user_and_a_program(places: Places, dial: Path) -> None:
    rules = places.rules
    rules.allow("systemd:slice:batch.slice", f"unix:path:{dial}", "unix:uid:65534")
    inside, outside = places.make("batch.slice/a.service"), places.make("other.slice/a.service")

    answers = [
        answer_of(place, dial, rules.to, uid=uid)
        for place, uid in ((inside, 65534), (inside, 0), (outside, 65534), (outside, 0))
    ]
    assert answers == ["OK", NO_LICENSE, NO_LICENSE, NO_LICENSE]


def test_more_nested_names_than_the_kernel_holds_refuse_and_are_told(
    places: Places, dial: Path
) -> None:
    """Eight places of one cgroup's ancestry are known, the deepest; the others match nothing."""
    rules = places.rules
    paths = ["/nest" + "".join(f"/{number}" for number in range(depth)) for depth in range(10)]
    for path in paths:
        places.make(path.strip("/"))
    jti = new_jti()
    rules.agent.issue(jti, ["r", "unused"])
    text = rules.to.resource() + Destination().resource("unused")
    text += binding(jti, f"cgroup:path:{paths[0]}")
    for path in paths[1:]:
        text += binding(jti, f"cgroup:path:{path}") + 'resources = ["unused"]\n'
    rules.agent.policy(text)

    deep = rules.agent.cgroup / paths[-1].strip("/")
    checks = rules.agent.call("doctor")["checks"]
    assert answer_of(deep.parents[8], dial, rules.to) == "OK"
    assert answer_of(deep, dial, rules.to) == NO_LICENSE
    assert [row for row in checks if row["name"] == "selector" and paths[-1] in row["detail"]]
