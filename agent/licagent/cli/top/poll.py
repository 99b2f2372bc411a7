# SPDX-License-Identifier: Apache-2.0
"""Where samples come from: the daemon, asked again and again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from licagent.cli.top.model import Sample, Snapshot, compare, read_snapshot

Ask = Callable[..., dict[str, Any]]
"""`Session.call`: the method's name, then its parameters."""


class Poll:
    """Makes samples of the daemon's answers. Not for several threads at once."""

    def __init__(self, ask: Ask) -> None:
        self._ask = ask
        self._before: Snapshot | None = None
        self._last: Sample | None = None

    def sample(self, by: str) -> Sample:
        """A snapshot by process, unit or license, with rates since the last one of that kind.

        LocalError: the daemon's, or that there is none.
        """
        now = read_snapshot(self._ask("top", by=by, exited=True))
        last, before = self._last, self._before
        if (
            last is not None
            and before is not None
            and (before.run, before.by, before.at_ns) == (now.run, now.by, now.at_ns)
        ):
            return last  # the same reading once more: its rates still hold
        self._last, self._before = compare(before, now), now
        return self._last
