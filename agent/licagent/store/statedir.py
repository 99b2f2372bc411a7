# SPDX-License-Identifier: Apache-2.0
"""The state folder: one daemon at a time, and documents that are old or new, never torn.

A document is two parts in one file: a line of JSON (schema, length and SHA-256 of the body),
then the body, also JSON. It is written to a temporary file, synced, renamed over the old one,
and the folder is synced, so that after a crash at any point one whole version is there. The
digest finds what the filesystem or a hand has changed since.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import stat
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from licagent.store.errors import (
    DocumentDamaged,
    DocumentSchemaUnknown,
    StateDirBusy,
    StateDirUnsafe,
    StateWriteFailed,
)

_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,63}")
_SUFFIX = ".json"
_TEMPORARY = re.compile(r"\.[a-z0-9-]+\.json\.tmp")
_LOCK = "lock"
_HEADER_MAX_BYTES: Final = 512
_RETRY_S: Final = 0.01
_DEAD_HOLDER_LIMIT_S: Final = 5.0
"""How long a lock is waited for whose holder is dead.

A daemon that was killed while it started a program leaves a child that has not reached its exec
yet, and with it the lock, for a moment.
"""
DOCUMENT_MAX_BYTES: Final = 256 * 1024 * 1024
"""Larger documents are refused: nothing of ours comes near it, so it is damage or a mistake."""


class StateDir:
    """The state folder, locked for as long as this object is open.

    The lock is flock(2) on a file in it: the kernel gives it back when the holder dies. It
    belongs to the open file, so a forked child that goes on without exec holds it as well.
    """

    def __init__(self, path: str | Path) -> None:
        """Create the folder (mode 0700) if need be and take the lock.

        Raises StateDirBusy when another process has it, StateDirUnsafe when it belongs to
        somebody else, StateWriteFailed when it cannot be made.
        """
        self.path = Path(path)
        self._fd = _open_directory(self.path)
        try:
            self._lock_fd = _lock(self._fd, self.path)
        except BaseException:
            os.close(self._fd)
            raise
        for name in os.listdir(self._fd):
            if _TEMPORARY.fullmatch(name):
                os.unlink(name, dir_fd=self._fd)  # left by a crash before the rename

    def __enter__(self) -> Self:
        """The folder itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close it."""
        self.close()

    def close(self) -> None:
        """Give the lock back. May be called twice."""
        for fd in (self._lock_fd, self._fd):
            if fd >= 0:
                os.close(fd)
        self._lock_fd = self._fd = -1

    def subdirectory(self, name: str) -> Path:
        """A folder in the state folder (mode 0700), made if need be."""
        _check_name(name)
        try:
            os.mkdir(name, 0o700, dir_fd=self._fd)
            os.fsync(self._fd)
        except FileExistsError:
            pass
        return self.path / name

    def names(self) -> tuple[str, ...]:
        """The names of all documents, in order."""
        return tuple(
            sorted(
                name.removesuffix(_SUFFIX)
                for name in os.listdir(self._fd)
                if name.endswith(_SUFFIX) and _NAME.fullmatch(name.removesuffix(_SUFFIX))
            )
        )

    def read_document(self, name: str, schema: str) -> dict[str, Any] | None:
        """The body of a document, or None where there is none.

        Raises DocumentDamaged, after setting the file aside as NAME.damaged-N, and
        DocumentSchemaUnknown, which leaves the file alone: it is whole, but not for us.
        """
        _check_name(name)
        try:
            fd = os.open(
                name + _SUFFIX, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._fd
            )
        except FileNotFoundError:
            return None
        with os.fdopen(fd, "rb") as file:
            if os.fstat(file.fileno()).st_size > DOCUMENT_MAX_BYTES:
                raise self._damaged(name, f"larger than {DOCUMENT_MAX_BYTES} bytes")
            content = file.read()
        try:
            found, body = _open_envelope(content)
        except ValueError as error:
            raise self._damaged(name, str(error)) from error
        if found != schema:
            raise DocumentSchemaUnknown(name, found, schema)
        return body

    def write_document(self, name: str, schema: str, body: dict[str, Any]) -> None:
        """Replace a document, durably: when this returns, a power cut does not undo it.

        Raises StateWriteFailed, with the old document still in place, when the disk refuses.
        """
        _check_name(name)
        content = _seal_envelope(schema, body)
        if len(content) > DOCUMENT_MAX_BYTES:
            raise StateWriteFailed(
                f"the state document {name} would be {len(content)} bytes, "
                f"more than {DOCUMENT_MAX_BYTES}: reduce the policy it comes from"
            )
        temporary = f".{name}{_SUFFIX}.tmp"
        try:
            _write_file(self._fd, temporary, content)
            os.rename(temporary, name + _SUFFIX, src_dir_fd=self._fd, dst_dir_fd=self._fd)
            os.fsync(self._fd)
        except OSError as error:
            _unlink_quietly(self._fd, temporary)
            raise StateWriteFailed(
                f"cannot write the state document {self.path / (name + _SUFFIX)}: "
                f"{error.strerror}. The version before it stands; free space or make the "
                "folder writable, then try again"
            ) from error

    def delete_document(self, name: str) -> bool:
        """Remove a document durably; whether there was one."""
        _check_name(name)
        try:
            os.unlink(name + _SUFFIX, dir_fd=self._fd)
        except FileNotFoundError:
            return False
        os.fsync(self._fd)
        return True

    def damaged(self) -> tuple[Path, ...]:
        """The files that were set aside, for `licagent doctor`."""
        return tuple(sorted(self.path.glob("*.damaged-*")))

    def _damaged(self, name: str, why: str) -> DocumentDamaged:
        number = 1
        while (self.path / f"{name}.damaged-{number}").exists():
            number += 1
        kept_as = f"{name}.damaged-{number}"
        os.rename(name + _SUFFIX, kept_as, src_dir_fd=self._fd, dst_dir_fd=self._fd)
        os.fsync(self._fd)
        return DocumentDamaged(name, why, self.path / kept_as)


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name!r} is no document name: use lower-case letters, digits and -")


def _open_directory(path: Path) -> int:
    try:
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        path.mkdir(mode=0o700, exist_ok=True)
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise StateWriteFailed(
            f"cannot open the state folder {path}: {error.strerror}. "
            "Run as root, or set state_dir to a folder that can be written"
        ) from error
    info = os.fstat(fd)
    if info.st_uid != os.geteuid():
        os.close(fd)
        raise StateDirUnsafe(
            f"{path} belongs to uid {info.st_uid}, not to {os.geteuid()}: whoever owns it could "
            f"undo revocations. Check its content, then `chown {os.geteuid()} {path}`"
        )
    if stat.S_IMODE(info.st_mode) != 0o700:
        os.fchmod(fd, 0o700)
    return fd


def _lock(directory_fd: int, path: Path) -> int:
    fd = os.open(
        _LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=directory_fd
    )
    limit = time.monotonic() + _DEAD_HOLDER_LIMIT_S
    try:
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                text = os.pread(fd, 32, 0).strip()
                holder = int(text) if text.isdigit() else None
                if holder is None or _is_alive(holder) or time.monotonic() > limit:
                    raise StateDirBusy(path, holder) from error
                time.sleep(_RETRY_S)
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's process, but one
        pass
    return True


def _write_file(directory_fd: int, name: str, content: bytes) -> None:
    fd = os.open(
        name,
        os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC,
        0o600,
        dir_fd=directory_fd,
    )
    try:
        view = memoryview(content)
        while view:
            view = view[os.write(fd, view) :]
        os.fsync(fd)
    finally:
        os.close(fd)


def _unlink_quietly(directory_fd: int, name: str) -> None:
    with contextlib.suppress(OSError):  # it was never made, or goes at the next start
        os.unlink(name, dir_fd=directory_fd)


def _seal_envelope(schema: str, body: dict[str, Any]) -> bytes:
    payload = json.dumps(body, separators=(",", ":"), allow_nan=False).encode()
    header = {
        "schema": schema,
        "length": len(payload),
        "sha256": hashlib.sha256(payload).hexdigest(),
    }
    return json.dumps(header).encode() + b"\n" + payload + b"\n"


def _open_envelope(content: bytes) -> tuple[str, dict[str, Any]]:
    head, newline, rest = content.partition(b"\n")
    if not newline or len(head) > _HEADER_MAX_BYTES:
        raise ValueError("its first line is no header")
    try:
        header = json.loads(head)
    except ValueError as error:  # also UnicodeDecodeError
        raise ValueError("its header is no JSON") from error
    if not isinstance(header, dict) or not isinstance(header.get("schema"), str):
        raise ValueError("its header names no schema")
    payload = rest[:-1]
    if header.get("length") != len(payload) or rest[-1:] != b"\n":
        raise ValueError(f"it holds {len(payload)} bytes, its header says {header.get('length')}")
    if header.get("sha256") != hashlib.sha256(payload).hexdigest():
        raise ValueError("its SHA-256 does not fit")
    body = json.loads(payload)
    if not isinstance(body, dict):
        raise ValueError("its body is no object")
    return header["schema"], body
