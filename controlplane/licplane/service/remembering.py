# SPDX-License-Identifier: Apache-2.0
"""A memory whose size hosts cannot choose: bounded by bytes, not by entries."""

from __future__ import annotations

import threading
from collections.abc import Hashable
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class Remembered(Generic[Key, Value]):
    """Keeps what was asked for lately. Threads may share it.

    Two halves: when the young one is full it becomes the old one, and what was in that is
    forgotten. So what is in use stays, and forgetting costs nothing.
    """

    def __init__(self, bytes_max: int) -> None:
        self._half = bytes_max // 2
        self._lock = threading.Lock()
        self._young: dict[Key, tuple[Value, int]] = {}
        self._old: dict[Key, tuple[Value, int]] = {}
        self._bytes = 0  # of the young half

    def __len__(self) -> int:
        return len(self._young) + len(self._old)

    def get(self, key: Key) -> Value | None:
        """What was put under the key, or None."""
        found = self._young.get(key)
        if found is None:
            found = self._old.get(key)
            if found is None:
                return None
            self.put(key, *found)
        return found[0]

    def put(self, key: Key, value: Value, size: int) -> None:
        """Keep `value`; `size` is what it takes with its key, in bytes."""
        with self._lock:
            if key in self._young:
                return
            if self._bytes + size > self._half:
                self._old, self._young, self._bytes = self._young, {}, 0
            if size <= self._half:
                self._young[key] = (value, size)
                self._bytes += size
