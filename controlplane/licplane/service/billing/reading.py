# SPDX-License-Identifier: Apache-2.0
"""Price plans, triggers and budgets as people write them, checked (docs/reference/billing.md).

Numbers of money and units are whole numbers or texts ("0.035"): what a file calls a float has no
exact value, and is refused.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit

from licplane.errors import ExitCode, PlaneError
from licplane.service.billing.fields import (
    CHOICE,
    FLAGS,
    bad_value,
    choice_of,
    list_of,
    meters_of,
    number_of,
    numbers_of,
    unit_of,
)
from licplane.service.billing.pricing import Choice, Item, Plan, Tier
from licplane.service.texts import refuse
from lictoken.errors import TokenError
from lictoken.fields import NAME, Fields

KINDS: Final = ("plan", "trigger", "budget")
KEPT: Final = "(kept)"
"""What stands for a secret where a document is shown; applied again, the secret stays."""
ACCOUNTS: Final = ("license", "organization", "project", "environment", "region", "resource")
_CURRENCY: Final = re.compile(r"[A-Z]{3}", re.ASCII)
_COMMAND: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", re.ASCII)
_ITEMS_MAX: Final = 64
_HOUR_MS: Final = 3_600_000
_LOCAL: Final = frozenset({"localhost", "127.0.0.1", "::1"})

Made = TypeVar("Made")


@dataclass(frozen=True, slots=True)
class Notify:
    """Whom to tell, and how."""

    channel: str  # webhook, command or log
    target: str  # URL, name of a command, or ""
    secret: str = ""  # of a webhook: in the clear here, or
    secret_file: str = ""  # in a file of the server


@dataclass(frozen=True, slots=True)
class Trigger:
    """Tell somebody when usage passes a threshold."""

    name: str
    meters: tuple[str, ...]
    unit: str
    thresholds: tuple[Decimal, ...]  # in the unit, rising
    period: str  # hour, day, week or month: usage is counted from its start
    by: str  # counted for each value of this dimension; "" for all together
    choice: Choice
    notify: tuple[Notify, ...]


@dataclass(frozen=True, slots=True)
class Budget:
    """What may be spent or used in a period."""

    name: str
    amount: Decimal  # money of the plan, or units
    period: str
    alerts: tuple[Decimal, ...]  # percent of the amount
    forecast_alerts: tuple[Decimal, ...]
    notify: tuple[Notify, ...]
    plan: str = ""  # of money; else meters and unit
    account: str = ""  # of the plan; "" for all
    meters: tuple[str, ...] = ()
    unit: str = ""
    choice: Choice = field(default_factory=Choice)


def document_text(value: Mapping[str, object]) -> str:
    """A document as it is stored and compared."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def parsed(text: str) -> dict[str, Any]:
    """A document's JSON. Raises PlaneError USAGE."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise refuse("The document is no JSON", "Send a JSON object") from error
    if not isinstance(value, dict):
        raise refuse("The document is no JSON object", "Send a JSON object")
    return value


def read_plan(value: Mapping[str, object]) -> Plan:
    """A price plan. Raises PlaneError USAGE."""
    return _read("plan", value, _plan)


def read_trigger(value: Mapping[str, object]) -> Trigger:
    """A trigger. Raises PlaneError USAGE."""
    return _read("trigger", value, _trigger)


def read_budget(value: Mapping[str, object]) -> Budget:
    """A budget. Raises PlaneError USAGE."""
    return _read("budget", value, _budget)


READERS: Final[dict[str, Callable[[Mapping[str, object]], Any]]] = {
    "plan": read_plan,
    "trigger": read_trigger,
    "budget": read_budget,
}


def without_secrets(value: Mapping[str, Any]) -> dict[str, Any]:
    """The document as it may be shown: secrets of webhooks are left out."""
    shown = dict(value)
    if isinstance(shown.get("notify"), list):
        shown["notify"] = [
            {**one, "secret": KEPT} if isinstance(one, dict) and "secret" in one else one
            for one in shown["notify"]
        ]
    return shown


def _read(
    kind: str, value: Mapping[str, object], read: Callable[[Mapping[str, object]], Made]
) -> Made:
    try:
        return read(value)
    except TokenError as error:
        name = value.get("name")
        named = f" {name}" if isinstance(name, str) and NAME.fullmatch(name) else ""
        raise PlaneError(
            ExitCode.USAGE,
            f"The {kind}{named} is refused: {error.detail}",
            "See docs/reference/billing.md",
        ) from error


def _plan(value: Mapping[str, object]) -> Plan:
    known = ("name", "currency", "account", "period", "digits", "rounding", "minimum")
    fields = Fields(value, "", (*known, "close_after_hours", "item", *CHOICE, *FLAGS))
    items = tuple(
        _item(one, f"item[{at}]") for at, one in enumerate(list_of(fields, "item", _ITEMS_MAX))
    )
    names = [item.name for item in items]
    if len(set(names)) != len(names) or "minimum" in names:
        raise bad_value("item: each needs a name of its own, other than minimum")
    return Plan(
        name=fields.text("name", NAME),
        currency=fields.text("currency", _CURRENCY),
        items=items,
        choice=choice_of(fields),
        account=fields.choice("account", ACCOUNTS, "license"),
        period=fields.choice("period", ("day", "week", "month"), "month"),
        digits=fields.integer("digits", 0, 9, 2),
        half_up=fields.choice("rounding", ("half-even", "half-up"), "half-even") == "half-up",
        minimum=number_of(fields, "minimum", Decimal(0)),
        close_after_ms=fields.integer("close_after_hours", 0, 24 * 366, 72) * _HOUR_MS,
    )


def _item(value: object, place: str) -> Item:
    known = ("name", "meters", "unit", "included", "mode", "tier", "price", "resources")
    fields = Fields(value, place, known)
    meters = meters_of(fields)
    if fields.has("tier") == fields.has("price"):
        raise bad_value(f"{place}: give either price, or a list of tier")
    if fields.has("price"):
        tiers: tuple[Tier, ...] = (Tier(None, number_of(fields, "price")),)
    else:
        tiers = tuple(
            _tier(one, f"{place}.tier[{at}]")
            for at, one in enumerate(list_of(fields, "tier", _ITEMS_MAX))
        )
    bounds = [tier.up_to for tier in tiers]
    if bounds[-1] is not None or any(one is None for one in bounds[:-1]):
        raise bad_value(f"{place}.tier: the last one has no up_to, and each other one has")
    rising = [one for one in bounds if one is not None]
    if any(one >= other for one, other in itertools.pairwise(rising)):
        raise bad_value(f"{place}.tier: up_to must rise from one to the next")
    return Item(
        name=fields.text("name", NAME),
        meters=meters,
        unit=unit_of(fields, meters),
        tiers=tiers,
        included=number_of(fields, "included", Decimal(0)),
        by_volume=fields.choice("mode", ("graduated", "volume"), "graduated") == "volume",
        resources=fields.texts("resources"),
    )


def _tier(value: object, place: str) -> Tier:
    fields = Fields(value, place, ("up_to", "price"))
    bound = number_of(fields, "up_to") if fields.has("up_to") else None
    return Tier(bound, number_of(fields, "price"))


def _trigger(value: Mapping[str, object]) -> Trigger:
    known = ("name", "meters", "unit", "thresholds", "period", "by", "notify")
    fields = Fields(value, "", (*known, *CHOICE, *FLAGS))
    meters = meters_of(fields)
    return Trigger(
        name=fields.text("name", NAME),
        meters=meters,
        unit=unit_of(fields, meters),
        thresholds=numbers_of(fields, "thresholds"),
        period=fields.choice("period", ("hour", "day", "week", "month"), "month"),
        by=fields.choice("by", (*ACCOUNTS, "host"), "license") if fields.has("by") else "",
        choice=choice_of(fields),
        notify=_notify(fields),
    )


def _budget(value: Mapping[str, object]) -> Budget:
    known = ("name", "amount", "period", "alerts", "forecast_alerts", "notify", "plan", "account")
    fields = Fields(value, "", (*known, "meters", "unit", *CHOICE, *FLAGS))
    if fields.has("plan") == fields.has("meters"):
        raise bad_value("give either plan, for a budget of money, or meters and unit")
    is_money = fields.has("plan")
    if is_money and (fields.has("period") or fields.has("unit")):
        raise bad_value("a budget of money has the period of its plan, and no unit")
    meters = () if is_money else meters_of(fields)
    return Budget(
        name=fields.text("name", NAME),
        amount=number_of(fields, "amount"),
        period="" if is_money else fields.choice("period", ("day", "week", "month"), "month"),
        alerts=numbers_of(fields, "alerts") if fields.has("alerts") else (),
        forecast_alerts=numbers_of(fields, "forecast_alerts")
        if fields.has("forecast_alerts")
        else (),
        notify=_notify(fields) if fields.has("notify") else (),
        plan=fields.text("plan", NAME) if is_money else "",
        account=fields.optional_text("account") or "",
        meters=meters,
        unit="" if is_money else unit_of(fields, meters),
        choice=choice_of(fields),
    )


def _notify(fields: Fields) -> tuple[Notify, ...]:
    return tuple(
        _one_notify(one, f"notify[{at}]") for at, one in enumerate(list_of(fields, "notify", 8))
    )


def _one_notify(value: object, place: str) -> Notify:
    fields = Fields(value, place, ("webhook", "secret", "secret_file", "command", "log"))
    channels = [name for name in ("webhook", "command", "log") if fields.has(name)]
    if len(channels) != 1:
        raise bad_value(f"{place}: give one of webhook, command and log")
    if channels[0] == "log":
        if fields.get("log") is not True:
            raise bad_value(f"{place}.log is not true")
        return Notify("log", "")
    if channels[0] == "command":
        return Notify("command", fields.text("command", _COMMAND))
    url = fields.text("webhook")
    _check_url(url, f"{place}.webhook")
    if fields.has("secret") == fields.has("secret_file"):
        raise bad_value(f"{place}: a webhook needs secret or secret_file, to be signed with")
    secret = fields.optional_text("secret") or ""
    secret_file = fields.optional_text("secret_file") or ""
    if secret and secret != KEPT and len(secret) < 16:
        raise bad_value(f"{place}.secret has fewer than 16 characters")
    if secret_file and not secret_file.startswith("/"):
        raise bad_value(f"{place}.secret_file is no absolute path")
    return Notify("webhook", url, secret, secret_file)


def _check_url(url: str, place: str) -> None:
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
        _ = parts.port
    except ValueError as error:
        raise bad_value(f"{place} is no URL") from error
    if parts.username or parts.password or parts.fragment or not host:
        raise bad_value(f"{place} needs a host, and has no user, password or fragment")
    if parts.scheme != "https" and not (parts.scheme == "http" and host in _LOCAL):
        raise bad_value(f"{place} is not https (http is for this machine itself)")
