# SPDX-License-Identifier: Apache-2.0
"""The disk of a Debian 12 host: made once by mmdebstrap, kept between runs.

The packages come from where this machine's own apt takes them. What is kept is named by a
fingerprint of everything it is made from, so that an edit here makes a new one.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.vm.kernels import cache_folder

SUITE: Final = "bookworm"
PACKAGES: Final = (
    *("systemd-sysv", "udev", "dbus", "dbus-user-session", "libpam-systemd", "systemd-container"),
    *("openssh-server", "sudo", "passwd", "adduser", "kmod", "e2fsprogs", "less", "procps"),
    *("python3", "python3-apt", "python3-bpfcc", "libbpf1", "libelf1", "bpftool", "quota"),
    *("iproute2", "iputils-ping", "nftables", "netcat-openbsd", "socat", "curl", "tcpdump"),
    *("ca-certificates", "strace"),
)
DISK_GIB: Final = 6
"""Of the file system; the file that holds it is sparse."""
_BUILD_S: Final = 900
_FILES: Final = {
    "etc/hostname": "licagent-vm\n",
    "etc/hosts": "127.0.0.1 localhost licagent-vm\n::1 localhost ip6-localhost\n",
    # The file system is mounted by the initramfs.
    "etc/fstab": "",
    # QEMU's own name server.
    "etc/resolv.conf": "nameserver 10.0.2.3\n",
    "etc/systemd/network/10-wired.network": (
        "[Match]\nName=eth*\n\n[Network]\nDHCP=ipv4\nLinkLocalAddressing=ipv6\n"
    ),
    # Commands of a test are processes of ssh.service: a session of each (PAM would start a user
    # manager for it) costs seconds under emulation. Tests of user units ask for a manager.
    "etc/ssh/sshd_config.d/vm-tests.conf": (
        "UsePAM no\nUseDNS no\nPermitRootLogin prohibit-password\nMaxSessions 100\n"
        "MaxStartups 100\nPrintMotd no\n"
    ),
    "etc/systemd/journald.conf.d/vm-tests.conf": (
        "[Journal]\nStorage=persistent\nSyncIntervalSec=1s\nRateLimitIntervalSec=0\n"
    ),
    # An emulated, shared machine is slow: it is not to give up where real ones would not.
    "etc/systemd/system.conf.d/vm-tests.conf": "[Manager]\nDefaultTimeoutStartSec=300s\n",
}
_OFF: Final = (
    *("apt-daily.timer", "apt-daily-upgrade.timer", "dpkg-db-backup.timer", "fstrim.timer"),
    *("e2scrub_all.timer", "e2scrub_reap.service", "getty@tty1.service"),
    *("systemd-networkd-wait-online.service", "serial-getty@ttyS0.service", "nftables.service"),
)
_FEATURES: Final = "^orphan_file,^metadata_csum_seed,quota"
"""What the oldest kernel of the matrix does not know is left out."""


class NoImage(Exception):
    """The disk could not be made; the text says why."""


@dataclass(frozen=True, slots=True)
class Image:
    """A file system to boot from; it is never written: machines write into overlays of it."""

    disk: Path
    """ext4, raw."""
    key: Path
    """The private SSH key that root's account lets in."""
    fingerprint: str


def fingerprint() -> str:
    """Of this file, by which the disk is made; the versions of the packages are not in it."""
    return hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:16]


def image() -> Image:
    """The disk, from the cache or newly made. Raises NoImage."""
    found = fingerprint()
    folder = cache_folder() / "images" / found
    made = Image(folder / "root.img", folder / "key", found)
    with locked(folder):
        if not made.disk.exists():
            if os.geteuid() != 0:
                raise NoImage("a disk image is made by root: run as root, or keep the cache")
            _make(made)
    return made


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Only one process at a time makes what belongs into `folder`, which is there afterwards."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _make(wanted: Image) -> None:
    folder = wanted.disk.parent
    wanted.key.unlink(missing_ok=True)
    wanted.key.with_suffix(".pub").unlink(missing_ok=True)
    _run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "licagent", "-f", str(wanted.key)])
    public = wanted.key.with_suffix(".pub").read_text()
    with tempfile.TemporaryDirectory(dir=folder, prefix="root-") as scratch:
        root = Path(scratch) / "root"
        _run(_bootstrap(root))
        _furnish(root, public)
        made = Path(scratch) / "root.img"
        with made.open("wb") as disk:
            disk.truncate(DISK_GIB << 30)
        # The features stand where older kernels read them; no journal check at each boot.
        options = ["-q", "-F", "-L", "vm-tests-root", "-O", _FEATURES, "-E", "quotatype=prjquota"]
        _run(["mkfs.ext4", *options, "-d", str(root), str(made)])
        made.rename(wanted.disk)
        shutil.rmtree(root)


def _bootstrap(root: Path) -> list[str]:
    sources = [str(path) for path in _sources()]
    options = ["--mode=root", "--variant=minbase", "--format=directory", "--quiet"]
    options += ['--aptopt=Acquire::Languages "none"', "--dpkgopt=path-exclude=/usr/share/doc/*"]
    options += ["--dpkgopt=path-exclude=/usr/share/locale/*"]
    return ["mmdebstrap", *options, f"--include={','.join(PACKAGES)}", SUITE, str(root), *sources]


def _sources() -> Iterator[Path]:
    """Where this machine's apt takes Debian from: the files that name Debian's keyring."""
    for path in (Path("/etc/apt/sources.list"), *sorted(Path("/etc/apt/sources.list.d").iterdir())):
        if path.suffix not in (".list", ".sources") or not path.is_file():
            continue
        text = path.read_text(errors="replace")
        if SUITE in text and "debian" in text:
            yield path


def _furnish(root: Path, public_key: str) -> None:
    for name, text in _FILES.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        path.write_text(text)
    # Options for the time of making only: packages under test bring their documents.
    for made in ("etc/dpkg/dpkg.cfg.d/99mmdebstrap", "etc/apt/apt.conf.d/99mmdebstrap"):
        (root / made).unlink(missing_ok=True)
    # A kernel's modules are mounted here.
    (root / "usr" / "lib" / "modules").mkdir(exist_ok=True)
    keys = root / "root" / ".ssh" / "authorized_keys"
    keys.parent.mkdir(mode=0o700, exist_ok=True)
    keys.write_text(public_key)
    keys.chmod(0o600)
    systemctl = ["systemctl", f"--root={root}", "--quiet"]
    _run([*systemctl, "enable", "systemd-networkd.service", "ssh.service"])
    _run([*systemctl, "mask", *_OFF])
    # An identity of its own at the first boot, as clones of an image get one.
    (root / "etc" / "machine-id").write_text("")


def _run(command: Sequence[str]) -> str:
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=_BUILD_S,
            env={**os.environ, "LC_ALL": "C"},
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NoImage(f"{command[0]}: {error}") from error
    if done.returncode != 0:
        raise NoImage(f"{' '.join(command)}: {done.stderr.strip()[-1500:]}")
    return done.stdout
