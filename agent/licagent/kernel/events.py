# SPDX-License-Identifier: Apache-2.0
"""Events and counters: what the kernel tells of its decisions."""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from licagent.domain.reason import Reason, Verdict
from licagent.kernel import libbpf
from licagent.kernel.bpffs import PinFolder
from licagent.kernel.enforcement_structs import CounterKey, Event, Repeat, RepeatKey
from licagent.kernel.maps import Map, possible_cpus
from licagent.kernel.numbers import Fault

_U32: Final = struct.Struct("=I")
_REPEAT_SETTLED_NS: Final = 1_500_000_000


@dataclass(frozen=True, slots=True)
class Counter:
    """An exact number of decisions since the tables were made."""

    license: int
    resource: int
    verdict: Verdict
    reason: Reason
    count: int


class EventReader:
    """The ring buffer. `fileno` is an epoll descriptor for the event loop."""

    def __init__(self, pins: PinFolder, handle: Callable[[Event], None]) -> None:
        self._map = Map(pins.maps / "events")
        size = ctypes.sizeof(Event)

        def sample(_context: int, data: int, length: int) -> int:
            if length >= size:
                handle(Event.from_buffer_copy(ctypes.string_at(data, size)))
            return 0

        self._callback = libbpf.SAMPLE_CALLBACK(sample)  # alive as long as the ring
        self._ring = libbpf.library().ring_buffer__new(self._map.fd, self._callback, None, None)
        if not self._ring:
            raise libbpf.BpfError(ctypes.get_errno(), "open the event ring")

    def fileno(self) -> int:
        """Readable when events wait."""
        return int(libbpf.library().ring_buffer__epoll_fd(self._ring))

    def consume(self) -> int:
        """Handle all events that wait; their number."""
        return libbpf.check(libbpf.library().ring_buffer__consume(self._ring), "read events")

    def close(self) -> None:
        """Free the ring."""
        if self._ring:
            libbpf.library().ring_buffer__free(self._ring)
            self._ring = None
            self._map.close()


class Counters:
    """`counters`, `faults`, `usage` and the repeats that no event has told of yet."""

    def __init__(self, pins: PinFolder) -> None:
        self._counters = Map(pins.maps / "counters")
        self._faults = Map(pins.maps / "faults")
        self._repeats = Map(pins.maps / "repeats")

    def prepare(self) -> None:
        """Make the counters that a full table spills into."""
        for verdict in Verdict:
            for reason in Reason:
                key = CounterKey(license=0, resource=0, verdict=int(verdict), reason=int(reason))
                raw = ctypes.string_at(ctypes.addressof(key), ctypes.sizeof(key))
                if self._counters.lookup_sum(raw) == 0:
                    zeros = bytes(8 * possible_cpus())
                    try:
                        self._counters.update(raw, zeros, libbpf.BPF_NOEXIST)
                    except libbpf.BpfError:
                        continue

    def read(self) -> list[Counter]:
        """All counters that are not zero."""
        found = []
        for key in list(self._counters.keys()):
            count = self._counters.lookup_sum(key)
            if not count:
                continue
            fields = CounterKey.from_buffer_copy(key)
            found.append(
                Counter(
                    fields.license,
                    fields.resource,
                    Verdict(fields.verdict),
                    Reason(fields.reason),
                    count,
                )
            )
        return found

    def fault(self, fault: Fault) -> int:
        """How often something was lost."""
        return self._faults.lookup_sum(_U32.pack(int(fault)))

    def take_settled(self, now_ns: int) -> list[tuple[RepeatKey, int]]:
        """Repeats that ended without an event of their own: the tail of a flood.

        Returns (key, count) and takes them off, so that events add up to the counters.
        """
        settled = []
        for key, raw in self._repeats.items():
            repeat = Repeat.from_buffer_copy(raw)
            if not repeat.pending or now_ns - repeat.emitted_ns < _REPEAT_SETTLED_NS:
                continue
            fields = RepeatKey.from_buffer_copy(key)
            if fields.verdict == int(Verdict.ALLOW):
                continue  # these are told with the next event of their minute
            # Deleting it makes the next repeat tell at once, which is right after a pause.
            final = self._repeats.lookup(key)
            if final is not None and self._repeats.delete(key):
                settled.append((fields, Repeat.from_buffer_copy(final).pending))
        return settled

    def close(self) -> None:
        """Close the maps."""
        for table in (self._counters, self._faults, self._repeats):
            table.close()
