# SPDX-License-Identifier: Apache-2.0
"""Selectors: verified attributes of a workload, as bindings and licenses write them.

unix:uid:1000            the process's user, by number
unix:user:postgres       the same, by name; looked up when the policy is compiled
unix:gid:100             the process's primary group, by number
unix:group:backup        the same, by name
unix:path:/usr/bin/curl  the file that stands at this path (device and inode, not argv[0])
unix:sha256:9f86d0...    the executable's content
systemd:unit:etl.service a unit of the system manager, and everything below it
systemd:slice:batch.slice
cgroup:path:/batch/etl   a cgroup below the agent's root, and everything below it
container:id:4f1c...     a container by its id (12 to 64 hexadecimal digits)
host                     every process of the host
"""

from __future__ import annotations

import posixpath
import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from licagent.domain.problem import did_you_mean, nearest, shown

_ID_MAX: Final = 0xFFFFFFFE  # (uid_t)-1 is "no change" to setuid(2) and our wildcard
_PATH_BYTES_MAX: Final = 4095  # PATH_MAX without its NUL
_NAME_BYTES_MAX: Final = 255  # NAME_MAX, systemd's UNIT_NAME_MAX

_DECIMAL = re.compile(r"0|[1-9][0-9]{0,9}", re.ASCII)
_ACCOUNT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@\\-]{0,254}\$?", re.ASCII)
_SHA256 = re.compile(r"[0-9a-f]{64}")
_CONTAINER = re.compile(r"[0-9a-f]{12,64}")
_UNIT = re.compile(r"[A-Za-z0-9:_.\\@-]+\.([a-z]+)", re.ASCII)
_UNITS_WITH_CGROUP: Final = ("service", "scope", "socket", "mount", "swap")


class SelectorKind(StrEnum):
    """The attributes that can be verified; the values are how they are written."""

    UID = "unix:uid"
    USER = "unix:user"
    GID = "unix:gid"
    GROUP = "unix:group"
    PATH = "unix:path"
    SHA256 = "unix:sha256"
    UNIT = "systemd:unit"
    SLICE = "systemd:slice"
    CGROUP = "cgroup:path"
    CONTAINER = "container:id"
    HOST = "host"


_KINDS: Final = {kind.value: kind for kind in SelectorKind}
_FAMILIES: Final = ("unix", "systemd", "cgroup", "container", "host")


@dataclass(frozen=True, slots=True, order=True)
class Selector:
    """One attribute and the value it must have, in its one canonical spelling."""

    kind: SelectorKind
    value: str  # "" for HOST; hexadecimal digits are lower-case

    def __str__(self) -> str:
        return f"{self.kind.value}:{self.value}" if self.value else self.kind.value


class SelectorError(ValueError):
    """A selector that cannot be understood."""

    def __init__(self, text: str, part: str, message: str, suggestion: str = "") -> None:
        self.text: Final = text
        self.part: Final = part  # the part of `text` that is wrong
        self.message: Final = message
        self.suggestion: Final = suggestion
        super().__init__(f"{message} ({suggestion})" if suggestion else message)


def parse(text: str) -> Selector:
    """The selector that `text` spells; raises SelectorError, which names the bad part."""
    if text.startswith("unix:uid:") and _DECIMAL.fullmatch(text, 9) and int(text[9:]) <= _ID_MAX:
        return Selector(SelectorKind.UID, text[9:])  # by far the most frequent: spared the rest
    kind, value = _split(text)
    if kind is SelectorKind.HOST:
        return Selector(kind, "")
    if not value:
        raise SelectorError(
            text, text, f"{shown(text)} has no value", f"write {kind.value}:{_EXAMPLES[kind]}"
        )
    return Selector(kind, _CHECKS[kind](text, value))


def _split(text: str) -> tuple[SelectorKind, str]:
    if text == "host":
        return SelectorKind.HOST, ""
    family, _, rest = text.partition(":")
    name, _, value = rest.partition(":")
    if family == "host":
        raise SelectorError(text, rest, f'"host" takes no value, got {shown(rest)}', 'write "host"')
    kind = _KINDS.get(f"{family}:{name}")
    if kind is not None:
        return kind, value
    if text == "":
        raise SelectorError(text, "", "an empty selector", 'write "host" to mean every process')
    if family not in _FAMILIES:
        return _unknown_family(text, family, name)
    names = [entry.partition(":")[2] for entry in _KINDS if entry.startswith(f"{family}:")]
    match = nearest(name, names)
    hint = f"did you mean {shown(f'{family}:{match}:{value}')}?" if match else ""
    raise SelectorError(
        text,
        name,
        f"{shown(family)} has no selector {shown(name)}",
        hint or did_you_mean(name, names),
    )


def _unknown_family(text: str, family: str, name: str) -> tuple[SelectorKind, str]:
    short = {kind.value.partition(":")[2]: kind for kind in SelectorKind if ":" in kind.value}
    if family in short:  # "uid:1000"
        hint = f"did you mean {shown(f'{short[family].value}:{text[len(family) + 1 :]}')}?"
    else:
        match = nearest(f"{family}:{name}", _KINDS) if name else None
        hint = f"did you mean {shown(match)}?" if match else did_you_mean(family, _FAMILIES)
    raise SelectorError(text, family, f"unknown selector family {shown(family)}", hint)


def _number(text: str, value: str) -> str:
    if not _DECIMAL.fullmatch(value):
        named = text.replace("unix:uid:", "unix:user:").replace("unix:gid:", "unix:group:")
        hint = "write it in decimal, without sign or leading zeros"
        if _ACCOUNT.fullmatch(value) and not value[0].isdigit():
            hint = f"did you mean {shown(named)}?"
        raise SelectorError(text, value, f"{shown(value)} is not a number", hint)
    if int(value) > _ID_MAX:
        raise SelectorError(text, value, f"{value} is not an id", f"ids are 0 to {_ID_MAX}")
    return value


def _account(text: str, value: str) -> str:
    if value.isdecimal() and value.isascii():
        numbered = text.replace("unix:user:", "unix:uid:").replace("unix:group:", "unix:gid:")
        raise SelectorError(
            text, value, f"{shown(value)} is a number, not a name", f"did you mean {numbered}?"
        )
    if not _ACCOUNT.fullmatch(value):
        raise SelectorError(
            text, value, f"{shown(value)} is not an account name", "as `getent` prints it"
        )
    return value


def _absolute_path(text: str, value: str) -> str:
    if not value.startswith("/"):
        raise SelectorError(
            text, value, f"{shown(value)} is not absolute", "write the path from the root: /..."
        )
    if "\0" in value or not _encodable(value):
        raise SelectorError(text, value, f"{shown(value)} has characters no path can have")
    if len(value.encode()) > _PATH_BYTES_MAX:
        raise SelectorError(text, value, f"a path has at most {_PATH_BYTES_MAX} bytes")
    # normpath keeps two leading slashes, which POSIX leaves to the system; Linux has one root.
    normal = "/" + posixpath.normpath(value).lstrip("/")
    if normal != value:
        raise SelectorError(
            text,
            value,
            f"{shown(value)} is not in its shortest form",
            f"did you mean {shown(text.replace(value, normal))}?",
        )
    return value


def _executable(text: str, value: str) -> str:
    path = _absolute_path(text, value)
    if path == "/":
        raise SelectorError(text, value, "the root folder is no executable", "name the file")
    return path


def _cgroup(text: str, value: str) -> str:
    path = _absolute_path(text, value)
    if path == "/":
        raise SelectorError(
            text, value, "the root cgroup holds every process", 'write "host" to mean that'
        )
    if path.startswith("/sys/fs/cgroup/"):
        below = path.removeprefix("/sys/fs/cgroup")
        raise SelectorError(
            text,
            value,
            "cgroup paths start at the cgroup root, not at its mount point",
            f"did you mean {shown(f'cgroup:path:{below}')}?",
        )
    return path


def _digest(text: str, value: str) -> str:
    digest = value.lower()
    if not _SHA256.fullmatch(digest):
        found = f"{len(value)} characters" if len(value) != 64 else "others among them"
        raise SelectorError(
            text,
            value,
            f"a SHA-256 digest is 64 hexadecimal digits, got {found}",
            "copy it from `sha256sum FILE`",
        )
    return digest


def _container(text: str, value: str) -> str:
    container = value.lower()
    if not _CONTAINER.fullmatch(container):
        raise SelectorError(
            text,
            value,
            f"a container id is 12 to 64 hexadecimal digits, got {shown(value)}",
            "as `docker ps` or `crictl ps` prints it; names can be given to another container",
        )
    return container


def _unit(text: str, value: str) -> str:
    suffix = _unit_suffix(text, value, "service")
    if suffix == "slice":
        raise SelectorError(
            text, value, f"{shown(value)} is a slice", f"did you mean systemd:slice:{value}?"
        )
    if suffix not in _UNITS_WITH_CGROUP:
        raise SelectorError(
            text,
            value,
            f"{shown(value)}: no process runs in a unit of type {shown(suffix)}",
            "units with processes end in ." + ", .".join(_UNITS_WITH_CGROUP),
        )
    return value


def _slice(text: str, value: str) -> str:
    suffix = _unit_suffix(text, value, "slice")
    if suffix != "slice":
        raise SelectorError(
            text, value, f"{shown(value)} is no slice", f"did you mean systemd:unit:{value}?"
        )
    if value == "-.slice":
        raise SelectorError(
            text, value, "the root slice holds every process", 'write "host" to mean that'
        )
    return value


def _unit_suffix(text: str, value: str, default: str) -> str:
    """The type at the end of a unit's name; refuses what systemd would not accept as a name."""
    match = _UNIT.fullmatch(value)
    if match is None:
        hint = ""
        if _UNIT.fullmatch(f"{value}.{default}"):
            hint = f"did you mean {shown(f'{text}.{default}')}?"
        raise SelectorError(text, value, f"{shown(value)} is not the name of a unit", hint)
    if len(value) > _NAME_BYTES_MAX:
        raise SelectorError(text, value, f"a unit's name has at most {_NAME_BYTES_MAX} bytes")
    suffix = match[1]
    if suffix not in (*_UNITS_WITH_CGROUP, "slice", "timer", "target", "path", "device"):
        raise SelectorError(
            text,
            value,
            f"{shown(value)} does not end in the type of a unit",
            f"did you mean {shown(f'{text}.{default}')}?",
        )
    if value.removesuffix(f".{suffix}").endswith("@"):
        raise SelectorError(
            text,
            value,
            f"{shown(value)} is a template, which never runs itself",
            f"name an instance: {value.replace('@.', '@NAME.')}, or the slice they share",
        )
    return suffix


def _encodable(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


_CHECKS: Final = {
    SelectorKind.UID: _number,
    SelectorKind.USER: _account,
    SelectorKind.GID: _number,
    SelectorKind.GROUP: _account,
    SelectorKind.PATH: _executable,
    SelectorKind.SHA256: _digest,
    SelectorKind.UNIT: _unit,
    SelectorKind.SLICE: _slice,
    SelectorKind.CGROUP: _cgroup,
    SelectorKind.CONTAINER: _container,
}

_EXAMPLES: Final = {
    SelectorKind.UID: "1000",
    SelectorKind.USER: "postgres",
    SelectorKind.GID: "100",
    SelectorKind.GROUP: "backup",
    SelectorKind.PATH: "/usr/bin/curl",
    SelectorKind.SHA256: "<64 hexadecimal digits>",
    SelectorKind.UNIT: "etl.service",
    SelectorKind.SLICE: "batch.slice",
    SelectorKind.CGROUP: "/batch/etl",
    SelectorKind.CONTAINER: "<12 to 64 hexadecimal digits>",
}
