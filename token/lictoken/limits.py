# SPDX-License-Identifier: Apache-2.0
"""Bounds that hold before anything is decoded, and file reading that keeps them."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Final

from lictoken.errors import Refusal, TokenError

TOKEN_MAX_BYTES: Final = 16 * 1024
"""Longest token that is looked at, armour included."""

TRUST_MAX_BYTES: Final = 1024 * 1024
"""Longest trust file that is looked at (about 3,000 keys)."""

DEPTH_MAX: Final = 8
"""Deepest nesting of JSON; a license needs 6."""


def check_size(data: bytes, max_bytes: int, what: str) -> None:
    """Refuse `data` with TOO_LARGE when it is longer than `max_bytes`."""
    if len(data) > max_bytes:
        raise TokenError(
            Refusal.TOO_LARGE, f"{what} has {len(data)} bytes, at most {max_bytes} are read"
        )


def read_bounded(path: Path, max_bytes: int) -> bytes:
    """Read a regular file of at most `max_bytes` bytes, never more than one byte beyond.

    A fifo or device is refused without waiting for it: O_NONBLOCK makes open(2) return at
    once, and only regular files are read. Raises TokenError UNREADABLE or TOO_LARGE.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise TokenError(Refusal.UNREADABLE, f"{path}: {reason}") from error
    try:
        return _read_open(descriptor, path, max_bytes)
    except OSError as error:
        raise TokenError(Refusal.UNREADABLE, f"{path}: {error.strerror}") from error
    finally:
        os.close(descriptor)


def _read_open(descriptor: int, path: Path, max_bytes: int) -> bytes:
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        raise TokenError(Refusal.UNREADABLE, f"{path} is not a regular file")
    if status.st_size > max_bytes:
        raise TokenError(
            Refusal.TOO_LARGE, f"{path} has {status.st_size} bytes, at most {max_bytes} are read"
        )
    data = b""
    while len(data) <= max_bytes:
        part = os.read(descriptor, max_bytes + 1 - len(data))
        if not part:
            break
        data += part
    # The file may have grown since fstat.
    check_size(data, max_bytes, str(path))
    return data
