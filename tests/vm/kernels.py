# SPDX-License-Identifier: Apache-2.0
"""Debian's kernels, taken out of their packages: from the mirror that this machine uses."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

KEYRING: Final = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
_DOWNLOAD_S: Final = 600


@dataclass(frozen=True, slots=True)
class Kernel:
    """One row of the matrix."""

    name: str
    suite: str
    """Of Debian; "" for the suites of this machine."""
    package: str
    """A pattern of its package's name; the newest is taken."""


KERNELS: Final = (
    Kernel("5.10", "bullseye", r"linux-image-5\.10\.[0-9-]+-cloud-amd64"),
    Kernel("6.1", "", r"linux-image-6\.1\.[0-9-]+-cloud-amd64"),
    Kernel("6.12", "", r"linux-image-6\.12\.[0-9]+\+deb12-cloud-amd64"),
    # Since 7 the image stands in a package of its own.
    Kernel("7", "sid", r"linux-(image|binary)-7\.[0-9.]+\+deb[0-9]+-cloud-amd64"),
)


CPU: Final = "max,-avx,-avx2,-erms,-la57"
"""What QEMU emulates: all but wide vectors, byte-wise copies and a fifth level of page tables.

They are preferred where they are there, and slow when emulated.
"""


class NoKernel(Exception):
    """A kernel could not be had; the text says why."""


def cache_folder() -> Path:
    """Where downloads stay between runs: outside of the clone."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(os.environ.get("LICAGENT_VM_CACHE") or Path(base) / "licagent-vm")


def kernel(name: str) -> Kernel:
    """By the first numbers of its version. Raises NoKernel."""
    for found in KERNELS:
        if found.name == name:
            return found
    known = ", ".join(each.name for each in KERNELS)
    raise NoKernel(f"no kernel {name!r} is in the matrix: it has {known}")


def image(wanted: Kernel) -> Path:
    """The kernel image, from the cache or from the mirror. Raises NoKernel."""
    folder = cache_folder() / "kernels" / wanted.name
    kept = folder / "vmlinuz"
    if kept.exists():
        return kept
    folder.mkdir(parents=True, exist_ok=True)
    options = _options(wanted, folder)
    names = _run(["apt-cache", *options, "pkgnames", "linux-"]).split()
    found = sorted((name for name in names if re.fullmatch(wanted.package, name)), key=_version)
    if not found:
        raise NoKernel(f"the mirror has no package like {wanted.package}")
    for name in reversed(found):
        _run(["apt-get", *options, "-q", "download", name], folder)
        for package in folder.glob("*.deb"):
            _run(["dpkg-deb", "-x", str(package), str(folder / "unpacked")])
            package.unlink()
        # A package that only asks for others has no image: take the next.
        for candidate in (folder / "unpacked").rglob("vmlinuz*"):
            candidate.rename(kept)
            return kept
    raise NoKernel(f"no image in {', '.join(found)}")


def _version(name: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"[0-9]+", name))


def _options(wanted: Kernel, folder: Path) -> list[str]:
    """Options by which apt knows another suite without touching the machine's own lists."""
    if not wanted.suite:
        return []
    apt = folder / "apt"
    for name in ("lists/partial", "archives/partial"):
        (apt / name).mkdir(parents=True, exist_ok=True)
    sources = apt / "sources.list"
    sources.write_text(f"deb [signed-by={KEYRING}] {_mirror()} {wanted.suite} main\n")
    options = [
        *("-o", f"Dir::Etc::SourceList={sources}", "-o", "Dir::Etc::SourceParts=/dev/null"),
        *("-o", f"Dir::State::Lists={apt / 'lists'}", "-o", f"Dir::Cache={apt}"),
    ]
    _run(["apt-get", *options, "-q", "update"])
    return options


def _mirror() -> str:
    """Where this machine takes Debian's main archive from."""
    listed = _run(["apt-get", "indextargets", "--format", "$(REPO_URI) $(CODENAME)"])
    for line in listed.splitlines():
        address, _, codename = line.partition(" ")
        if "security" not in address and "-" not in codename:
            return address
    raise NoKernel("apt knows no archive: run apt-get update")


def _run(command: Sequence[str], folder: Path | None = None) -> str:
    done = subprocess.run(
        command,
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=_DOWNLOAD_S,
        env={**os.environ, "LC_ALL": "C"},
    )
    if done.returncode != 0:
        raise NoKernel(f"{' '.join(command)}: {done.stderr.strip()[-400:]}")
    return done.stdout
