# SPDX-License-Identifier: Apache-2.0
"""Bytes of the local API: one JSON object a line, both ways.

Request  {"id": 1, "method": "status", "params": {}}
Reply    {"id": 1, "result": {...}}  or  {"id": 1, "error": {"code", "message", "hint"}}
Stream   {"id": 1, "item": {...}} ...  {"id": 1, "end": true}

A request is text from somebody else: its length, depth, keys and types are checked before any
handler sees it. The same code reads on both sides.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from licagent.local.errors import ErrorCode, LocalError

if TYPE_CHECKING:
    from collections.abc import Mapping

SOCKET_NAME: Final = "licagent.sock"
"""File name of the socket in the runtime directory."""

SCHEMA_VERSION: Final = 1
"""`schema_version` of every result and of every `--json` output."""

MAX_REQUEST_BYTES: Final = 64 * 1024
"""Longest request line, its newline included."""

MAX_REPLY_BYTES: Final = 64 * 1024 * 1024
"""Longest reply line the client takes; a daemon with 100,000 bindings stays far below."""

MAX_DEPTH: Final = 16
"""Deepest nesting of a request; the deepest real one has 4."""

# A string (skipped whole) or one bracket. The possessive quantifier and the optional closing
# quote make an unterminated string match to the end, so that the scan stays linear.
_BRACKETS: Final = re.compile(rb'"(?:[^"\\]|\\.)*+"?|[\[{]|[\]}]', re.DOTALL)


@dataclass(frozen=True, slots=True)
class Request:
    """One request, checked in form but not yet against its method."""

    id: int | str | None
    method: str
    params: Mapping[str, object]


def encode(message: Mapping[str, object]) -> bytes:
    """One line. ASCII only, so that a lone surrogate in a file name cannot break it.

    ValueError: NaN or infinity, which are no JSON.
    """
    return json.dumps(message, separators=(",", ":"), allow_nan=False).encode("ascii") + b"\n"


def decode_request(line: bytes) -> Request:
    """The request in `line`. LocalError PROTOCOL names what is wrong with it."""
    document = _object(line, MAX_DEPTH)
    identity = document.get("id")
    if isinstance(identity, bool) or not isinstance(identity, int | str | None):
        raise _protocol("id must be an integer or a string")
    if isinstance(identity, str) and len(identity) > 64:
        raise _protocol("id is longer than 64 characters")
    if isinstance(identity, int) and not -(2**53) <= identity <= 2**53:
        raise _protocol("id is outside the integers JSON carries exactly")
    method = document.get("method")
    if not isinstance(method, str):
        raise _protocol("method must be a string")
    params = document.get("params", {})
    if not isinstance(params, dict):
        raise _protocol("params must be an object")
    unknown = sorted(document.keys() - {"id", "method", "params"})
    if unknown:
        raise _protocol(f"unknown member {unknown[0][:64]!r}")
    return Request(identity, method, params)


def decode_reply(line: bytes) -> Mapping[str, object]:
    """The reply in `line`. LocalError PROTOCOL if it is none."""
    return _object(line, depth=64)


def _object(line: bytes, depth: int) -> dict[str, object]:
    _check_depth(line, depth)
    try:
        document = json.loads(
            line.decode("utf-8"), parse_constant=_refuse_constant, object_pairs_hook=_unique
        )
    except LocalError:
        raise
    # ValueError covers bad JSON, bad UTF-8 and integers of more than 4,300 digits.
    except (ValueError, RecursionError) as error:
        raise _protocol(f"not JSON: {error}") from error
    if not isinstance(document, dict):
        raise _protocol("not a JSON object")
    return document


def _check_depth(line: bytes, limit: int) -> None:
    depth = 0
    for match in _BRACKETS.finditer(line):
        first = match.group()[:1]
        if first in b"[{":
            depth += 1
            if depth > limit:
                raise _protocol(f"nested deeper than {limit}")
        elif first in b"]}":
            depth -= 1


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise _protocol("a member is given twice")
    return members


def _refuse_constant(name: str) -> object:
    raise _protocol(f"{name} is no JSON number")


def _protocol(message: str) -> LocalError:
    return LocalError(ErrorCode.PROTOCOL, message, "one JSON object a line: docs/reference")
