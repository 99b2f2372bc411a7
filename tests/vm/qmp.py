# SPDX-License-Identifier: Apache-2.0
"""QEMU's control socket (QMP): one command at a time, events are passed over."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

_ANSWER_S: Final = 300
"""Saving a machine's memory is the longest command."""


class QmpError(Exception):
    """QEMU refused a command, or is gone; the text is its own."""


class Qmp:
    """A connection to the control socket at `path`. Raises QmpError, OSError."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(_ANSWER_S)
        try:
            self._socket.connect(str(path))
            self._lines = self._socket.makefile("r", encoding="utf-8")
            self._read()
            self.execute("qmp_capabilities")
        except BaseException:
            self._socket.close()
            raise

    def execute(self, command: str, **arguments: Any) -> Any:
        """The command's answer. Raises QmpError."""
        request = {"execute": command, "arguments": arguments}
        self._socket.sendall(json.dumps(request).encode() + b"\n")
        while True:
            message = self._read()
            if "error" in message:
                raise QmpError(f"{command}: {message['error']['desc']}")
            if "return" in message:
                return message["return"]

    def monitor(self, line: str) -> str:
        """A line of the human monitor, which says nothing when all is well."""
        answer = self.execute("human-monitor-command", **{"command-line": line})
        return str(answer).strip()

    def _read(self) -> dict[str, Any]:
        line = self._lines.readline()
        if not line:
            raise QmpError("the machine is gone")
        message: dict[str, Any] = json.loads(line)
        return message

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        self._lines.close()
        self._socket.close()
