# SPDX-License-Identifier: Apache-2.0
"""The wall clock that a daemon under test is told of (clock_shim.c)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.kernel.harness.agent import AgentUnderTest


@dataclass(frozen=True, slots=True)
class WallClock:
    """What the daemon is told of the time."""

    library: Path
    setting: Path

    def turn(self, offset_s: int = 0, *, synchronized: bool = False) -> None:
        """Set the daemon's wall clock, whether it runs or not."""
        fresh = self.setting.with_suffix(".new")
        fresh.write_text(f"{offset_s} {int(synchronized)}\n")
        fresh.rename(self.setting)

    def start(self, agent: AgentUnderTest) -> None:
        """Start the daemon, and only it, with this clock."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("LD_PRELOAD", str(self.library))
            patch.setenv("CLOCK_SHIM", str(self.setting))
            agent.start()
