# SPDX-License-Identifier: Apache-2.0
"""JSON as a license may use it: one meaning for each text, and no surprises.

Refused, each by name: bytes that are not UTF-8, keys given twice (RFC 8259 leaves open which
counts), NaN and Infinity, fractions and exponents, negative numbers, numbers beyond 64 bits,
nesting beyond `limits.DEPTH_MAX`.
"""

from __future__ import annotations

import json
from typing import Final, NoReturn, cast

from lictoken.claims import I64_MAX
from lictoken.errors import Refusal, TokenError, shown
from lictoken.limits import DEPTH_MAX

_DIGITS_MAX: Final = len(str(I64_MAX))


def parse_object(data: bytes, what: str, *, depth_max: int = DEPTH_MAX) -> dict[str, object]:
    """Parse `data`, which must hold one JSON object. `what` names it in errors."""
    try:
        text = data.decode("utf-8", errors="strict")
    except UnicodeDecodeError as error:
        raise TokenError(Refusal.BAD_UTF8, f"{what} is not UTF-8 at byte {error.start}") from error
    _check_depth(text, what, depth_max)

    def pairs(items: list[tuple[str, object]]) -> dict[str, object]:
        result = dict(items)
        if len(result) != len(items):
            seen: set[str] = set()
            for key, _ in items:
                if key in seen:
                    raise TokenError(
                        Refusal.DUPLICATE_KEY, f"{what} has the key {shown(key)} twice"
                    )
                seen.add(key)
        return result

    def integer(digits: str) -> int:
        if digits.startswith("-"):
            raise TokenError(Refusal.BAD_NUMBER, f"{what} has the negative number {shown(digits)}")
        # The length first: int() on long input is quadratic, and refuses 4301 digits.
        if len(digits) > _DIGITS_MAX or int(digits) > I64_MAX:
            raise TokenError(
                Refusal.BAD_NUMBER, f"{what} has the number {shown(digits)}, beyond 64 bits"
            )
        return int(digits)

    def refuse(number: str) -> NoReturn:
        raise TokenError(
            Refusal.BAD_NUMBER, f"{what} has the number {shown(number)}, not a whole number"
        )

    try:
        value = json.loads(
            text,
            object_pairs_hook=pairs,
            parse_int=integer,
            parse_float=refuse,
            parse_constant=refuse,
        )
    except ValueError as error:
        raise TokenError(Refusal.BAD_JSON, f"{what} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise TokenError(Refusal.BAD_JSON, f"{what} is not a JSON object")
    return cast("dict[str, object]", value)


def _check_depth(text: str, what: str, depth_max: int) -> None:
    """Refuse deep nesting before the recursive parser sees it."""
    depth = 0
    in_string = escaped = False
    for character in text:
        if in_string:
            if escaped:
                escaped = False
            elif character == "\\":
                escaped = True
            elif character == '"':
                in_string = False
        elif character == '"':
            in_string = True
        elif character in "[{":
            depth += 1
            if depth > depth_max:
                raise TokenError(
                    Refusal.TOO_DEEP, f"{what} is nested deeper than {depth_max} levels"
                )
        elif character in "]}":
            depth -= 1


def dump(value: dict[str, object]) -> bytes:
    """The compact JSON text that is signed."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
