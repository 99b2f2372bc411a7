# SPDX-License-Identifier: Apache-2.0
"""The PEM-like form of a token in a file.

    -----BEGIN LICAGENT LICENSE-----
    eyJhbGciOiJFZDI1NTE5IiwidHlwIjoibGljYWdlbnQtbGljZW5zZStqd3QiLCJr
    ...
    -----END LICAGENT LICENSE-----

The body is the JWS compact text in lines of 64 characters, the last one shorter. Lines end
in LF or, throughout, in CRLF (what mail and editors do). Nothing stands before BEGIN or
after END.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final, NoReturn

from lictoken.errors import Refusal, TokenError, shown

_WIDTH: Final = 64
_BEGIN: Final = "-----BEGIN LICAGENT "
_END: Final = "-----END LICAGENT "
_TAIL: Final = "-----"


class Label(StrEnum):
    """What the armour says it holds."""

    LICENSE = "LICENSE"
    REVOCATION = "REVOCATION"


def is_armoured(data: bytes) -> bool:
    """Whether `data` starts like an armoured token (it may still be damaged)."""
    return data.startswith(b"-----BEGIN")


def armour(token: str, label: Label) -> str:
    """The text of a file that holds `token`."""
    lines = [token[at : at + _WIDTH] for at in range(0, len(token), _WIDTH)]
    return "\n".join([f"{_BEGIN}{label}{_TAIL}", *lines, f"{_END}{label}{_TAIL}", ""])


def unarmour(data: bytes, label: Label) -> str:
    """The token inside `data`. Raises TokenError (BAD_ARMOUR, TRUNCATED, TRAILING_DATA...)."""
    try:
        text = data.decode("ascii")
    except UnicodeDecodeError as error:
        raise TokenError(Refusal.BAD_ENCODING, f"byte {error.start} is not ASCII") from error
    separator = "\r\n" if text.partition("\n")[0].endswith("\r") else "\n"
    lines = text.split(separator)
    first = lines[0]
    if not (first.startswith(_BEGIN) and first.endswith(_TAIL)):
        raise TokenError(Refusal.BAD_ARMOUR, f"the first line is {shown(first)}")
    found = first[len(_BEGIN) : -len(_TAIL)]
    end = f"{_END}{found}{_TAIL}"
    try:
        last = lines.index(end, 1)
    except ValueError:
        _refuse_end(lines, end)
    if any(lines[last + 1 :]) or len(lines) > last + 2:
        raise TokenError(Refusal.TRAILING_DATA, f"something follows the line {shown(end)}")
    if found != label:
        raise TokenError(
            Refusal.WRONG_PURPOSE, f"the armour holds a {shown(found)}, not a {label.value}"
        )
    body = lines[1:last]
    for number, line in enumerate(body, start=2):
        is_last = number == len(body) + 1
        if len(line) > _WIDTH or (len(line) < _WIDTH and not is_last) or not line:
            raise TokenError(
                Refusal.BAD_ARMOUR,
                f"line {number} has {len(line)} characters instead of {_WIDTH}",
            )
    return "".join(body)


def _refuse_end(lines: list[str], end: str) -> NoReturn:
    for line in lines[1:]:
        if line.startswith(end):
            raise TokenError(Refusal.TRAILING_DATA, f"something follows {shown(end)}")
        if line.startswith(_END) and line.endswith(_TAIL):
            raise TokenError(Refusal.BAD_ARMOUR, f"{shown(line)} ends another label")
    raise TokenError(Refusal.TRUNCATED, f"the line {shown(end)} is missing")
