# SPDX-License-Identifier: Apache-2.0
"""The daemon as on a kernel without BTF: its programs on processes are there, and not read."""

from __future__ import annotations

import os
import sys
from dataclasses import replace

from licagent.daemon import main
from licagent.domain.config_reader import read_config
from licagent.kernel.bpffs import PinFolder
from licagent.kernel.usage_meter import UsageMeter


def without_work() -> None:
    """Take the meter its sheets of work."""
    original = UsageMeter.__init__

    def begin(self: UsageMeter, pins: PinFolder) -> None:
        original(self, pins)
        self._work = None
        self.support = replace(self.support, work=False)

    UsageMeter.__init__ = begin  # type: ignore[method-assign]


if __name__ == "__main__":
    without_work()
    sys.exit(main.run(read_config(os.environ).config))
