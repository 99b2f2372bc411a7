# SPDX-License-Identifier: Apache-2.0
"""Events of the past, as a client asks for them: filtered first, then limited, read in parts."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any, Final

from licagent.daemon.decisions import Record, rfc3339
from licagent.store.eventlog import EventLog

_BATCH: Final = 256
"""Records in memory at once: a client may ask for a million."""


def select(log: EventLog, params: Mapping[str, Any], end: int) -> Iterator[Record]:
    """The newest `limit` events that match `params`, with numbers below `end`, oldest first.

    Reads the log while it is appended to; may run on any thread. Only sequence numbers of the
    matches are kept in memory.
    """
    limit = params["limit"] or 0
    if not limit:
        return iter(())
    first = 1
    if _is_plain(params):
        first = end - limit
    else:
        newest: deque[int] = deque(maxlen=limit)
        newest.extend(record["seq"] for record in _matching(log, params, 0, end))
        if not newest:
            return iter(())
        first = newest[0]
    return _matching(log, params, max(first - 1, 0), end)


def moment(text: str | None) -> str | None:
    """`since` as events write times. ValueError if it is no RFC 3339 time with a zone."""
    if not text:
        return None
    found = datetime.fromisoformat(text)
    if found.tzinfo is None:
        raise ValueError(f"{text!r} names no time zone")
    return rfc3339(found.timestamp())


def batch(records: Iterator[Record]) -> list[Record]:
    """The next few of them; none at the end."""
    return list(itertools.islice(records, _BATCH))


def is_wanted(record: Mapping[str, Any], params: Mapping[str, Any]) -> bool:
    """Whether an event matches the filters of `params`."""
    for key in ("verdict", "license", "resource"):
        if params[key] and record.get(key) != params[key]:
            return False
    process = record.get("process") or {}
    return not (params["pid"] and process.get("pid") != params["pid"])


def _is_plain(params: Mapping[str, Any]) -> bool:
    return not any(params[key] for key in ("since", "verdict", "license", "resource", "pid"))


def _matching(log: EventLog, params: Mapping[str, Any], after: int, end: int) -> Iterator[Record]:
    since = moment(params["since"])
    for record in log.read(after):
        if record["seq"] >= end:
            return
        if since and str(record.get("at", "")) < since:
            continue
        if is_wanted(record, params):
            yield record
