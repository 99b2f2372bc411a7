# SPDX-License-Identifier: Apache-2.0
"""Texts that others chose (paths, names of units), as a message of protobuf can hold them."""

from __future__ import annotations

import hashlib


def sendable(value: str, bytes_max: int) -> str:
    """What protobuf and PostgreSQL can hold, in `bytes_max` bytes of UTF-8 (at least 32).

    A name may be any bytes but NUL and the slash; those that are no UTF-8, which Python shows as
    surrogates, are written as escapes. What is longer is cut and ends in a hash of the whole, so
    that no two become one.
    """
    if value.isascii() and len(value) <= bytes_max and "\0" not in value:
        return value
    data = value.replace("\0", "\\0").encode("utf-8", "backslashreplace")
    if len(data) > bytes_max:
        mark = f"...#{hashlib.sha256(data).hexdigest()[:16]}".encode()
        data = data[: bytes_max - len(mark)].decode("utf-8", "ignore").encode() + mark
    return data.decode()
