# SPDX-License-Identifier: Apache-2.0
"""A batch's records as one compressed blob, byte for byte as the host sent them."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from typing import Final

from licplane.store.session import inconsistent

_LENGTH: Final = struct.Struct(">I")
_LEVEL: Final = 1
"""zlib: three quarters off, at a microsecond a record."""
BLOB_BYTES_MAX: Final = 64 * 1024 * 1024
"""What a blob may unpack to: far above a message's limit."""


def pack(records: Sequence[bytes]) -> bytes:
    """The blob of these records."""
    length = _LENGTH.pack
    return zlib.compress(b"".join([length(len(one)) + one for one in records]), _LEVEL)


def unpack(blob: bytes) -> list[bytes]:
    """The records in a blob. Raises PlaneError INTERNAL for one that was altered."""
    try:
        unpacking = zlib.decompressobj()
        data = unpacking.decompress(blob, BLOB_BYTES_MAX)
        if not unpacking.eof or unpacking.unused_data:
            raise ValueError("it does not end where it should")
        found = []
        at = 0
        while at < len(data):
            (size,) = _LENGTH.unpack_from(data, at)
            at += _LENGTH.size
            if at + size > len(data):
                raise ValueError("a record is cut off")
            found.append(data[at : at + size])
            at += size
    except (zlib.error, struct.error, ValueError) as error:
        raise inconsistent(f"records of a batch cannot be read ({error})") from error
    return found
