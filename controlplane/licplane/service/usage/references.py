# SPDX-License-Identifier: Apache-2.0
"""What rows of usage refer to: owners, scopes and parts, made before the first row needs them."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterable, Mapping
from typing import Final

from licplane.errors import Conflict, ExitCode, PlaneError
from licplane.service.core import Core
from licplane.service.remembering import Remembered
from licplane.service.usage.licenses import UsageLicenses
from licplane.store.history import History
from licplane.store.reader import Reader
from licplane.store.usage_model import DAY_MS, Owner, UsageScope

_OWNERS_BYTES: Final = 32 * 1024 * 1024
_OWNER_BYTES: Final = 300
"""What an owner takes besides its texts."""
_PARTS_BEFORE: Final = 800
_PARTS_AFTER: Final = 2
"""Days around today for which parts are made; rows of others go to the default part."""


class _Memory:
    """What one history of the database is known to hold. After a fail-over it may be gone."""

    def __init__(self, history: History) -> None:
        self.history: Final = history
        self.owners: Final[Remembered[Owner, int]] = Remembered(_OWNERS_BYTES)
        self.licenses: Final = UsageLicenses()
        self.scopes: Final[dict[UsageScope, int]] = {}
        self.parts: Final[set[int]] = set()

    def check(self, reader: Reader) -> None:
        """Raise Conflict where this transaction is of another history."""
        if reader.history != self.history:
            raise Conflict("The database goes on at another server", "Open a new stream")


class UsageReferences:
    """Finds or makes them, and remembers those it found. Threads may share it."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._lock = threading.Lock()
        self._memory = _Memory(None)

    def _memory_of(self, reader: Reader) -> _Memory:
        """What is known of the history that `reader` reads."""
        with self._lock:
            if self._memory.history != reader.history:
                self._memory = _Memory(reader.history)
            return self._memory

    def owner_ids(self, memory: _Memory, owners: set[Owner]) -> Mapping[Owner, int]:
        """The numbers of owners; made for those that have none."""
        known = {one: number for one in owners if (number := memory.owners.get(one)) is not None}
        missing = owners - known.keys()
        if missing:
            # Committed before it is remembered, and before a row refers to it.
            with self._core.store.recording() as recorder:
                memory.check(recorder)
                made = recorder.owner_ids(missing)
            for one, number in made.items():
                memory.owners.put(one, number, _OWNER_BYTES + sum(map(sys.getsizeof, one)))
            known |= made
        return known

    def place(self, host_id: str, licenses: set[str]) -> tuple[_Memory, int, int, set[str]]:
        """What is known, the host's scope, until when sums are deleted, and those of `licenses`
        that were never issued for it."""
        with self._core.store.reading() as reader:
            memory = self._memory_of(reader)
            host = reader.host(host_id)
            if host is None:
                raise Conflict("The host is gone", "Enrol it again")
            view = host.view
            alien = memory.licenses.not_given(reader, view, licenses)
            kept_ms = reader.usage_work().daily_kept_until_ms
        scope = UsageScope(view.org, view.project, view.environment, view.region)
        with self._lock:
            found = memory.scopes.get(scope)
        if found is None:
            with self._core.store.recording() as recorder:
                memory.check(recorder)
                found = recorder.scope_id(scope)
            with self._lock:
                memory.scopes[scope] = found
        return memory, found, kept_ms, alien

    def make_parts(self, memory: _Memory, days: Iterable[int], now_ms: int) -> None:
        """Parts of the table for today, tomorrow, and those of `days` that are near."""
        today = now_ms // DAY_MS
        wanted = {today, today + 1} | {
            day for day in days if today - _PARTS_BEFORE <= day <= today + _PARTS_AFTER
        }
        with self._lock:
            wanted -= memory.parts
        if not wanted:
            return
        try:
            with self._core.store.recording() as recorder:
                memory.check(recorder)
                recorder.make_parts(wanted)
        except PlaneError as error:
            # Somebody reads the default part. The rows go there, and are moved another time.
            if error.code is not ExitCode.BUSY:
                raise
            return
        with self._lock:
            memory.parts.update(wanted)
