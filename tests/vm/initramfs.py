# SPDX-License-Identifier: Apache-2.0
"""An initramfs with Python, the agent's package and its objects: a machine that only probes."""

from __future__ import annotations

import gzip
import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

_PYTHON: Final = Path("/usr/bin/python3.11")
_LIBRARY: Final = Path("/usr/lib/python3.11")
_LEFT_OUT: Final = re.compile(
    r"/(test|tests|idlelib|lib2to3|ensurepip|pydoc_data|tkinter|turtledemo|config-[^/]*|"
    r"__pycache__|dist-packages|distutils|venv|unittest|sqlite3|xmlrpc|wsgiref|asyncio)(/|$)"
)
_INIT: Final = """#!/bin/sh
# There is no console before /dev is: what PID 1 printed would be lost.
/bin/busybox mount -t devtmpfs devtmpfs /dev
exec </dev/console >/dev/console 2>&1
export PYTHONPATH=/licagent LICAGENT_BPF_OBJECTS=/licagent/objects PYTHONDONTWRITEBYTECODE=1
exec /usr/bin/python3.11 -B /licagent/probe.py
"""


def _libraries(program: Path) -> Iterator[Path]:
    done = subprocess.run(["ldd", str(program)], capture_output=True, text=True, check=False)
    for line in done.stdout.splitlines():
        for word in line.split():
            if word.startswith("/"):
                yield Path(word)


def _put(root: Path, source: Path, at: Path | None = None) -> None:
    target = root / str(at or source).lstrip("/")
    if target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy2(source.resolve(), target)


def build(root: Path, source: Path, target: Path) -> None:
    """Make the archive `target` (cpio, gzip) in the empty folder `root` from the clone `source`."""
    programs = [_PYTHON, Path("/bin/busybox")]
    for program in programs:
        _put(root, program)
    for path in _LIBRARY.rglob("*"):
        if path.is_file() and not _LEFT_OUT.search(str(path)):
            _put(root, path)
            if path.suffix == ".so":
                programs.append(path)
    libbpf = next(Path("/usr/lib").rglob("libbpf.so.1"))
    _put(root, libbpf)
    programs.append(libbpf)
    for library in sorted({found for program in programs for found in _libraries(program)}):
        _put(root, library)
    # ctypes asks for libbpf.so.1 by name, and the loader looks here without a cache.
    _put(root, libbpf, Path("/lib") / libbpf.parent.name / "libbpf.so.1")
    for package in ("agent/licagent", "token/lictoken"):
        folder = source / package
        for path in folder.rglob("*.py"):
            _put(root, path, Path("/licagent") / folder.name / path.relative_to(folder))
    for path in (source / "build" / "bpf").glob("*.bpf.o"):
        _put(root, path, Path("/licagent/objects") / path.name)
    probes = source / "tests" / "vm" / "guest"
    _put(root, probes / "kernel_probe.py", Path("/licagent/probe.py"))
    _put(root, probes / "lsm_probe.py", Path("/licagent/lsm_probe.py"))
    (root / "bin" / "sh").symlink_to("busybox")
    for place in ("proc", "sys", "dev", "run", "tmp", "etc"):
        (root / place).mkdir(exist_ok=True)
    (root / "etc" / "passwd").write_text("root:x:0:0:root:/:/bin/sh\n")
    init = root / "init"
    init.write_text(_INIT)
    init.chmod(0o755)
    _archive(root, target)


def _archive(root: Path, target: Path) -> None:
    names = "\n".join(_names(root)) + "\n"
    done = subprocess.run(
        ["cpio", "--quiet", "-o", "-H", "newc", "-R", "0:0"],
        input=names.encode(),
        cwd=root,
        stdout=subprocess.PIPE,
        check=True,
    )
    with gzip.open(target, "wb", compresslevel=1) as archive:
        archive.write(done.stdout)


def _names(root: Path) -> Iterable[str]:
    for folder, folders, files in os.walk(root):
        for name in (*folders, *files):
            yield str((Path(folder) / name).relative_to(root))
