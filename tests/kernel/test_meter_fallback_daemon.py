# SPDX-License-Identifier: Apache-2.0
"""A daemon whose kernel meter counts no processes: the fallback bills.

The daemon is killed in the middle: what still lives is counted on from the committed baseline.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Final

import pytest
from tests.kernel.harness import old_kernel_daemon
from tests.kernel.harness.agent import AgentUnderTest
from tests.kernel.harness.meter import LOADER

from licagent.control.usage_wire import decode
from licagent.domain.usage import Meter, UsageKind
from licagent.host import posture
from licagent.store.ledger import Ledger

pytestmark = pytest.mark.skipif(LOADER != "prebuilt", reason="the same with each loader")

PATIENCE_S: Final = 60.0
BURNER: Final = (
    "import sys, time\n"
    "open(sys.argv[1] + '/cgroup.procs', 'w').write('0')\n"
    "for line in sys.stdin:\n"
    "    end = time.process_time() + 0.3\n"
    "    while time.process_time() < end: pass\n"
    "    print('burnt', flush=True)\n"
)


def start(agent: AgentUnderTest) -> None:
    agent.write_config()
    with (agent.folder / "daemon.log").open("ab") as log:
        agent.process = subprocess.Popen(
            [sys.executable, old_kernel_daemon.__file__],
            env=agent.environment,
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
        )
    agent.wait_ready()


def wait_for_commits(agent: AgentUnderTest, count: int) -> None:
    """Until so many intervals more are on disk."""
    end = time.monotonic() + PATIENCE_S
    seen: set[object] = set()
    while len(seen) <= count:
        assert time.monotonic() < end, agent.call("status")["metering"]
        seen.add(agent.call("status")["metering"]["last_commit"])
        time.sleep(0.1)


def test_what_lives_through_a_kill_is_billed_once(
    make_agent: Callable[..., AgentUnderTest],
) -> None:
    agent = make_agent(mode="observe", settings="metering_interval_s = 1")
    start(agent)
    wait_for_commits(agent, 1)  # what ran before it began is not its
    with subprocess.Popen(
        [sys.executable, "-c", BURNER, str(agent.cgroup)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as burner:
        assert burner.stdin is not None
        assert burner.stdout is not None

        def burn() -> None:
            burner.stdin.write("\n")  # type: ignore[union-attr]
            burner.stdin.flush()  # type: ignore[union-attr]
            assert burner.stdout.readline() == "burnt\n"  # type: ignore[union-attr]

        burn()
        wait_for_commits(agent, 2)
        assert agent.process is not None
        agent.process.send_signal(signal.SIGKILL)
        agent.process.wait(60)
        burn()  # nobody listens, and it lives on
        start(agent)
        wait_for_commits(agent, 1)  # what ended before it counts again would be a gap
        burn()
        burner.stdin.close()
        assert burner.wait(60) == 0
    wait_for_commits(agent, 2)
    agent.stop()
    ledger = Ledger(agent.folder / "state" / "usage", boot_id=posture.boot_id())
    try:
        records = [decode(payload) for _sequence, payload in ledger.records()]
    finally:
        ledger.close()
    mine = [
        record
        for record in records
        if record.kind is UsageKind.COMPUTE and record.owner.pid == burner.pid
    ]
    counted = sum(record.quantities.get(Meter.CPU_NS, 0) for record in mine)
    # Three times 0.3 s, and the start of an interpreter.
    assert 0.9e9 <= counted < 1.5e9
    assert all(record.estimated >= {Meter.CPU_NS} & record.quantities.keys() for record in mine)
    assert not any(Meter.READ_BYTES in record.estimated for record in mine)
