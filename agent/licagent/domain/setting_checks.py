# SPDX-License-Identifier: Apache-2.0
"""Checks of the settings that are one value: words, paths, numbers, addresses and labels.

Each gives the value as AgentConfig has it, or raises BadValue.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from licagent.domain.config import SOCKET_NAME

if TYPE_CHECKING:
    from collections.abc import Callable, Collection


class BadValue(Exception):
    """What is wrong with a value, and what to write instead; where it stands, the reader knows."""

    def __init__(self, message: str, suggestion: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.suggestion = suggestion


@dataclass(frozen=True, slots=True)
class Setting:
    """How one setting is read. Both functions raise BadValue."""

    from_file: Callable[[Any], object]
    from_text: Callable[[str], object]  # the environment's form, before from_file


SOCKET_PATH_MAX_BYTES: Final = 107
"""sun_path in struct sockaddr_un has 108 bytes, one of them for the end (unix(7))."""

_LABEL: Final = re.compile(r"[a-z0-9][a-z0-9._/-]{0,62}")
_HOST: Final = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,252})|\[[0-9A-Fa-f:.]{2,45}\]")

METRICS_EXAMPLE: Final = "127.0.0.1:9795"
"""Where documents and roles let the agent serve its metrics; nothing listens by default."""


def likely(word: str, known: Collection[str]) -> str:
    """A suggestion to use the nearest of `known`, or nothing."""
    from licagent.domain.problem import nearest  # brings difflib: on the error path only

    match = nearest(word, known)
    return f"did you mean {match}" if match else ""


def words(*words: str) -> Setting:
    """One of these words."""

    def check(value: Any) -> object:
        if not isinstance(value, str) or value not in words:
            raise BadValue(f"{value!r} is not one of {', '.join(words)}", likely(str(value), words))
        return value

    return Setting(check, str)


def amount(unit: str, minimum: int, maximum: int) -> Setting:
    """A whole number within bounds, both included."""

    def check(value: Any) -> object:
        if isinstance(value, bool) or not isinstance(value, int) or not minimum <= value <= maximum:
            raise BadValue(f"{value!r} is not a number of {unit}", f"{minimum} to {maximum}")
        return value

    def from_text(text: str) -> object:
        return int(text) if re.fullmatch(r"[0-9]{1,15}", text, re.ASCII) else text

    return Setting(check, from_text)


def check_path(value: Any) -> object:
    """An absolute path."""
    if not isinstance(value, str) or not value:
        raise BadValue(f"{value!r} is not a path")
    if "\0" in value or not value.startswith("/"):
        raise BadValue(f"{value!r} is not an absolute path", "start it with /")
    return Path(value)


def check_socket_folder(value: Any) -> object:
    """An absolute path, short enough for a socket below it."""
    path = check_path(value)
    over = len(f"{value}/{SOCKET_NAME}".encode()) - SOCKET_PATH_MAX_BYTES
    if over > 0:
        raise BadValue(
            f"{value!r} is too long for the path of a socket, by {over} bytes",
            "name a shorter folder",
        )
    return path


def check_cgroup_root(value: Any) -> object:
    """An absolute path; None for "auto"."""
    return None if value == "auto" else check_path(value)


def check_labels(value: Any) -> object:
    """A table of labels."""
    if not isinstance(value, dict):
        raise BadValue("labels must be a table", 'labels = { environment = "production" }')
    for name, text in value.items():
        if not _LABEL.fullmatch(name):
            raise BadValue(f"{name!r} is no label name", "lower-case letters, digits and . _ / -")
        if not isinstance(text, str) or not text or len(text) > 255:
            raise BadValue(f"label {name}: {text!r} is not a text of 1 to 255 characters")
    return MappingProxyType(dict(value))


def labels_text(text: str) -> object:
    """Labels as the environment has them: name=value, with commas between."""
    labels: dict[str, object] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, equals, value = part.partition("=")
        if not equals:
            raise BadValue(f"{part!r} has no =", "LICAGENT_LABELS=environment=production,region=eu")
        labels[name.strip()] = value.strip()
    return labels


def check_control(value: Any) -> object:
    """The control plane's host:port, or "auto", or "off"."""
    hint = '"auto", "off" or "control.example.org:8443"'
    if not isinstance(value, str):
        raise BadValue(f"{value!r} is not a text", hint)
    if value in ("auto", "off"):
        return value
    host, colon, port = value.rpartition(":")
    if not colon or not _HOST.fullmatch(host):
        raise BadValue(f"{value!r} is no address of a control plane", hint)
    if not re.fullmatch(r"[0-9]{1,5}", port, re.ASCII) or not 1 <= int(port) <= 65535:
        raise BadValue(f"{value!r}: {port!r} is no port", hint)
    return value


def check_metrics_listen(value: Any) -> object:
    """An address of this host with a port, or "off"."""
    hint = f'"off", "{METRICS_EXAMPLE}" or "[::1]:9795"'
    if value == "off":
        return value
    if not isinstance(value, str):
        raise BadValue(f"{value!r} is not a text", hint)
    host, colon, port = value.rpartition(":")
    try:
        # An address, not a name: what is served where must not depend on a resolver.
        ipaddress.ip_address(host[1:-1] if host.startswith("[") and host.endswith("]") else host)
    except ValueError:
        raise BadValue(f"{value!r} is no address and port of this host", hint) from None
    if (":" in host) != host.startswith("["):
        raise BadValue(f"{value!r}: an IPv6 address stands in brackets", hint)
    if not colon or not re.fullmatch(r"[0-9]{1,5}", port, re.ASCII) or int(port) > 65535:
        raise BadValue(f"{value!r}: {port!r} is no port", hint)
    return value
