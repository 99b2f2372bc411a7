# SPDX-License-Identifier: Apache-2.0
"""SIGTERM may come at the very moment at which a job has something to do."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from licagent.daemon.control import link_watch
from licagent.daemon.life_signs import LifeSigns
from licagent.daemon.main import Daemon
from licagent.observability.systemd import Notifier


async def ends(job: asyncio.Task[None]) -> None:
    done, _ = await asyncio.wait([job], timeout=20)
    assert done, "the job goes on although it was cancelled"
    assert job.cancelled()


async def test_waiting_for_ends_of_licenses_is_cancelled_when_one_moves_meanwhile() -> None:
    daemon = object.__new__(Daemon)
    daemon._wake_ends = asyncio.Event()
    daemon._life = LifeSigns(Notifier(None))
    daemon._next_end_s = lambda: 100.0  # type: ignore[method-assign]
    with ThreadPoolExecutor(max_workers=1) as daemon._thread:
        job = asyncio.create_task(daemon._ends())
        await asyncio.sleep(0.2)
        daemon._wake_ends.set()
        await asyncio.sleep(0)
        job.cancel()
        await ends(job)


async def test_waiting_for_interfaces_is_cancelled_when_one_changes_meanwhile(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    events: list[asyncio.Event] = []

    class Noted(asyncio.Event):
        def __init__(self) -> None:
            super().__init__()
            events.append(self)

    async def nothing() -> None:
        return

    monkeypatch.setattr(link_watch.asyncio, "Event", Noted)
    job = asyncio.create_task(link_watch.on_link_changes(nothing, at_least_every_s=100.0))
    await asyncio.sleep(0.2)
    events[0].set()
    await asyncio.sleep(0)
    job.cancel()
    await ends(job)


HANGS = """
import threading
from concurrent.futures import ThreadPoolExecutor
from licagent.daemon import ending
from licagent.observability.logs import setup_logging
setup_logging()
started = threading.Event()

def hangs():
    started.set()
    threading.Event().wait()

ThreadPoolExecutor(max_workers=1).submit(hangs)
started.wait()
ending._TOLD_S = 60.0  # it is told in less, but this machine may be slow
ending.bound(lambda: 9, 0.5)
"""


def test_a_thread_that_hangs_does_not_keep_the_process() -> None:
    """Python joins the threads of its pools before it ends."""
    done = subprocess.run(
        [sys.executable, "-c", HANGS], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 9
    assert "not everything could be closed" in done.stderr
    assert "in hangs" in done.stderr, "where it hung"


def test_who_ends_in_time_ends_as_he_would() -> None:
    quick = HANGS.replace("threading.Event().wait()", "print('done')").replace("0.5", "60")
    done = subprocess.run(
        [sys.executable, "-c", quick], capture_output=True, text=True, check=False, timeout=40
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")
