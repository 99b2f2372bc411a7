# SPDX-License-Identifier: Apache-2.0
"""One build of each kind: stage the sources, run the distribution's own tool, keep the result."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fcntl import LOCK_EX, flock
from pathlib import Path
from typing import Final

import inputs
import stage

_NAMES: Final = ("licagent", "licplane")


def deb(root: Path, version: str, out: Path) -> list[Path]:
    """The Debian packages of `version` in `out`: licagent_V_amd64.deb, licplane_V_amd64.deb."""
    names = [f"{name}_{version}_amd64.deb" for name in _NAMES]
    return _unless_made(root, version, [out / name for name in names], _build_deb)


def rpm(root: Path, version: str, out: Path) -> list[Path]:
    """The RPM packages of `version` in `out`."""
    names = [f"{name}-{version}-1.x86_64.rpm" for name in _NAMES]
    return _unless_made(root, version, [out / name for name in names], _build_rpm)


def _unless_made(
    root: Path, version: str, paths: list[Path], build: Callable[[Path, str, Path], list[Path]]
) -> list[Path]:
    """Build, unless `paths` are there and were made from what there is now."""
    out = paths[0].parent
    out.mkdir(parents=True, exist_ok=True)
    with _turn(out):
        kind = paths[0].suffix.removeprefix(".")
        stamp = out / f".{kind}-{version}.made-from"
        wanted = inputs.fingerprint(root, kind, version)
        made = all(path.is_file() for path in paths)
        if made and stamp.is_file() and stamp.read_text() == wanted:
            return paths
        print(f"dev: package: building {', '.join(path.name for path in paths)}", file=sys.stderr)
        stamp.unlink(missing_ok=True)
        with tempfile.TemporaryDirectory(prefix="licagent-package-") as folder:
            for built, path in zip(build(root, version, Path(folder)), paths, strict=True):
                # Beside the target and renamed: whoever reads it has one whole package.
                aside = path.with_name(f".{path.name}.new")
                shutil.copyfile(built, aside)
                aside.rename(path)
        stamp.write_text(wanted)
    return paths


@contextmanager
def _turn(out: Path) -> Iterator[None]:
    """Two builds into one folder take turns, and the second finds what the first has made."""
    with (out / ".lock").open("w") as file:
        flock(file, LOCK_EX)
        yield


def _run(command: list[str], folder: Path, log: Path, **variables: str) -> None:
    """Run a build tool; its output is shown only if it fails."""
    environment = {
        key: value for key, value in os.environ.items() if not key.startswith(("DEB", "PYTHON"))
    }
    environment.update(LC_ALL="C.UTF-8", **variables)
    with log.open("wb") as output:
        done = subprocess.run(
            command,
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            check=False,
        )
    if done.returncode:
        sys.stderr.write(log.read_text(errors="replace"))
    done.check_returncode()


def _build_deb(root: Path, version: str, folder: Path) -> list[Path]:
    source = folder / f"licagent-{version}"
    source.mkdir()
    stage.sources(root, source)
    _give_wheels(root, source / "wheels")
    when = stage.debian(source, version)
    # -d: ./dev package has installed what it needs; build-essential would bring a C compiler.
    command = ["dpkg-buildpackage", "--build=binary", "-d", "-us", "-uc"]
    _run(command, source, folder / "log", SOURCE_DATE_EPOCH=str(when), PATH=_system_path())
    return [folder / f"{name}_{version}_amd64.deb" for name in _NAMES]


def _build_rpm(root: Path, version: str, folder: Path) -> list[Path]:
    source = folder / f"licagent-{version}"
    source.mkdir()
    stage.sources(root, source)
    _give_wheels(root, source / "wheels")
    when = stage.rpm(source, version)
    top = folder / "rpmbuild"
    command = ["rpmbuild", "-bb", "--build-in-place", "--define", f"_topdir {top}"]
    command += ["--define", f"licagent_version {version}", "packaging/rpm/licagent.spec"]
    _run(command, source, folder / "log", SOURCE_DATE_EPOCH=str(when), PATH=_system_path())
    return [top / "RPMS" / "x86_64" / f"{name}-{version}-1.x86_64.rpm" for name in _NAMES]


def _give_wheels(root: Path, folder: Path) -> None:
    """Copy the wheels from where they stay between builds."""
    kept = root / "build" / "wheels"
    stage.wheels(root, kept)
    shutil.copytree(kept, folder)


def _system_path() -> str:
    """Programs of the distribution only: a Python in somebody's home has no place in a package."""
    return "/usr/sbin:/usr/bin:/sbin:/bin"
