# SPDX-License-Identifier: Apache-2.0
"""What licplane reports, with one exit code for each class of error."""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """Exit codes, shared with licagent (docs/reference lists them)."""

    OK = 0
    INTERNAL = 1
    USAGE = 2
    PERMISSION = 5
    NOT_FOUND = 6
    REFUSED = 7
    BUSY = 8


class PlaneError(Exception):
    """Something licplane will not or cannot do. `hint` says what to do next."""

    def __init__(self, code: ExitCode, message: str, hint: str) -> None:
        super().__init__(message, hint)
        self.code = code
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}. {self.hint}."


class Unauthenticated(PlaneError):
    """Nobody known stands behind the request. Says nothing about what exists."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(ExitCode.PERMISSION, message, hint)


class Conflict(PlaneError):
    """The thing is not as the caller read it (an etag or a counter that is not the newest)."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(ExitCode.REFUSED, message, hint)


class Exhausted(PlaneError):
    """There is no room for it: too many, or too large."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(ExitCode.REFUSED, message, hint)
