# SPDX-License-Identifier: Apache-2.0
"""Errors of the local API: one code, one exit status, one next step each."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping


class ErrorCode(StrEnum):
    """What went wrong, in a word a script can match. The words never change."""

    INTERNAL = "INTERNAL"
    PROTOCOL = "PROTOCOL"  # not a request of this protocol: bad JSON, too long, too deep
    UNKNOWN_METHOD = "UNKNOWN_METHOD"
    INVALID_PARAMS = "INVALID_PARAMS"
    NOT_RUNNING = "NOT_RUNNING"  # found by the client
    TIMEOUT = "TIMEOUT"  # found by the client
    PERMISSION = "PERMISSION"
    NOT_FOUND = "NOT_FOUND"
    REFUSED = "REFUSED"  # the input was understood and is not acceptable (policy, license)
    BUSY = "BUSY"


EXIT_STATUS: Final[Mapping[ErrorCode, int]] = {
    ErrorCode.INTERNAL: 1,
    ErrorCode.PROTOCOL: 1,
    ErrorCode.UNKNOWN_METHOD: 2,
    ErrorCode.INVALID_PARAMS: 2,
    ErrorCode.NOT_RUNNING: 3,
    ErrorCode.TIMEOUT: 4,
    ErrorCode.PERMISSION: 5,
    ErrorCode.NOT_FOUND: 6,
    ErrorCode.REFUSED: 7,
    ErrorCode.BUSY: 8,
}
"""Exit status of a command that ends with the error (docs/reference/commands.md)."""


class LocalError(Exception):
    """An error that crosses the local socket.

    `message` says what happened, `hint` what to do next (may be empty), and `details` carries
    what a program may want to read (a refused policy's `problems`, for example).
    """

    def __init__(
        self,
        code: ErrorCode,
        message: str,
        hint: str = "",
        details: Mapping[str, object] | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.hint = hint
        self.details: Mapping[str, object] = dict(details or {})

    def as_object(self) -> dict[str, object]:
        """The `error` member of a reply."""
        body: dict[str, object] = {"code": str(self.code), "message": self.message}
        if self.hint:
            body["hint"] = self.hint
        if self.details:
            body["details"] = dict(self.details)
        return body

    @classmethod
    def from_object(cls, body: object) -> LocalError:
        """The error of a reply's `error` member; whatever is missing is filled in."""
        if not isinstance(body, dict):
            return cls(ErrorCode.INTERNAL, "the daemon answered with an error of unknown form")
        try:
            code = ErrorCode(str(body.get("code")))
        except ValueError:
            code = ErrorCode.INTERNAL
        details = body.get("details")
        return cls(
            code,
            str(body.get("message", "")),
            str(body.get("hint", "")),
            details if isinstance(details, dict) else None,
        )
