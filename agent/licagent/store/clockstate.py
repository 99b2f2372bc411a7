# SPDX-License-Identifier: Apache-2.0
"""The clock's memory: the latest trusted time, kept over restarts and reboots.

The rules are in `licagent.domain.clock`; this is where its numbers survive.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from licagent.domain.clock import ClockState
from licagent.store.errors import StoreError
from licagent.store.statedir import StateDir

_DOCUMENT: Final = "clock"
_SCHEMA: Final = "licagent.clock/1"


class ClockStore:
    """Reads and writes the state of the trusted clock."""

    def __init__(self, state: StateDir) -> None:
        """Nothing is read yet."""
        self._state = state
        self._last: ClockState | None = None

    def load(self) -> ClockState | None:
        """The state saved last, or None on a new host.

        Raises DocumentDamaged once; after that the host counts as new, and the wall clock is
        all there is to go by: say so loudly.
        """
        body = self._state.read_document(_DOCUMENT, _SCHEMA)
        if body is None:
            return None
        try:
            self._last = ClockState.from_document(body)
        except ValueError as error:
            raise StoreError(
                f"the state document {_DOCUMENT} is whole but makes no sense: {error}. Move it "
                "away to begin with the wall clock's time"
            ) from error
        return self._last

    def save(self, state: ClockState) -> None:
        """Make a state durable. The high-water mark never goes down.

        Raises StateWriteFailed; what `load` raises, if nothing was loaded before.
        """
        if self._last is None:
            self.load()
        if self._last is not None and state.now_ns < self._last.now_ns:
            state = replace(state, now_ns=self._last.now_ns)
        self._state.write_document(_DOCUMENT, _SCHEMA, state.document())
        self._last = state
