# SPDX-License-Identifier: Apache-2.0
"""What holds for every test: hypothesis profiles and the tally that `./dev test` adds up."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from types import FrameType

import pytest
from hypothesis import HealthCheck, settings

# No deadline: tests never judge by time. In CI the examples are the same in every run, so that
# a red build is red again on a developer's machine; at a desk they vary and find new ones.
settings.register_profile("desk", deadline=None, print_blob=True)
settings.register_profile(
    "ci",
    deadline=None,
    derandomize=True,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("ci" if os.environ.get("CI") else "desk")

TALLIED = ("failed", "passed", "skipped", "deselected", "xfailed", "xpassed", "warnings", "error")
_started = time.monotonic()


def _end_in_order(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def pytest_configure() -> None:
    """SIGTERM (of `timeout`, or of a CI that is stopped) ends as Ctrl-C does: fixtures clean up."""
    signal.signal(signal.SIGTERM, _end_in_order)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Append this process's counts to the file that `./dev test` names, one JSON line each."""
    tally = os.environ.get("LICAGENT_TEST_TALLY")
    if not tally:
        return
    counts = {key: len(terminalreporter.stats.get(key, ())) for key in TALLIED}
    row = {**counts, "seconds": round(time.monotonic() - _started, 2)}
    with Path(tally).open("a", encoding="utf-8") as lines:
        lines.write(json.dumps(row) + "\n")
