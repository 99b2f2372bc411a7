# SPDX-License-Identifier: Apache-2.0
"""Triggers: usage that passed a threshold is told once, and again in the next period."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fractions import Fraction

from licplane.service.billing.periods import Period, period_at
from licplane.service.billing.pricing import UNITS, Subject, decimal_text
from licplane.service.billing.reading import Trigger, parsed, read_trigger
from licplane.service.events import THRESHOLD, cloud_event, event_id, outbox
from licplane.service.usage.query import billed_lines
from licplane.store.deliveries import Delivery
from licplane.store.reader import Reader
from licplane.store.usage_sums import Window
from lictoken.validity import rfc3339


def crossed(reader: Reader, now_ms: int) -> list[Delivery]:
    """What all triggers have to tell, whether or not it was told before.

    The period before the current one is looked at too: usage comes late.
    """
    triggers = [read_trigger(parsed(one.document)) for one in reader.billing_documents("trigger")]
    known: dict[tuple[int, int], list[tuple[Subject, Mapping[str, int]]]] = {}
    found: list[Delivery] = []
    for trigger in triggers:
        now = period_at(trigger.period, now_ms)
        for period in (period_at(trigger.period, now.start_ms - 1), now):
            key = (period.start_ms, period.end_ms)
            if key not in known:
                sums = billed_lines(reader, Window(*key))
                known[key] = [(subject, one.quantities) for subject, one in sums]
            found += _of_period(trigger, period, known[key], now_ms)
    return found


def values_of(
    trigger: Trigger, lines: Iterable[tuple[Subject, Mapping[str, int]]]
) -> dict[str, int]:
    """What was used by each value of the trigger's dimension."""
    found: dict[str, int] = {}
    for subject, quantities in lines:
        if not trigger.choice.holds(subject):
            continue
        name = _named(trigger.by, subject)
        amount = sum(quantities.get(meter, 0) for meter in trigger.meters)
        found[name] = found.get(name, 0) + amount
    return found


def _named(by: str, subject: Subject) -> str:
    if not by:
        return ""
    if by == "project":
        return f"{subject.organization}/{subject.project}"
    return str(getattr(subject, by))


def _of_period(
    trigger: Trigger,
    period: Period,
    lines: Iterable[tuple[Subject, Mapping[str, int]]],
    now_ms: int,
) -> list[Delivery]:
    found: list[Delivery] = []
    for name, amount in sorted(values_of(trigger, lines).items()):
        value = Fraction(amount, UNITS[trigger.unit])
        for threshold in trigger.thresholds:
            if value < Fraction(threshold):
                break
            identity = event_id("trigger", trigger.name, period.label, name, f"{threshold:f}")
            data: dict[str, object] = {
                "trigger": trigger.name,
                "meters": list(trigger.meters),
                "unit": trigger.unit,
                "threshold": f"{threshold:f}",
                "value": decimal_text(value),
                "quantity": str(amount),
                "by": trigger.by,
                "subject": name,
                "period": period.label,
                "period_start": rfc3339(period.start_ms // 1000),
                "period_end": rfc3339(period.end_ms // 1000),
            }
            event = cloud_event(THRESHOLD, identity, name or "all", now_ms, data)
            found += outbox("trigger", trigger.name, event, trigger.notify, now_ms)
    return found
