# SPDX-License-Identifier: Apache-2.0
"""Selectors as documents may write them; docs/reference/policy.md lists them.

The agent judges them once more. A selector that it refuses must be refused here, or the whole
fleet answers a change with a NACK.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable
from typing import Final

from licplane.service.reading import nearest
from licplane.service.texts import shown
from lictoken.claims import SELECTOR_KINDS

_ID_MAX: Final = 0xFFFFFFFE  # (uid_t)-1 stands for "no change"
_PATH_BYTES_MAX: Final = 4095
_DECIMAL: Final = re.compile(r"0|[1-9][0-9]{0,9}", re.ASCII)
_ACCOUNT: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@\\-]{0,254}\$?", re.ASCII)
_SHA256: Final = re.compile(r"[0-9a-fA-F]{64}")
_CONTAINER: Final = re.compile(r"[0-9a-fA-F]{12,64}")
_UNIT: Final = re.compile(r"[A-Za-z0-9:_.\\@-]{1,250}\.([a-z]+)", re.ASCII)
_UNITS: Final = ("service", "scope", "socket", "mount", "swap")


class SelectorProblem(ValueError):
    """A selector that the agent would refuse."""


def check_selector(text: str) -> None:
    """Raise SelectorProblem, which says what is wrong and what to write."""
    if text == "host":
        return
    family, _, rest = text.partition(":")
    word, colon, value = rest.partition(":")
    kind = f"{family}:{word}"
    if kind not in SELECTOR_KINDS:
        hint = nearest(kind, SELECTOR_KINDS) or f"known: {', '.join(SELECTOR_KINDS)}"
        raise SelectorProblem(f"{shown(text)} is no selector ({hint})")
    if not colon or not value:
        raise SelectorProblem(f"{shown(text)} has no value (write {kind}:...)")
    _CHECKS[kind](value)


def _number(value: str) -> None:
    if not _DECIMAL.fullmatch(value) or int(value) > _ID_MAX:
        raise SelectorProblem(f"{shown(value)} is no id (a decimal number of 0 to {_ID_MAX})")


def _account(value: str) -> None:
    if value.isdecimal():
        raise SelectorProblem(f"{shown(value)} is a number (write unix:uid: or unix:gid:)")
    if not _ACCOUNT.fullmatch(value):
        raise SelectorProblem(f"{shown(value)} is no account name (as `getent` prints it)")


def _path(value: str) -> None:
    if not value.startswith("/"):
        raise SelectorProblem(f"{shown(value)} is no absolute path (start it with /)")
    if not value.isprintable() or len(value.encode()) > _PATH_BYTES_MAX:
        raise SelectorProblem(f"{shown(value)} is no printable path of at most 4095 bytes")
    normal = "/" + posixpath.normpath(value).lstrip("/")
    if normal != value:
        raise SelectorProblem(
            f"{shown(value)} is not in its shortest form (did you mean {normal}?)"
        )
    if value == "/":
        raise SelectorProblem('the root covers everything (write "host" to mean that)')


def _cgroup(value: str) -> None:
    _path(value)
    if value.startswith("/sys/fs/cgroup/"):
        below = value.removeprefix("/sys/fs/cgroup")
        raise SelectorProblem(f"cgroup paths start at the cgroup root (write cgroup:path:{below})")


def _digest(value: str) -> None:
    if not _SHA256.fullmatch(value):
        raise SelectorProblem(f"{shown(value)} is no SHA-256 digest (64 hexadecimal digits)")


def _container(value: str) -> None:
    if not _CONTAINER.fullmatch(value):
        raise SelectorProblem(f"{shown(value)} is no container id (12 to 64 hexadecimal digits)")


def _unit(value: str) -> None:
    suffix = _suffix(value, "service")
    if suffix == "slice":
        raise SelectorProblem(f"{shown(value)} is a slice (write systemd:slice:{value})")
    if suffix not in _UNITS:
        raise SelectorProblem(
            f"{shown(value)} is no unit with processes (they end in .{', .'.join(_UNITS)})"
        )


def _slice(value: str) -> None:
    if _suffix(value, "slice") != "slice":
        raise SelectorProblem(f"{shown(value)} is no slice (write systemd:unit:{value})")
    if value == "-.slice":
        raise SelectorProblem('the root slice holds everything (write "host" to mean that)')


def _suffix(value: str, default: str) -> str:
    match = _UNIT.fullmatch(value)
    if match is None:
        raise SelectorProblem(f"{shown(value)} is no unit's name (did you mean {value}.{default}?)")
    if value.removesuffix(f".{match[1]}").endswith("@"):
        raise SelectorProblem(f"{shown(value)} is a template (name an instance)")
    return match[1]


_CHECKS: Final[dict[str, Callable[[str], None]]] = {
    "unix:uid": _number,
    "unix:user": _account,
    "unix:gid": _number,
    "unix:group": _account,
    "unix:path": _path,
    "unix:sha256": _digest,
    "systemd:unit": _unit,
    "systemd:slice": _slice,
    "cgroup:path": _cgroup,
    "container:id": _container,
}
