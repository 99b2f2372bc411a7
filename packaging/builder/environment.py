# SPDX-License-Identifier: Apache-2.0
"""A private Python environment: /usr/lib/NAME, with our packages and the locked wheels.

It is a virtual environment in its layout (pyvenv.cfg beside bin/), so that the processes which
the daemon starts with its own interpreter see the same packages and no others: neither the
distribution's nor those that somebody put into /usr/local.

    /usr/lib/NAME/bin/python3     -> /usr/bin/python3.11
    /usr/lib/NAME/bin/NAME        what /usr/bin/NAME runs
    /usr/lib/NAME/pyvenv.cfg
    /usr/lib/NAME/site            our packages and what they need
    /usr/lib/NAME/lib/python3.11/site-packages -> ../../site
"""

from __future__ import annotations

import base64
import compileall
import csv
import hashlib
import os
import py_compile
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

PYTHON: Final = "python3.11"
"""The wheels are of one Python version, so the packages are too."""


@dataclass(frozen=True, slots=True)
class Environment:
    """What one package's environment is made of."""

    name: str
    packages: tuple[str, ...]  # folders of ours, from the sources' root
    requirements: str  # the lock file, below requirements/
    summary: str


ENVIRONMENTS: Final = {
    one.name: one
    for one in (
        Environment(
            "licagent",
            ("agent/licagent", "proto/licapi", "token/lictoken"),
            "agent.txt",
            "Makes infrastructure a licensed resource: the agent of a host",
        ),
        Environment(
            "licplane",
            ("controlplane/licplane", "proto/licapi", "token/lictoken"),
            "run.txt",
            "Makes infrastructure a licensed resource: the control plane",
        ),
    )
}

_LAUNCHER: Final = """\
# SPDX-License-Identifier: Apache-2.0
# Started by /usr/bin/{name}, in the isolated mode of this folder's interpreter.
import sys

from {name}.cli.main import main

sys.exit(main())
"""

_WRAPPER: Final = """\
#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Isolated (-I): no variable and no folder of whoever runs it adds a module. Nothing is written
# below /usr (-B).
exec /usr/lib/{name}/bin/python3 -I -B /usr/lib/{name}/bin/{name} "$@"
"""


def make(environment: Environment, source: Path, wheels: Path, root: Path, version: str) -> None:
    """Put the environment and its command below `root`, out of the folder `wheels` alone.

    Raises:
        subprocess.CalledProcessError: a wheel is missing, or has not the hash that is locked.
    """
    name = environment.name
    home = root / "usr" / "lib" / name
    site = home / "site"
    site.mkdir(parents=True)
    _install_wheels(source / "requirements" / environment.requirements, wheels, site)
    for package in environment.packages:
        folder = source / package
        shutil.copytree(
            folder, site / folder.name, ignore=shutil.ignore_patterns("__pycache__", "*.pyi")
        )
    # The distribution is one for both packages, by pyproject.toml; its version is asked for.
    about = site / f"licagent-{version}.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: licagent\nVersion: {version}\n"
        f"Summary: {environment.summary}\nLicense: Apache-2.0\n"
    )
    _tidy(site)
    _compile(site, root)
    (home / "bin").mkdir()
    (home / "bin" / "python3").symlink_to(f"../../../bin/{PYTHON}")
    (home / "bin" / name).write_text(_LAUNCHER.format(name=name))
    (home / "pyvenv.cfg").write_text(
        "home = /usr/bin\ninclude-system-site-packages = false\nversion = 3.11\n"
    )
    library = home / "lib" / PYTHON
    library.mkdir(parents=True)
    (library / "site-packages").symlink_to("../../site")
    command = root / "usr" / "bin" / name
    command.parent.mkdir(parents=True, exist_ok=True)
    command.write_text(_WRAPPER.format(name=name))
    command.chmod(0o755)


def record(environment: Environment, root: Path, version: str, more: Iterable[Path] = ()) -> None:
    """Write the RECORD of our own files, and of those in the folders `more`, once all are there.

    By it the agent sees whether it is what was installed (licagent.host.integrity): sources, and
    the byte code, which is what runs.
    """
    site = root / "usr" / "lib" / environment.name / "site"
    folders = [site / Path(package).name for package in environment.packages]
    found = [path for folder in (*folders, *more) for path in folder.rglob("*") if path.is_file()]
    with (site / f"licagent-{version}.dist-info" / "RECORD").open("w", newline="") as file:
        rows = csv.writer(file, lineterminator="\n")
        for path in sorted(found):
            digest = base64.urlsafe_b64encode(hashlib.sha256(path.read_bytes()).digest())
            name = os.path.relpath(path, site)
            rows.writerow((name, f"sha256={digest.decode().rstrip('=')}", path.stat().st_size))


def _install_wheels(requirements: Path, wheels: Path, site: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        # The pip that comes with Python itself: no other is asked of the machine that builds.
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        pip = [f"{folder}/bin/python", "-m", "pip", "--isolated", "--no-input", "--quiet"]
        pip += ["--disable-pip-version-check", "install", "--no-index", "--no-deps"]
        pip += ["--require-hashes", "--no-compile", "--only-binary", ":all:"]
        pip += ["--find-links", str(wheels), "--target", str(site), "-r", str(requirements)]
        # No settings of the machine that builds: they name places to look elsewhere.
        subprocess.run(pip, check=True, env={**os.environ, "PIP_CONFIG_FILE": os.devnull})


def _tidy(site: Path) -> None:
    """Take away what a running program never reads: scripts, tests, sources of extensions."""
    shutil.rmtree(site / "bin", ignore_errors=True)
    for folder in sorted(site.glob("*/tests")):
        shutil.rmtree(folder)
    for pattern in ("*.pyx", "*.pxd", "*.pxi", "*.c", "*.h", "*.pyi"):
        for path in sorted(site.rglob(pattern)):
            path.unlink()
    # pip's records of what it put where are no longer true, and nobody asks for them.
    for name in ("RECORD", "REQUESTED", "direct_url.json"):
        for path in sorted(site.glob(f"*.dist-info/{name}")):
            path.unlink()
    for path in site.rglob("*"):
        if path.is_symlink():
            continue
        is_library = path.suffix == ".so" or ".so." in path.name
        path.chmod(0o755 if path.is_dir() else 0o644)
        if not is_library and path.is_file() and path.read_bytes()[:2] == b"#!":
            # A module that says how to run it is no program here.
            text = path.read_bytes()
            path.write_bytes(b"#" + text[text.index(b"\n") :] if b"\n" in text else b"")


def _compile(site: Path, root: Path) -> None:
    """Byte code made once, here: installing is quick, and no run of root's leaves files in /usr.

    By hash and not by time, so that the same sources give the same files; unchecked, since a
    package's files change only with the package: the agent looks at both (`record`).
    """
    done = compileall.compile_dir(
        site,
        quiet=1,
        workers=os.cpu_count() or 1,
        invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
        stripdir=str(root),
        prependdir="/",
    )
    if not done:
        raise SystemExit("some modules do not compile")
