# SPDX-License-Identifier: Apache-2.0
"""Usage and bills for other programs: CloudEvents 1.0, and the columns of FOCUS 1.2."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from typing import Final

from licplane.service import paging
from licplane.service.access import Permission, require
from licplane.service.billing.bills import Bill, bill_of
from licplane.service.billing.pricing import MINIMUM, Charge, Plan, decimal_text
from licplane.service.core import Core
from licplane.service.events import USAGE, cloud_event
from licplane.service.explaining import record_document, record_id
from licplane.service.requests import PageRequest
from licplane.service.texts import refuse
from licplane.service.values import Actor
from licplane.store.reader import Reader
from licplane.store.usage_sums import FOREVER_MS, Window
from lictoken.validity import rfc3339

FOCUS_COLUMNS: Final = (
    "BilledCost",
    "BillingAccountId",
    "BillingAccountName",
    "BillingCurrency",
    "BillingPeriodEnd",
    "BillingPeriodStart",
    "ChargeCategory",
    "ChargeClass",
    "ChargeDescription",
    "ChargeFrequency",
    "ChargePeriodEnd",
    "ChargePeriodStart",
    "ConsumedQuantity",
    "ConsumedUnit",
    "ContractedCost",
    "EffectiveCost",
    "InvoiceId",
    "InvoiceIssuerName",
    "ListCost",
    "PricingCategory",
    "PricingQuantity",
    "PricingUnit",
    "ProviderName",
    "PublisherName",
    "ServiceCategory",
    "ServiceName",
    "SkuId",
    "SubAccountId",
    "SubAccountName",
    "Tags",
    "x_Entry",
    "x_Meters",
    "x_Quantity",
)
"""Those of FOCUS 1.2 that apply, in the order of their names, and ours behind (x_)."""
_ISSUER: Final = "licplane"
_UNIT_NAMES: Final = {
    "core-second": "Core-Seconds",
    "core-minute": "Core-Minutes",
    "core-hour": "Core-Hours",
    "kB": "KB",
    "each": "Units",
    "thousand": "1000 Units",
    "million": "1000000 Units",
}
"""FOCUS's Unit Format where it is not our own name with time in capitals and plural."""


def focus_unit(unit: str) -> str:
    """A unit of ours as FOCUS 1.2 writes it (its attribute Unit Format)."""
    if unit in _UNIT_NAMES:
        return _UNIT_NAMES[unit]
    size, _, time = unit.partition("-")
    return f"{size}-{time.capitalize()}s" if time else size


@dataclass(frozen=True, slots=True)
class Exported:
    """A part of an export."""

    text: str
    next_token: str = ""


class UsageExport:
    """Exporting."""

    def __init__(self, core: Core) -> None:
        self._core = core

    def events(self, actor: Actor, since_ms: int, until_ms: int, page: PageRequest) -> Exported:
        """Records of a window as CloudEvents, one JSON object a line. Their ids are for ever: who
        takes the same record twice can tell."""
        require(actor, Permission.READ_USAGE)
        window = Window(since_ms, until_ms or FOREVER_MS)
        if not 0 <= window.since_ms < window.until_ms:
            raise refuse("The window ends before it begins", "Give --since before --until")
        size = paging.size_of(page)
        key = paging.key_of(page, 3)
        after = (key[0], int(key[1]), int(key[2])) if key else ("", 0, 0)
        with self._core.store.reading() as reader:
            rows = reader.usage_records_of(window, after=after, limit=size + 1)
        lines = []
        for one in rows[:size]:
            document = record_document(one)
            event = cloud_event(
                USAGE, record_id(one), one.license or "unlicensed", one.end_ms, document
            )
            event["source"] = f"/licagent/hosts/{one.host_id}"
            lines.append(json.dumps(event, ensure_ascii=False, separators=(",", ":")) + "\n")
        if len(rows) <= size:
            return Exported("".join(lines))
        last = rows[size - 1]
        token = paging.token_of(last.host_id, str(last.epoch), str(last.sequence))
        return Exported("".join(lines), token)

    def focus(self, actor: Actor, plan: str, label: str) -> Exported:
        """A bill as CSV with the columns of FOCUS: each entry, or what an open one comes to."""
        require(actor, Permission.READ_USAGE)
        with self._core.store.reading() as reader:
            return Exported(_focus(reader, plan, label, self._core.now_ms()))


def _focus(reader: Reader, plan: str, label: str, now_ms: int) -> str:
    bill = bill_of(reader, plan, label, now_ms)
    file = io.StringIO()
    writer = csv.DictWriter(file, FOCUS_COLUMNS, lineterminator="\r\n")
    writer.writeheader()
    if bill.entries:
        for entry in bill.entries:
            charge = Charge(entry.account, entry.item, entry.quantity, Decimal(entry.amount))
            is_correction = entry.kind == "correction"
            writer.writerow(_row(bill, charge, is_correction=is_correction, entry=entry.entry))
    else:
        for line in bill.lines:
            writer.writerow(_row(bill, line, is_correction=False, entry=0))
    return file.getvalue()


def _row(bill: Bill, line: Charge, *, is_correction: bool, entry: int) -> Mapping[str, str]:
    plan = bill.plan
    cost = f"{line.amount:f}"
    start, end = rfc3339(bill.start_ms // 1000), rfc3339(bill.end_ms // 1000)
    units, unit, meters = _units(plan, line)
    is_usage = line.item != MINIMUM
    return {
        "BilledCost": cost,
        "BillingAccountId": safe_cell(plan.name),
        "BillingAccountName": safe_cell(plan.name),
        "BillingCurrency": plan.currency,
        "BillingPeriodEnd": end,
        "BillingPeriodStart": start,
        "ChargeCategory": "Usage" if is_usage else "Adjustment",
        "ChargeClass": "Correction" if is_correction else "",
        "ChargeDescription": safe_cell(f"{line.item} of {line.account or 'no license'}"),
        "ChargeFrequency": "Usage-Based" if is_usage else "Recurring",
        "ChargePeriodEnd": end,
        "ChargePeriodStart": start,
        "ConsumedQuantity": units,
        "ConsumedUnit": unit,
        "ContractedCost": cost,
        "EffectiveCost": cost,
        "InvoiceId": bill.period if bill.state == "closed" else "",
        "InvoiceIssuerName": _ISSUER,
        "ListCost": cost,
        "PricingCategory": "Standard" if is_usage else "",
        "PricingQuantity": units,
        "PricingUnit": unit,
        "ProviderName": _ISSUER,
        "PublisherName": _ISSUER,
        "ServiceCategory": _category(meters),
        "ServiceName": safe_cell(line.item),
        "SkuId": safe_cell(f"{plan.name}/{line.item}") if is_usage else "",
        "SubAccountId": safe_cell(line.account),
        "SubAccountName": safe_cell(line.account),
        "Tags": json.dumps({plan.account: line.account}, ensure_ascii=False),
        "x_Entry": str(entry) if entry else "",
        "x_Meters": " ".join(meters),
        "x_Quantity": str(line.quantity) if is_usage else "",
    }


def _units(plan: Plan, line: Charge) -> tuple[str, str, Sequence[str]]:
    for item in plan.items:
        if item.name == line.item:
            units = decimal_text(Fraction(line.quantity, item.divisor), 9)
            return units, focus_unit(item.unit), item.meters
    return "", "", ()


def _category(meters: Sequence[str]) -> str:
    """FOCUS's ServiceCategory."""
    if any(one in ("cpu_ns", "memory_byte_ms", "processes") for one in meters):
        return "Compute"
    if any(one.startswith(("tx_", "rx_")) for one in meters):
        return "Networking"
    return "Storage" if meters else "Other"


def safe_cell(text: str) -> str:
    """A text that no spreadsheet takes for a formula."""
    return f"'{text}" if text[:1] in ("=", "+", "-", "@", "\t", "\r") else text
