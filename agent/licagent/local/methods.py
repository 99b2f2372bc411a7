# SPDX-License-Identifier: Apache-2.0
"""The methods of the local API and their parameters: the one table both sides read.

The daemon registers a handler for each (`LocalServer.method`); parameters are checked against
this table before a handler runs, so a handler reads values of the stated type and range.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from licagent.local.errors import ErrorCode, LocalError
from licagent.local.usage_shapes import TOP_BY, USAGE_BY

Params = Mapping[str, Any]
"""Checked parameters: every one of the method's, with its default if it was not given."""

Kind = Literal["text", "integer", "flag", "texts", "files"]

MAX_TEXT: Final = 48 * 1024
"""Longest text parameter, in characters: a license file (16 KiB) three times over."""


@dataclass(frozen=True, slots=True)
class Param:
    """One parameter: `kind` and, for integers, the range; for texts, the words allowed.

    kinds: text; integer (never a boolean); flag; texts (a list of text);
    files (a list of objects with the texts `name` and `text`).
    """

    name: str
    kind: Kind
    required: bool = False
    default: object = None
    minimum: int = 0
    maximum: int = 2**53
    words: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Method:
    """One method. `write`: only uid 0 may call it. `stream`: it answers with items."""

    name: str
    params: tuple[Param, ...] = ()
    write: bool = False
    stream: bool = False
    one_of: tuple[str, ...] = ()  # exactly one of these parameters must be given


VERDICTS: Final = ("allow", "deny", "shadow", "cut")

METHODS: Final[Mapping[str, Method]] = {
    method.name: method
    for method in (
        Method("status"),
        Method(
            "explain",
            (Param("pid", "integer", minimum=1, maximum=2**22), Param("socket", "text")),
            one_of=("pid", "socket"),
        ),
        Method(
            "events",
            (
                Param("follow", "flag", default=False),
                Param("since", "text"),  # RFC 3339 UTC
                Param("limit", "integer", default=100, maximum=1_000_000),
                Param("verdict", "text", words=VERDICTS),
                Param("license", "text"),
                Param("resource", "text"),
                Param("pid", "integer", minimum=1, maximum=2**22),
            ),
            stream=True,
        ),
        Method(
            "shadow",
            (
                Param("since", "text"),  # RFC 3339 UTC; else all that the log has
                Param("limit", "integer", default=1000, minimum=1, maximum=20_000),
            ),
        ),
        Method("license.list"),
        Method("license.show", (Param("id", "text", required=True),)),
        Method("license.add", (Param("text", "text", required=True),), write=True),
        Method("license.remove", (Param("id", "text", required=True),), write=True),
        Method(
            "license.revoke",
            (Param("id", "text"), Param("statement", "text"), Param("reason", "text", default="")),
            write=True,
            one_of=("id", "statement"),
        ),
        Method("policy.check", (Param("files", "files", default=()),)),
        Method("policy.apply", (Param("files", "files", default=()),), write=True),
        Method("policy.show"),
        Method("doctor"),
        Method(
            "break_glass",
            (
                Param("for_s", "integer", minimum=1, maximum=86_400),
                Param("reason", "text", default=""),
                Param("end", "flag"),
            ),
            write=True,
            one_of=("for_s", "end"),
        ),
        Method(
            "run.prepare",
            (
                Param("license", "text", required=True),
                Param("pid", "integer", required=True, minimum=1, maximum=2**22),
                Param("valid", "flag", default=False),  # refused unless the license is, now
            ),
            write=True,
        ),
        Method(
            "usage",
            (
                Param("by", "text", default="license", words=USAGE_BY),
                Param("since", "text"),  # RFC 3339 UTC; else all that the ledger keeps
                Param("until", "text"),  # RFC 3339 UTC, not included; else now
                Param("license", "text"),
                Param("resource", "text"),
                Param("unit", "text"),
                Param("user", "text"),
                Param("limit", "integer", default=1000, minimum=1, maximum=100_000),
            ),
        ),
        Method("usage.verify"),
        Method(
            "top",
            (
                Param("by", "text", default="process", words=TOP_BY),
                Param("exited", "flag", default=True),
            ),
        ),
        Method(
            "enroll",
            (
                Param("join", "text"),  # a join token, licjoin1.…
                Param("bundle", "text"),  # path of the file that answers a request
                Param("request", "flag"),  # write such a request
                Param("identity", "text", default="keep", words=("keep", "again", "new")),
            ),
            write=True,
            one_of=("join", "bundle", "request"),
        ),
        Method(
            "leave",
            (
                Param("wait_s", "integer", default=60, maximum=3_500),
                Param("forget", "flag", default=False),
            ),
            write=True,
        ),
        Method("config.check"),
        Method("detach", write=True),
    )
}


def check_params(method: Method, given: Mapping[str, object]) -> dict[str, object]:
    """`given` with the defaults filled in. LocalError INVALID_PARAMS names the bad one."""
    known = {param.name: param for param in method.params}
    for name in given:
        if name not in known:
            names = ", ".join(known) or "none"
            raise _invalid(method, f"has no parameter {name[:64]!r}", f"parameters: {names}")
    values: dict[str, object] = {}
    for param in method.params:
        value = given.get(param.name)
        if value is None:
            if param.required:
                raise _invalid(method, f"needs the parameter {param.name!r}")
            values[param.name] = param.default
            continue
        values[param.name] = _checked(method, param, value)
    if method.one_of:
        count = sum(given.get(name) not in (None, False) for name in method.one_of)
        if count != 1:
            raise _invalid(method, "needs exactly one of " + ", ".join(method.one_of))
    return values


def _checked(method: Method, param: Param, value: object) -> object:
    match param.kind:
        case "integer":
            if isinstance(value, bool) or not isinstance(value, int):
                raise _invalid(method, f"{param.name} must be an integer")
            if not param.minimum <= value <= param.maximum:
                bounds = f"{param.minimum}..{param.maximum}"
                raise _invalid(method, f"{param.name} must be within {bounds}")
            return value
        case "flag":
            if not isinstance(value, bool):
                raise _invalid(method, f"{param.name} must be true or false")
            return value
        case "text":
            return _text(method, param, value)
        case "texts":
            if not isinstance(value, list):
                raise _invalid(method, f"{param.name} must be a list of strings")
            return tuple(_text(method, param, item) for item in value)
        case "files":
            if not isinstance(value, list):
                raise _invalid(method, f"{param.name} must be a list of {{name, text}}")
            return tuple(_file(method, param, item) for item in value)


def _text(method: Method, param: Param, value: object) -> str:
    if not isinstance(value, str):
        raise _invalid(method, f"{param.name} must be a string")
    if len(value) > MAX_TEXT:
        raise _invalid(method, f"{param.name} is longer than {MAX_TEXT} characters")
    if "\0" in value:
        raise _invalid(method, f"{param.name} holds a NUL character")
    if param.words and value not in param.words:
        raise _invalid(method, f"{param.name} must be one of " + ", ".join(param.words))
    return value


def _file(method: Method, param: Param, value: object) -> tuple[str, str]:
    if not isinstance(value, dict) or value.keys() != {"name", "text"}:
        raise _invalid(method, f"each of {param.name} must have name and text, nothing else")
    return _text(method, param, value["name"]), _text(method, param, value["text"])


def _invalid(method: Method, message: str, hint: str = "") -> LocalError:
    return LocalError(ErrorCode.INVALID_PARAMS, f"{method.name}: {message}", hint)
