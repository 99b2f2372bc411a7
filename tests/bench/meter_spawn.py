# SPDX-License-Identifier: Apache-2.0
"""fork + exec + exit of /bin/true, with the agent in the kernel and without any of its programs.

The meter's programs are called for every process of the machine and leave at once for those that
are not its own, so a cgroup beside the agent's is not bare: here the programs come and go between
two measurements of one cgroup.
"""

from __future__ import annotations

import statistics
import time
from typing import TYPE_CHECKING, Final

from tests.bench import paired
from tests.bench.paired import Spread, Variant
from tests.bench.table import Row, ratio_row

if TYPE_CHECKING:
    from tests.bench.context import Bench

LIMIT_S: Final = "1.5"
"""Of one measurement."""

SETTLE_S: Final = 1.0
"""Before each: what a load or an unload left to do in the kernel is done then."""


def spawn(bench: Bench) -> list[Row]:
    """Turns: bare, agent, bare, agent, ...; each agent over the mean of the bare beside it."""
    if bench.agents_running:
        raise RuntimeError("agents of other cases have programs on fork and exec: run it alone")
    turns = 4 if bench.quick else 10
    bare_ns = [_cost_ns(Variant("bare", bench.places.bare, bench.places.plain.path))]
    ratios, noise, beside_ns, agent_ns = [], [], [], []
    for turn in range(turns):
        agent, work = bench.new_agent(f"spawn-{turn}", bindings=10, networks=10)
        try:
            agent.start()
            inside = Variant("agent", work, bench.places.plain.path)
            beside = Variant("beside", bench.places.bare, bench.places.plain.path)
            agent_ns.append(_cost_ns(inside))
            beside_ns.append(_cost_ns(beside))
        finally:
            agent.stop()
            bench.places.drop_bpffs(agent.bpffs_dir)
        bare_ns.append(_cost_ns(Variant("bare", work, bench.places.plain.path)))
        around_ns = statistics.mean(bare_ns[-2:])
        ratios.append(agent_ns[-1] / around_ns)
        noise.append(bare_ns[-1] / bare_ns[-2])
    what = "CPU time of fork + exec + exit of /bin/true"
    costs = f"bare {statistics.median(bare_ns) / 1000:.0f} us"
    costs += f", agent {statistics.median(agent_ns) / 1000:.0f} us"
    outside = [cost / around for cost, around in zip(beside_ns, bare_ns[1:], strict=True)]
    return [
        ratio_row(f"{what} ({costs})", Spread.of(ratios), 1.03, key="spawn"),
        ratio_row("the same, bare over bare one turn before", Spread.of(noise), None),
        ratio_row("the same, beside the agent's cgroup, over bare", Spread.of(outside), None),
    ]


def _cost_ns(variant: Variant) -> float:
    time.sleep(SETTLE_S)
    return paired.run("spawn", [variant], "--rounds", "400", "--limit", LIMIT_S).cost_ns(
        variant.name
    )
