# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from licagent.daemon import history
from licagent.store.eventlog import EventLog

NOTHING = dict.fromkeys(("since", "verdict", "license", "resource", "pid"))


@pytest.fixture
def log(tmp_path: Path) -> Iterator[EventLog]:
    opened = EventLog(tmp_path)
    for number in range(1000):
        opened.append(
            {
                "at": f"2026-01-02T03:04:{number // 20:02d}.{number % 20 * 50:03d}Z",
                "verdict": "deny" if number % 100 == 7 else "allow",
                "process": {"pid": number},
            }
        )
    yield opened
    opened.close()


def told(log: EventLog, limit: int, end: int | None = None, **wanted: Any) -> list[int]:
    found = history.select(log, {**NOTHING, "limit": limit, **wanted}, end or log.next_sequence)
    numbers = []
    while batch := history.batch(found):
        assert len(batch) <= 256
        numbers += [record["seq"] for record in batch]
    return numbers


def test_the_newest_are_told_oldest_first(log: EventLog) -> None:
    assert told(log, 3) == [998, 999, 1000]
    assert told(log, 5000) == list(range(1, 1001))
    assert told(log, 0) == []


def test_the_limit_counts_what_the_filters_let_through(log: EventLog) -> None:
    assert told(log, 3, verdict="deny") == [708, 808, 908]
    assert told(log, 3, pid=5) == [6]
    assert told(log, 3, license="none") == []


def test_nothing_is_told_that_came_after_the_question(log: EventLog) -> None:
    assert told(log, 2, end=501) == [499, 500]
    assert told(log, 2, end=501, verdict="deny") == [308, 408]


def test_a_moment_is_compared_as_a_time_and_not_as_a_text(log: EventLog) -> None:
    # ".050Z" sorts before "Z"
    assert told(log, 5000, since="2026-01-02T03:04:49Z") == list(range(981, 1001))
    assert told(log, 5000, since="2026-01-02T04:04:49+01:00") == list(range(981, 1001))
    for text in ("2026-01-02T03:04:49", "yesterday"):
        with pytest.raises(ValueError, match=r"zone|isoformat"):
            history.moment(text)
