# SPDX-License-Identifier: Apache-2.0
"""When to come back."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from licagent.control.backoff import Backoff, around


def test_it_is_spread_over_the_whole_time_and_capped():
    waits = []
    for seed in range(400):
        backoff = Backoff(1_000, 480_000, random.Random(seed))
        waits.append([backoff.next_ms() for _ in range(14)])
    for at, column in enumerate(zip(*waits, strict=True)):
        bound = min(1_000 << at, 480_000)
        assert max(column) <= bound
        assert min(column) < bound * 0.1
        assert 0.4 * bound < sum(column) / len(column) < 0.6 * bound


@given(st.integers(1, 2**32), st.integers(0, 40), st.integers())
def test_the_servers_word_counts(asked_ms, failures, seed):
    backoff = Backoff(1_000, 480_000, random.Random(seed))
    for _ in range(failures):
        backoff.next_ms()
    wait = backoff.next_ms(asked_ms)
    assert min(asked_ms, 480_000) <= wait <= min(asked_ms, 480_000) + 5_000


def test_success_begins_anew():
    backoff = Backoff(10, 480_000)
    for _ in range(12):
        backoff.next_ms()
    backoff.succeeded()
    assert backoff.next_ms() <= 10


def test_renewal_is_at_half_life_give_or_take_a_tenth():
    found = [around(1000, random.Random(seed)) for seed in range(300)]
    assert 900 <= min(found) < 920
    assert 1080 < max(found) <= 1100
