# SPDX-License-Identifier: Apache-2.0
"""Every route carries bytes to the server when no agent is there.

Without this a "refused" in test_routes.py would prove nothing. A route that this kernel does not
have is skipped with the program's reason.
"""

from __future__ import annotations

import pytest
from tests.kernel.harness.cgroups import CgroupTree
from tests.kernel.harness.walk import Surroundings, World, walk
from tests.kernel.routes.catalogue import ROUTES

pytest_plugins = ["tests.kernel.harness.fixtures"]


@pytest.mark.parametrize("name", ROUTES)
def test_route_works_without_the_agent(
    name: str, world: World, bare_tree: CgroupTree, bare_surroundings: Surroundings
) -> None:
    route = ROUTES[name]
    target = world.target(route)

    result = walk(route, world, bare_tree.make("subject"), bare_surroundings, target)

    if result.outcome == "unsupported":
        pytest.skip(f"not on this kernel: {result.stage}: {result.message} ({result.errno})")
    assert result.arrived, f"{route.summary} {result}"
    assert result.outcome == "passed", result
    assert route.evidence in result.kinds, "it arrived by another way than the route's"
    assert result.second_arrived == (route.rounds == 2), result
    reported = {key: result.details.get(key) for key in route.proof}
    assert reported == dict(route.proof), "the program did not walk the route it names"


def test_every_route_has_a_summary() -> None:
    missing = [name for name, route in ROUTES.items() if not route.summary]

    assert not missing
