# SPDX-License-Identifier: Apache-2.0
"""Values as people write them on the command line."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Final

import click

from lictoken.claims import (
    ACTIONS,
    EXHAUSTIONS,
    I64_MAX,
    SELECTOR_KINDS,
    TIME_MAX_S,
    WINDOWS,
    Condition,
    Entitlement,
    Limit,
)
from lictoken.conditions import problem_of, split_values
from lictoken.errors import TokenError
from lictoken.fields import check_choice, check_text, suggestion

_CONDITION: Final = re.compile(
    r"(?:(?!label:|posture:)(?P<resource>.+?):)?(?P<kind>(?:label|posture):[^:]+|[^:]+)", re.ASCII
)
_UNITS_S: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
_DURATION: Final = re.compile(r"(\d{1,12})([smhdw])", re.ASCII)
_RFC3339: Final = re.compile(r"\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d([Zz]|[+-]\d\d:\d\d)", re.ASCII)
_FACTORS: Final = {
    "": 1,
    **{unit: 1000 ** (at + 1) for at, unit in enumerate("kMGTP")},
    **{f"{unit}i": 1024 ** (at + 1) for at, unit in enumerate("KMGTP")},
}
_AMOUNT: Final = re.compile(r"(\d{1,19})([kMGTP]|[KMGTP]i)?", re.ASCII)
_ACTION_TAIL: Final = re.compile(r"(.+):([A-Za-z,]*)", re.ASCII)
_LABEL: Final = re.compile(r"[a-z][a-z0-9_-]{0,62}", re.ASCII)
_RIGHT: Final = re.compile(
    r"(?:(?P<resource>[^=]+):)?(?P<name>[^:=]+)=(?P<value>[^:]+)(?::(?P<last>[^:]+))?"
)


def duration_s(text: str) -> int:
    """`90d`, `20s`... or plain seconds, as seconds."""
    match = _DURATION.fullmatch(text)
    if match:
        return int(match[1]) * _UNITS_S[match[2]]
    if text.isascii() and text.isdigit() and len(text) <= 12:
        return int(text)
    raise click.BadParameter(f"{text!r} is no duration; write 20s, 15m, 12h, 90d or 4w")


def moment_s(text: str, now_s: int) -> int:
    """An RFC 3339 time, `now`, or `+90d` / `-20s` from now; as seconds since 1970."""
    if text == "now":
        return now_s
    if text[:1] in ("+", "-"):
        distance_s = duration_s(text[1:])
        result = now_s + distance_s if text[0] == "+" else now_s - distance_s
    elif _RFC3339.fullmatch(text):
        try:
            result = int(datetime.fromisoformat(text.upper()).astimezone(UTC).timestamp())
        except (ValueError, OverflowError) as error:
            raise click.BadParameter(f"{text!r} is no time: {error}") from error
    else:
        raise click.BadParameter(
            f"{text!r} is no time; write it with its zone, as in 2026-12-31T00:00:00Z,"
            " or from now, as in +90d"
        )
    if not 0 <= result <= TIME_MAX_S:
        raise click.BadParameter(f"{text!r} is outside 1970..2262")
    return result


def selector(text: str) -> str:
    """A selector whose kind exists; its value is judged by the agent."""
    kind = text if text == "host" else ":".join(text.split(":", 2)[:2])
    value = "host" if text == "host" else text[len(kind) + 1 :]
    if kind not in SELECTOR_KINDS or not value:
        raise click.BadParameter(
            f"{text!r} is no selector{suggestion(kind, SELECTOR_KINDS)}"
            f". Kinds: {', '.join(f'{one}:...' for one in SELECTOR_KINDS[:-1])}, host"
        )
    return text


def entitlements(
    resources: Sequence[str], limits: Sequence[str], conditions: Sequence[str]
) -> tuple[Entitlement, ...]:
    """What `--resource`, `--limit` and `--condition` together grant."""
    found: dict[str, Entitlement] = {}
    for text in resources:
        name, chosen = _resource(text)
        if name in found:
            raise click.BadParameter(f"--resource {name} is given twice")
        found[name] = Entitlement(name, chosen)
    for text in limits:
        match = _right(text, "--limit", "METER=NUMBER[/WINDOW][:deny|throttle|report]")
        amount, _, window = match["value"].partition("/")
        limit = Limit(
            meter=match["name"],
            limit=_amount(amount, text),
            window=_checked_choice(window or "total", f"--limit {text!r}: window", WINDOWS),
            on_exhaustion=_checked_choice(
                match["last"] or "deny", f"--limit {text!r}: at the limit", EXHAUSTIONS
            ),
        )
        for name in _concerned(match["resource"], found, text):
            found[name] = replace(found[name], limits=(*found[name].limits, limit))
    for text in conditions:
        resource, condition = _condition(text)
        for name in _concerned(resource, found, text):
            kinds = sorted((*found[name].conditions, condition), key=lambda one: one.kind)
            if len({one.kind for one in kinds}) != len(kinds):
                raise click.BadParameter(f"--condition {text!r}: {condition.kind} is given twice")
            found[name] = replace(found[name], conditions=tuple(kinds))
    return tuple(found.values())


def text_value(value: str, what: str) -> str:
    """A printable text for a claim."""
    try:
        return check_text(value, what, None)
    except TokenError as error:
        raise click.BadParameter(error.detail) from error


def _resource(text: str) -> tuple[str, tuple[str, ...]]:
    """NAME[:ACTION,...]. A name may have colons of its own, but no tail of letters alone.

    So `db:5432` is a name, and `web:conect` is refused rather than taken for one.
    """
    match = _ACTION_TAIL.fullmatch(text)
    if match is None:
        return text, ("connect",)
    chosen = tuple(match[2].split(","))
    for action in chosen:
        _checked_choice(action, f"--resource {text!r}: action", ACTIONS)
    return match[1], chosen


def _right(text: str, option: str, form: str) -> re.Match[str]:
    match = _RIGHT.fullmatch(text)
    if match is None:
        raise click.BadParameter(f"{option} {text!r} is not [RESOURCE:]{form}")
    return match


def _condition(text: str) -> tuple[str | None, Condition]:
    """[RESOURCE:]KIND=VALUE[,VALUE]. Kinds may have a colon of their own: label:region."""
    what, equals, right = text.partition("=")
    match = _CONDITION.fullmatch(what)
    if not equals or match is None:
        raise click.BadParameter(f"--condition {text!r} is not [RESOURCE:]KIND=VALUE[,VALUE]")
    kind = match["kind"]
    values = split_values(kind, right)
    problem = problem_of(kind, values)
    if problem:
        raise click.BadParameter(f"--condition {text!r}: {problem}")
    return match["resource"], Condition(kind, values)


def _amount(text: str, whole: str) -> int:
    match = _AMOUNT.fullmatch(text)
    amount = int(match[1]) * _FACTORS[match[2] or ""] if match else -1
    if not 0 <= amount <= I64_MAX:
        raise click.BadParameter(
            f"--limit {whole!r}: {text!r} is no number (10, 10k, 10Gi) below 2**63"
        )
    return amount


def _concerned(name: str | None, found: dict[str, Entitlement], text: str) -> list[str]:
    if name is None:
        return list(found)
    if name not in found:
        hint = suggestion(name, list(found))
        raise click.BadParameter(f"{text!r} names {name}, which no --resource grants{hint}")
    return [name]


def _checked_choice(value: str, what: str, choices: Sequence[str]) -> str:
    try:
        return check_choice(value, what, choices)
    except TokenError as error:
        raise click.BadParameter(error.detail) from error


def labels_of(texts: Sequence[str]) -> dict[str, str]:
    """`NAME=VALUE`s, each name once, none empty."""
    found = label_changes(texts)
    for name, value in found.items():
        if not value:
            raise click.BadParameter(f"the label {name} has no value; write {name}=VALUE")
    return found


def label_changes(texts: Sequence[str]) -> dict[str, str]:
    """`NAME=VALUE`s, each name once; `NAME=` means that it goes."""
    found: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not _LABEL.fullmatch(name):
            raise click.BadParameter(
                f"{text!r} is no label; write NAME=VALUE,"
                " the name in small letters, digits, _ and -"
            )
        if name in found:
            raise click.BadParameter(f"the label {name} is given twice")
        found[name] = value
    return found
