# SPDX-License-Identifier: Apache-2.0
"""The state folder: whose it is, its lock, and files in it that are whole or absent.

A file is replaced by writing a new one beside it, fsync, rename(2), fsync of the folder. So a
crash at any moment leaves the old text or the new one.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, cast

from licplane.errors import ExitCode, PlaneError

_LOCK_WAIT_S: Final = 10.0
_LOCK_POLL_S: Final = 0.05
_TEMPORARY: Final = ".new-"
PRIVATE_MODE: Final = 0o600
PUBLIC_MODE: Final = 0o644


def write_atomically(path: Path, data: bytes, mode: int) -> None:
    """Replace `path` by a file with `data` and `mode`, durable when this returns."""
    temporary = path.with_name(f"{_TEMPORARY}{secrets.token_hex(8)}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
    descriptor = os.open(temporary, flags, PRIVATE_MODE)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
        temporary.rename(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make the folder's entries durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class StateFolder:
    """licplane's state: licplane.db, notify/ and lock.

    keys/, licenses/, trust.jwks and numbers.json are what it was before there was a database.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.keys = root / "keys"
        self.licenses = root / "licenses"
        self.trust = root / "trust.jwks"
        self.numbers = root / "numbers.json"

    def require(self) -> None:
        """Refuse a folder that is absent or that others may change."""
        try:
            status = self.root.stat()
        except FileNotFoundError as error:
            raise PlaneError(
                ExitCode.NOT_FOUND,
                f"There is no licplane state in {self.root}",
                "Make a key first with `licplane keys create --issuer NAME`, or name another"
                " folder with --state",
            ) from error
        if not stat.S_ISDIR(status.st_mode):
            raise PlaneError(
                ExitCode.REFUSED, f"{self.root} is not a folder", "Name another with --state"
            )
        if status.st_mode & 0o022 or status.st_uid not in (0, os.geteuid()):
            raise PlaneError(
                ExitCode.PERMISSION,
                f"Others may change {self.root}, so what it holds cannot be relied on",
                f"Make it your own: chown {os.geteuid()} {self.root} && chmod 0700 {self.root}",
            )

    def create(self) -> None:
        """Make the folder (0700) if it is absent."""
        self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.require()

    @contextmanager
    def locked(self, wait_s: float = _LOCK_WAIT_S) -> Iterator[None]:
        """Hold the folder's lock; the kernel gives it back when the process ends."""
        self.require()
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
        descriptor = os.open(self.root / "lock", flags, PRIVATE_MODE)
        try:
            self._acquire(descriptor, wait_s)
            self._sweep()
            yield
        finally:
            os.close(descriptor)

    def _acquire(self, descriptor: int, wait_s: float) -> None:
        end_s = time.monotonic() + wait_s
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                if time.monotonic() >= end_s:
                    raise PlaneError(
                        ExitCode.BUSY,
                        f"Another licplane has been changing {self.root} for {wait_s:.0f} s",
                        "Try again when it is done",
                    ) from error
                time.sleep(_LOCK_POLL_S)
            else:
                return

    def _sweep(self) -> None:
        """Remove what a crash left half written. Only under the lock."""
        for folder in (self.root, self.keys, self.licenses):
            for leftover in folder.glob(f"{_TEMPORARY}*"):
                leftover.unlink(missing_ok=True)


def read_document(path: Path) -> dict[str, object]:
    """A JSON object of ours. Raises FileNotFoundError, or PlaneError when it is damaged."""
    try:
        value = json.loads(path.read_bytes())
        if not isinstance(value, dict) or value.get("schema_version") != 1:
            raise ValueError("not an object of schema_version 1")
    except ValueError as error:
        raise damaged(path, str(error)) from error
    return cast("dict[str, object]", value)


def damaged(path: Path, why: str) -> PlaneError:
    """The error for a file of ours that does not make sense."""
    return PlaneError(
        ExitCode.INTERNAL, f"{path} is damaged: {why}", "Restore the folder from a backup"
    )
