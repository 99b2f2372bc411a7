# SPDX-License-Identifier: Apache-2.0
"""Reading the files named on a command line, never more of them than their kind may have."""

from __future__ import annotations

import sys
from pathlib import Path

from licagent.local.errors import ErrorCode, LocalError


def read_bytes(path: Path, limit_bytes: int) -> bytes:
    """The content of `path` (`-`: standard input). LocalError if it cannot be read or is larger."""
    try:
        if str(path) == "-":
            data = sys.stdin.buffer.read(limit_bytes + 1)
        else:
            with path.open("rb") as stream:
                data = stream.read(limit_bytes + 1)
    except FileNotFoundError as error:
        raise LocalError(ErrorCode.NOT_FOUND, f"{path}: there is no such file") from error
    except PermissionError as error:
        raise LocalError(ErrorCode.PERMISSION, f"{path}: permission denied") from error
    except OSError as error:
        raise LocalError(ErrorCode.REFUSED, f"{path}: {error.strerror}") from error
    if len(data) > limit_bytes:
        raise _refused(path, f"larger than {limit_bytes} bytes", "too-large")
    return data


def read_text(path: Path, limit_bytes: int) -> str:
    """As `read_bytes`, decoded from UTF-8."""
    try:
        return read_bytes(path, limit_bytes).decode("utf-8")
    except UnicodeDecodeError as error:
        raise _refused(path, f"no UTF-8 text (byte {error.start})", "bad-utf8") from error


def read_license(path: Path, limit_bytes: int) -> str:
    """As `read_text`; zero bytes, which a torn write leaves, are no text of a license either."""
    text = read_text(path, limit_bytes)
    if "\0" in text:
        raise _refused(path, "holds zero bytes, copy it again from the issuer", "truncated")
    return text


def _refused(path: Path, message: str, refusal: str) -> LocalError:
    # Names of lictoken.errors.Refusal, which also the daemon gives.
    text = f"{path}: {message} [{refusal}]"
    return LocalError(ErrorCode.REFUSED, text, details={"refusal": refusal})
