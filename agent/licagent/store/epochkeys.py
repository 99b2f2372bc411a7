# SPDX-License-Identifier: Apache-2.0
"""The keys of the ledger's epochs, in one file that is old or new, mode 0600."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from licagent.store.filelayer import FileLayer
from licagent.store.usagechain import EpochKey

_FILE: Final = "epochs.keys"
_TEMPORARY: Final = "epochs.keys.tmp"
_RANDOM_BITS: Final = 28


def new_epoch(now_unix_ms: int, newest: int) -> int:
    """A number that was never used before, on this host or after a restore: below 2**63.

    Seconds of the clock and 28 random bits; larger than `newest`, whatever the clock says.
    """
    seconds = min(max(now_unix_ms // 1000, 0), 2**34 - 1)
    number = seconds << _RANDOM_BITS | secrets.randbits(_RANDOM_BITS)
    return max(number, newest + 1 + secrets.randbits(_RANDOM_BITS - 8))


class EpochKeys:
    """Reads and writes them; the caller has the folder's lock."""

    def __init__(self, folder: Path, files: FileLayer) -> None:
        self._folder = folder
        self._files = files

    def load(self) -> tuple[dict[int, EpochKey], str]:
        """The keys, and what is wrong with the file ("": nothing). Raises OSError."""
        try:
            content = self._files.read(self._folder / _FILE)
        except FileNotFoundError:
            return {}, ""
        digest, _, body = content.partition(b"\n")
        try:
            if hashlib.sha256(body).hexdigest().encode() != digest:
                return {}, "its checksum does not fit"
            found = json.loads(body)
            return {int(epoch): EpochKey(bytes.fromhex(seed)) for epoch, seed in found.items()}, ""
        except (ValueError, AttributeError, TypeError) as error:
            return {}, str(error)

    def save(self, keys: Mapping[int, EpochKey]) -> None:
        """Replace them, durably. Raises OSError with the old ones in place."""
        body = json.dumps({str(epoch): key.seed.hex() for epoch, key in keys.items()}).encode()
        content = hashlib.sha256(body).hexdigest().encode() + b"\n" + body
        temporary = self._folder / _TEMPORARY
        with contextlib.suppress(FileNotFoundError):
            self._files.unlink(temporary)  # left by a crash
        handle = self._files.create(temporary)
        try:
            write_all(self._files, handle, content, 0)
            self._files.fsync(handle)
        finally:
            self._files.close(handle)
        self._files.rename(temporary, self._folder / _FILE)
        self._files.fsync_folder(self._folder)


def write_all(files: FileLayer, handle: int, data: bytes, offset: int) -> None:
    """Write all of it. Raises OSError; a part may have been written then."""
    while data:
        taken = files.write(handle, data, offset)
        if taken <= 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        data, offset = data[taken:], offset + taken
