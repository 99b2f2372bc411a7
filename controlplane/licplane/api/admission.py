# SPDX-License-Identifier: Apache-2.0
"""Who may come in now, and when to come back else: so that a storm of hosts is served in turn."""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Callable

from licplane.api.settings import Admission


class TokenBucket:
    """Lets `rate_a_second` through on average, `burst` at once."""

    def __init__(self, rate_a_second: float, burst: int, clock: Callable[[], float]) -> None:
        self._rate = rate_a_second
        self._burst = burst
        self._clock = clock
        self._level = float(burst)
        self._at = clock()

    def take(self) -> bool:
        """Whether one more may pass now."""
        now = self._clock()
        self._level = min(self._burst, self._level + (now - self._at) * self._rate)
        self._at = now
        if self._level < 1:
            return False
        self._level -= 1
        return True

    def give_back(self) -> None:
        """One that passed did not count after all."""
        self._level = min(self._burst, self._level + 1)


class Pace:
    """How long those who are turned away should stay away."""

    def __init__(self, settings: Admission, clock: Callable[[], float]) -> None:
        self._settings = settings
        self._clock = clock
        self._booked_until_s = clock()

    def retry_after_ms(self) -> int:
        """A moment of its own for each, at the rate of admission, with jitter.

        Nobody stands in line: the times that were given out are booked one behind the other,
        so a fleet of any size spreads over as long as it takes and no longer.
        """
        now = self._clock()
        self._booked_until_s = max(self._booked_until_s, now)
        self._booked_until_s += 1 / max(self._settings.streams_a_second, 0.001)
        wait_ms = (self._booked_until_s - now) * 1000
        low, high = self._settings.retry_after_min_ms, self._settings.retry_after_max_ms
        middle = max(low, min(high, wait_ms))
        jitter = random.uniform(0.5, 1.5)  # noqa: S311  # spreads load, hides nothing
        return int(max(low, min(high, middle * jitter)))


class Slots:
    """At most `count` holders at once; the others wait in the order in which they came."""

    def __init__(self, count: int) -> None:
        self._free = count
        self._count = count
        self._line: deque[asyncio.Future[None]] = deque()

    @property
    def taken(self) -> int:
        """How many are held."""
        return self._count - self._free

    @property
    def waiting(self) -> int:
        """How many stand in line."""
        return len(self._line)

    def is_full(self, waiting_max: int) -> bool:
        """Whether there is neither a slot nor a place in a line of that length."""
        return self._free == 0 and len(self._line) >= waiting_max

    async def take(self) -> None:
        """Wait for a slot; every taken one is given back once."""
        if self._free > 0 and not self._line:
            self._free -= 1
            return
        turn = asyncio.get_running_loop().create_future()
        self._line.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.give_back()  # it was our turn, and we are no longer there
            else:
                self._line.remove(turn)
            raise

    def give_back(self) -> None:
        """To the next in line, or to whoever comes."""
        while self._line:
            turn = self._line.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self._free += 1
