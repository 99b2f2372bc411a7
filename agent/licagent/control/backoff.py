# SPDX-License-Identifier: Apache-2.0
"""When to come back, so that a fleet does not come back all at once."""

from __future__ import annotations

import random
from typing import Final

_ASKED_JITTER_MAX_MS: Final = 5_000
_DOUBLINGS_MAX: Final = 30


class Backoff:
    """Full jitter: any time up to a bound that doubles with each failure, up to a cap.

    Half the hosts come back in half the time; no two in step (Brooker, "Exponential Backoff and
    Jitter"). Where the server says when, its word counts, and a little is added to it.
    """

    def __init__(self, first_ms: int, cap_ms: int, chance: random.Random | None = None) -> None:
        self._first_ms = first_ms
        self._cap_ms = cap_ms
        self._random = chance or random.SystemRandom()
        self.failures = 0

    def succeeded(self) -> None:
        """The link was up."""
        self.failures = 0

    def next_ms(self, retry_after_ms: int = 0) -> int:
        """How long to wait after one more failure. `retry_after_ms` is the server's word, or 0."""
        self.failures += 1
        if retry_after_ms > 0:
            asked_ms = min(retry_after_ms, self._cap_ms)
            return asked_ms + self._random.randint(0, min(asked_ms // 2, _ASKED_JITTER_MAX_MS))
        bound_ms = self._first_ms << min(self.failures - 1, _DOUBLINGS_MAX)
        return self._random.randint(0, min(bound_ms, self._cap_ms))


def around(half_ms: float, chance: random.Random | None = None) -> float:
    """`half_ms`, give or take a tenth: when to renew what lasts twice as long."""
    return half_ms * (chance or random.SystemRandom()).uniform(0.9, 1.1)
