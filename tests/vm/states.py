# SPDX-License-Identifier: Apache-2.0
"""Machines in a known state, kept as files: booted, and with the packages installed.

To boot under emulation takes half a minute, to install as long again; to be back in a saved state
takes three seconds. A state's name holds a fingerprint of what it came from.
"""

from __future__ import annotations

import hashlib
import inspect
import shutil
import subprocess
import tempfile
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from tests.vm.bootfiles import boot_files
from tests.vm.image import image, locked
from tests.vm.kernels import CPU, cache_folder
from tests.vm.machine import Hardware, Machine

DIST: Final = Path(__file__).parents[2] / "dist"
FRESH: Final = "fresh"
INSTALLED: Final = "installed"
START_S: Final = 600
"""What systemd gives each service to start in; so long a test waits for one, too."""
_SLOW: Final = "/etc/systemd/system/service.d/emulated.conf"
"""Added to every service."""
_INSTALL_S: Final = 1200


class NoPackage(Exception):
    """There is nothing to install; the text says what to do."""


def package(name: str, version: str = "") -> Path:
    """The package of that name in dist/; without a version, of this revision's.

    Raises NoPackage.
    """
    project = tomllib.loads((DIST.parent / "pyproject.toml").read_text())["project"]
    found = DIST / f"{name}_{version or project['version']}_amd64.deb"
    if not found.exists():
        raise NoPackage(f"dist/ has no {found.name}: run ./dev package --deb")
    return found


def fresh(hardware: Hardware | None = None) -> Machine:
    """A running machine without any of our packages, with a snapshot "fresh" of it."""
    hardware = hardware or Hardware()
    return _state(FRESH, hardware, (), lambda: _booted(hardware))


def installed(hardware: Hardware | None = None) -> Machine:
    """A running machine with both packages as they come, with a snapshot "installed" of it.

    The agent runs and observes, as after every installation; the control plane is not started.
    """
    hardware = hardware or Hardware()
    packages = (package("licagent"), package("licplane"))

    def prepare() -> Machine:
        machine = fresh(hardware)
        install(machine, *packages)
        machine.wait_for("systemctl is-active licagent.service", timeout=START_S)
        machine.wait_for("licagent status --timeout 30 || test $? -ge 150", timeout=120)
        return machine

    return _state(INSTALLED, hardware, packages, prepare)


def install(machine: Machine, *packages: Path) -> None:
    """Install Debian packages by apt, as a user does with files."""
    for path in packages:
        machine.put(path, f"/var/tmp/{path.name}")
    names = " ".join(f"/var/tmp/{path.name}" for path in packages)
    apt = "DEBIAN_FRONTEND=noninteractive apt-get -q -y --no-install-recommends"
    # The machine is nobody's: what a power cut would lose of the installation may be lost.
    apt += " -o Dpkg::Options::=--force-unsafe-io"
    machine.run(f"{apt} --allow-downgrades install {names}", timeout=_INSTALL_S)
    machine.run(f"rm {names}")


def _booted(hardware: Hardware) -> Machine:
    machine = Machine.boot(
        kernel=hardware.kernel,
        memory_mib=hardware.memory_mib,
        cmdline_extra=hardware.cmdline_extra,
    )
    try:
        machine.run("systemctl is-system-running --wait", check=False, timeout=START_S)
        # Emulated and beside other tests, a start takes a minute that takes a second elsewhere.
        machine.write(_SLOW, f"[Service]\nTimeoutStartSec={START_S}\n")
        machine.run("systemctl daemon-reload")
    except BaseException:
        machine.stop()
        raise
    return machine


def _state(
    name: str, hardware: Hardware, sources: Sequence[Path], prepare: Callable[[], Machine]
) -> Machine:
    folder = cache_folder() / "states"
    kind = f"{name}-{hardware.kernel}-{hardware.memory_mib}"
    kept = folder / f"{kind}-{_fingerprint(hardware, sources)}.qcow2"
    with locked(folder / f".{kind}"):
        if not kept.exists():
            machine = prepare()
            try:
                machine.snapshot(name)
                machine.quit()
                for older in folder.glob(f"{kind}-*.qcow2"):
                    older.unlink()
                shutil.copy2(machine.disk, kept.with_suffix(".new"))
                kept.with_suffix(".new").rename(kept)
            finally:
                machine.stop()
        copy = Path(tempfile.mkdtemp(prefix="licagent-vm-")) / "disk.qcow2"
        subprocess.run(["cp", "--sparse=always", str(kept), str(copy)], check=True)
    return Machine.resume(copy, name, hardware)


def _fingerprint(hardware: Hardware, sources: Sequence[Path]) -> str:
    """Of what a state is made from; the emulator's version decides whether it can read it."""
    base, files = image(), boot_files(hardware.kernel)
    emulator = subprocess.run(
        ["qemu-system-x86_64", "--version"], capture_output=True, check=True
    ).stdout
    words = (hardware, base.disk, base.disk.stat().st_mtime_ns, files.initrd.parent, emulator, CPU)
    digest = hashlib.sha256(repr(words).encode())
    digest.update(inspect.getsource(Machine._command).encode())
    for path in (*sources, Path(__file__)):
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:16]
