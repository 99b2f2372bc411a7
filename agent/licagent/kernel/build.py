# SPDX-License-Identifier: Apache-2.0
"""The build: what is to be loaded, and which one is at work."""

from __future__ import annotations

import hashlib
import os
import platform
from collections.abc import Collection
from pathlib import Path
from typing import Final

from licagent.kernel.bpffs import PinFolder
from licagent.kernel.hooks import HOOKS
from licagent.kernel.maps import Map

_BUILD_SIZE: Final = 80


def object_folder() -> Path:
    """Where the built objects are: LICAGENT_BPF_OBJECTS, the package, or the source tree."""
    if configured := os.environ.get("LICAGENT_BPF_OBJECTS"):
        return Path(configured)
    packaged = Path(__file__).parent / "bpf_objects"
    if packaged.is_dir():
        return packaged
    return Path(__file__).parents[3] / "build" / "bpf"


def source_folder() -> Path:
    """Where the BPF sources are, for bcc: LICAGENT_BPF_SOURCES, the package, or the tree."""
    if configured := os.environ.get("LICAGENT_BPF_SOURCES"):
        return Path(configured)
    packaged = Path(__file__).parent / "bpf_sources"
    if packaged.is_dir():
        return packaged
    return Path(__file__).parents[3] / "bpf"


def build_id(loader: str) -> str:
    """What would be loaded: a digest over kernel, loader and all objects or sources."""
    digest = hashlib.sha256(f"{platform.release()} {loader}".encode())
    for path in sorted(object_folder().glob("*.bpf.o")):
        digest.update(path.read_bytes())
    if loader == "bcc":
        for path in sorted(source_folder().rglob("*.[ch]")):
            digest.update(path.read_bytes())
    return digest.hexdigest()


def installed(pins: PinFolder) -> tuple[str, frozenset[str]]:
    """The build that is at work, and the names of those of its hooks that the kernel took."""
    path = pins.maps / "build"
    if not path.exists():
        return "", frozenset()
    build = Map(path)
    try:
        value = build.lookup(bytes(4)) or b""
    finally:
        build.close()
    digest, _, mask = value.rstrip(b"\0").decode(errors="replace").partition(":")
    try:
        bits = int(mask, 16)
    except ValueError:  # of an earlier version
        return "", frozenset()
    return digest, frozenset(hook.name for index, hook in enumerate(HOOKS) if bits >> index & 1)


def record(pins: PinFolder, digest: str, attached: Collection[str]) -> None:
    """Remember what is at work; nothing where something is missing that enforcement needs."""
    mask = sum(1 << index for index, hook in enumerate(HOOKS) if hook.name in attached)
    is_whole = all(hook.name in attached for hook in HOOKS if hook.required)
    value = f"{digest}:{mask:x}" if is_whole else ""
    build = Map(pins.maps / "build")
    try:
        build.update(bytes(4), value.encode().ljust(_BUILD_SIZE, b"\0"))
    finally:
        build.close()
