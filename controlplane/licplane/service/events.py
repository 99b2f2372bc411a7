# SPDX-License-Identifier: Apache-2.0
"""What is told to others, as CloudEvents 1.0, and the outbox entries that carry it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

from licplane.service.billing.reading import Notify, document_text
from licplane.store.deliveries import Delivery
from lictoken.validity import rfc3339

SOURCE = "/licplane"
THRESHOLD = "org.licagent.usage.threshold.v1"
BUDGET = "org.licagent.budget.alert.v1"
USAGE = "org.licagent.usage.v1"


def event_id(*parts: object) -> str:
    """The same thing has the same id, whoever finds it, and how often."""
    return hashlib.sha256("\0".join(map(str, parts)).encode(errors="replace")).hexdigest()


def cloud_event(
    kind: str, identity: str, subject: str, at_ms: int, data: Mapping[str, object]
) -> dict[str, object]:
    """A CloudEvent in structured mode."""
    return {
        "specversion": "1.0",
        "id": identity,
        "source": SOURCE,
        "type": kind,
        "subject": subject,
        "time": rfc3339(at_ms // 1000),
        "datacontenttype": "application/json",
        "data": data,
    }


def outbox(
    kind: str, name: str, event: Mapping[str, object], notify: Sequence[Notify], now_ms: int
) -> list[Delivery]:
    """An entry of the outbox for each who is to be told."""
    return [
        Delivery(
            event_id(event["id"], one.channel, one.target),
            kind,
            name,
            one.channel,
            one.target,
            document_text(event),
            "waiting",
            now_ms,
            0,
            now_ms,
        )
        for one in notify
    ]
