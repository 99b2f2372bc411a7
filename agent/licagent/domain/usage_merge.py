# SPDX-License-Identifier: Apache-2.0
"""Merging usage: fewer records, the same sums to the unit. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any, Final

from licagent.domain.usage import Meter, UsageKind, UsageRecord

QUANTITY_MAX: Final = 2**63 - 1
"""The largest quantity of a record: the signed 64 bits of a database's column."""


def merge(records: Iterable[UsageRecord], *, by_process: bool = True) -> list[UsageRecord]:
    """One record for all that differ only in interval and quantities.

    The interval of the result goes from the earliest start to the latest end. A meter that is
    estimated in one of them is so in the result; records whose unsupported meters differ stay
    apart, for the sum of a number and of nothing is neither. A sum beyond QUANTITY_MAX becomes
    several records, none of them larger. With `by_process` False the processes of an owner are
    one too (pid 0). GAP records are told one by one and stay as they are.
    """
    open_: dict[tuple[Any, ...], UsageRecord] = {}
    done: list[UsageRecord] = []
    for each in records:
        if each.kind is UsageKind.GAP:
            done.append(each)
            continue
        record = each if by_process else _without_process(each)
        key = _key(record)
        before = open_.get(key)
        if before is None:
            open_[key] = record
            continue
        total = _sum(before, record)
        if total is None:
            done.append(before)
            open_[key] = record
        else:
            open_[key] = total
    return done + list(open_.values())


def _without_process(record: UsageRecord) -> UsageRecord:
    owner = record.owner
    if not owner.pid and not owner.process_start_unix_ms:
        return record
    return replace(record, owner=replace(owner, pid=0, process_start_unix_ms=0))


def _key(record: UsageRecord) -> tuple[Any, ...]:
    return (
        record.kind,
        record.owner,
        record.license,
        record.resource,
        record.binding,
        record.protocol,
        record.is_loopback,
        record.unsupported,
        record.detail,
    )


def _sum(one: UsageRecord, other: UsageRecord) -> UsageRecord | None:
    total: dict[Meter, int] = dict(one.quantities)
    for meter, quantity in other.quantities.items():
        total[meter] = total.get(meter, 0) + quantity
        if total[meter] > QUANTITY_MAX:
            return None
    return replace(
        one,
        start_unix_ms=min(one.start_unix_ms, other.start_unix_ms),
        end_unix_ms=max(one.end_unix_ms, other.end_unix_ms),
        quantities=total,
        estimated=one.estimated | other.estimated,
    )
