# SPDX-License-Identifier: Apache-2.0
"""Whether the agent's own files are those that were installed.

Measured against the RECORD that pip and the packages leave beside an installed distribution
(Python packaging's "Recording installed projects"); where it names none of the files, as in a
source tree, against what was there when the agent started first. A file is hashed when it looks
changed, and at the start all of them are.

The packages' RECORD has their byte code as well, which is what runs: Python does not look at the
sources beside it. Elsewhere it does, and makes byte code anew as it likes: there it is left out.

This is evidence, not prevention: root can change the agent, the manifest and what is reported.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final, NamedTuple

PACKAGES: Final = ("licagent", "lictoken", "licapi")
"""What the agent is made of."""

_SUFFIXES: Final = frozenset((".py", ".o", ".bpf", ".so"))


class _Looks(NamedTuple):
    """What changes when a file does."""

    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int


class Integrity:
    """Compares files with a manifest, path -> SHA-256 in hex."""

    def __init__(self, manifest: Mapping[Path, str]) -> None:
        self._manifest = dict(manifest)
        self._seen: dict[Path, _Looks] = {}
        self._altered: set[Path] = set()

    def check(self) -> tuple[Path, ...]:
        """Files that are not as they should be, or are missing; hashes only what looks changed."""
        for path, digest in self._manifest.items():
            try:
                status = path.stat()
                looks = _Looks(
                    status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
                )
                if self._seen.get(path) == looks:
                    continue
                good = sha256(path) == digest
            except OSError:
                self._seen.pop(path, None)
                self._altered.add(path)
                continue
            self._seen[path] = looks
            if good:
                self._altered.discard(path)
            else:
                self._altered.add(path)
        return tuple(sorted(self._altered))

    def __len__(self) -> int:
        return len(self._manifest)


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def own_folders() -> tuple[Path, ...]:
    """The folders of the packages that the agent is made of, and of an installed one's programs."""
    import importlib.util

    found = []
    for name in PACKAGES:
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.submodule_search_locations:
            found.append(Path(next(iter(spec.submodule_search_locations))).resolve())
    objects = found[0] / "kernel" / "bpf_objects"
    if objects.is_symlink():  # in a source tree they are elsewhere, and built anew at any time
        found.append(objects.resolve())
    return tuple(found)


def files_of(folders: Iterable[Path]) -> tuple[Path, ...]:
    """The program files in some folders."""
    found: list[Path] = []
    for folder in folders:
        for at, folders_here, names in os.walk(folder):
            folders_here[:] = [name for name in folders_here if name != "__pycache__"]
            found += (Path(at) / name for name in names if Path(name).suffix in _SUFFIXES)
    return tuple(sorted(found))


def recorded(folders: Iterable[Path]) -> dict[Path, str]:
    """What the installation's RECORD says of the files in some folders."""
    wanted = tuple(folders)
    found: dict[Path, str] = {}
    for site in dict.fromkeys(folder.parent for folder in wanted):
        for record in sorted(site.glob("*.dist-info/RECORD")):
            try:
                text = record.read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError):
                continue
            for row in csv.reader(text.splitlines()):
                path = Path(os.path.normpath(site / row[0])) if len(row) == 3 else site
                if any(path.is_relative_to(folder) for folder in wanted) and row[1]:
                    algorithm, _, digest = row[1].partition("=")
                    if algorithm == "sha256":
                        found[path] = base64.urlsafe_b64decode(digest + "==").hex()
    return found


def measured(folders: Iterable[Path]) -> dict[Path, str]:
    """The program files in some folders as they are now. Raises OSError."""
    return {path: sha256(path) for path in files_of(folders)}
