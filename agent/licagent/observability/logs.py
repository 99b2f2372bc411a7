# SPDX-License-Identifier: Apache-2.0
"""Logs of the daemon: the standard library's logging, with fields.

    log = logging.getLogger(__name__)
    log.info("license added", extra={"fields": {"license": jti, "number": 7}})

Where they go is found, not configured: the journal (native protocol, each field a journal field
LICAGENT_<NAME>) when standard error is connected to it; else JSON lines or text on standard
error. Names of processes and files come from whoever runs them, so control characters never
reach a terminal or start a line of their own.

The native protocol is one datagram, so it is spoken here. The libraries there are (python-systemd,
cysystemd) are bindings that must be compiled against libsystemd on each distribution, block while
the journal is stopped, and need the same care for names and newlines in fields.
"""

from __future__ import annotations

import json
import logging
import os
import re
import socket
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, TextIO

if TYPE_CHECKING:
    from collections.abc import Mapping

Format = Literal["auto", "journal", "json", "text"]

JOURNAL_SOCKET: Final = Path("/run/systemd/journal/socket")

_MAX_VALUE: Final = 16 * 1024
"""Longest value of one field; what is longer is cut and says so."""

_CONTROLS: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")

# syslog(3) priorities
_PRIORITIES: Final = ((logging.CRITICAL, 2), (logging.ERROR, 3), (logging.WARNING, 4))


def setup_logging(
    environment: Mapping[str, str] | None = None,
    *,
    level: int = logging.INFO,
    form: Format = "auto",
    stream: TextIO | None = None,
) -> None:
    """Send everything logged below "licagent" to the one place that fits. May be called again."""
    logger = logging.getLogger("licagent")
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        handler.close()
    found = os.environ if environment is None else environment
    logger.addHandler(_handler(found, form, stream or sys.stderr))
    logger.setLevel(level)
    logger.propagate = False


def _handler(environment: Mapping[str, str], form: Format, stream: TextIO) -> logging.Handler:
    if form == "journal" or (form == "auto" and _is_journal(environment, stream)):
        try:
            return JournalHandler(JOURNAL_SOCKET)
        except OSError:
            form = "text"  # the stream itself is connected to the journal: no line is lost
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter() if form == "json" else TextFormatter())
    return handler


def _is_journal(environment: Mapping[str, str], stream: TextIO) -> bool:
    """Whether `stream` is the one systemd connected to the journal (systemd.exec(5))."""
    try:
        status = os.fstat(stream.fileno())
    except (OSError, ValueError):
        return False
    return environment.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"


def fields_of(record: logging.LogRecord) -> dict[str, object]:
    """The fields a call gave with extra={"fields": {...}}."""
    fields = getattr(record, "fields", None)
    return dict(fields) if isinstance(fields, dict) else {}


def printable(text: str) -> str:
    """`text` without characters that move a cursor, start a line or turn its direction."""
    return _CONTROLS.sub(lambda match: f"\\x{ord(match[0]):02x}", text)


class TextFormatter(logging.Formatter):
    """`2026-01-02T03:04:05.678Z WARNING daemon.main: message key=value`."""

    def format(self, record: logging.LogRecord) -> str:
        """One line; a traceback follows indented, on lines of its own."""
        name = record.name.removeprefix("licagent.")
        fields = "".join(
            f" {key}={printable(_short(value))}" for key, value in fields_of(record).items()
        )
        line = f"{_when(record)} {record.levelname} {name}: "
        line += printable(record.getMessage()) + fields
        if record.exc_info:
            trace = self.formatException(record.exc_info).splitlines()
            line += "".join("\n  " + printable(part) for part in trace)
        return line


class JsonFormatter(logging.Formatter):
    """One JSON object a line: at, level, logger, message, the fields, exception."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, without its newline."""
        row: dict[str, object] = {
            "at": _when(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        for key, value in fields_of(record).items():
            row.setdefault(key, value)
        if record.exc_info:
            row["exception"] = self.formatException(record.exc_info)
        return json.dumps(row, default=str)


class JournalHandler(logging.Handler):
    """Writes to journald in its native protocol (systemd.io/JOURNAL_NATIVE_PROTOCOL)."""

    def __init__(self, path: Path) -> None:
        """OSError if there is no journal at `path`."""
        super().__init__()
        self.dropped = 0
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        try:
            self._socket.connect(os.fspath(path))
        except OSError:
            self._socket.close()
            raise
        self._socket.setblocking(False)

    def emit(self, record: logging.LogRecord) -> None:
        """Send the record; a journal that takes nothing costs the line, never the daemon."""
        try:
            self._socket.send(journal_message(record))
        except OSError:
            # Standard error is the same journal: saying so there could block. Count instead.
            self.dropped += 1

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()
        super().close()


def journal_message(record: logging.LogRecord) -> bytes:
    """The datagram of a record."""
    priority = next((p for level, p in _PRIORITIES if record.levelno >= level), 6)
    if record.levelno <= logging.DEBUG:
        priority = 7
    message = record.getMessage()
    if record.exc_info:
        message += "\n" + logging.Formatter().formatException(record.exc_info)
    fields: dict[str, object] = {
        "MESSAGE": message,
        "PRIORITY": priority,
        "SYSLOG_IDENTIFIER": "licagent",
        "CODE_FILE": record.pathname,
        "CODE_LINE": record.lineno,
        "LICAGENT_LOGGER": record.name,
    }
    for key, value in fields_of(record).items():
        name = re.sub(r"[^A-Z0-9_]", "_", key.upper())[:50]
        fields[f"LICAGENT_{name}"] = value
    return b"".join(_journal_field(name, _short(value)) for name, value in fields.items())


def _journal_field(name: str, value: str) -> bytes:
    data = value.encode("utf-8", "backslashreplace")
    if b"\n" not in data:
        return name.encode() + b"=" + data + b"\n"
    # A value with newlines is given by its length, so that it cannot forge another field.
    return name.encode() + b"\n" + len(data).to_bytes(8, "little") + data + b"\n"


def _short(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return text if len(text) <= _MAX_VALUE else text[:_MAX_VALUE] + "...(cut)"


def _when(record: logging.LogRecord) -> str:
    at = datetime.fromtimestamp(record.created, UTC)
    return at.strftime("%Y-%m-%dT%H:%M:%S.") + f"{at.microsecond // 1000:03d}Z"
