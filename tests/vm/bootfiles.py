# SPDX-License-Identifier: Apache-2.0
"""What a machine boots a kernel from: the image, a small initramfs, and a disk of its modules.

The root disk holds no kernel, so that one disk serves every kernel of the matrix.
"""

from __future__ import annotations

import hashlib
import lzma
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.vm import initramfs, kernels
from tests.vm.image import locked

_WANTED: Final = ("virtio_pci", "virtio_blk", "ext4", "quota_v2")
"""What must be there to find the disks; further modules come from the disk."""
_INIT: Final = """#!/bin/sh
# Finds the disks and hands over to the system on the first of them.
/bin/busybox mount -t devtmpfs devtmpfs /dev
exec </dev/console >/dev/console 2>&1
set -e
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sysfs /sys
while read -r module; do /bin/busybox insmod "/modules/$module"; done </modules/order
while ! [ -b /dev/vdb ]; do /bin/busybox sleep 0.1; done
/bin/busybox mount -t ext4 -o rw,prjquota /dev/vda /root
/bin/busybox mount -t ext4 -o ro /dev/vdb /root/usr/lib/modules
/bin/busybox umount /proc
/bin/busybox umount /sys
exec /bin/busybox switch_root /root /sbin/init
"""


@dataclass(frozen=True, slots=True)
class BootFiles:
    """What QEMU is given for one kernel."""

    vmlinuz: Path
    initrd: Path
    modules: Path
    """ext4, raw, read only: what /usr/lib/modules is."""


def boot_files(name: str) -> BootFiles:
    """For the kernel of that name, from the cache or newly made. Raises kernels.NoKernel."""
    wanted = kernels.kernel(name)
    vmlinuz = kernels.image(wanted)
    recipe = hashlib.sha256(f"{_INIT}{_WANTED}".encode())
    recipe.update(vmlinuz.read_bytes())
    folder = vmlinuz.parent / f"boot-{recipe.hexdigest()[:16]}"
    made = BootFiles(vmlinuz, folder / "initrd.gz", folder / "modules.img")
    with locked(folder):
        if not made.initrd.exists():
            _make(wanted, made)
    return made


def _make(wanted: kernels.Kernel, made: BootFiles) -> None:
    with tempfile.TemporaryDirectory(dir=made.initrd.parent, prefix="make-") as scratch:
        tree = _modules(wanted, made.vmlinuz, Path(scratch))
        _plain(tree)
        _run(["depmod", "-b", str(Path(scratch) / "tree"), tree.name])
        features = "^has_journal,^orphan_file,^metadata_csum_seed"
        _run(["mkfs.ext4", "-qFO", features, "-d", str(tree.parent), str(made.modules), "192m"])
        root = Path(scratch) / "initrd"
        (root / "modules").mkdir(parents=True)
        order = []
        for module in _order(tree):
            shutil.copy2(module, root / "modules" / module.name)
            order.append(module.name)
        (root / "modules" / "order").write_text("".join(f"{each}\n" for each in order))
        (root / "bin").mkdir()
        shutil.copy2(Path("/bin/busybox").resolve(), root / "bin" / "busybox")
        (root / "bin" / "sh").symlink_to("busybox")
        for name in ("proc", "sys", "dev", "root"):
            (root / name).mkdir()
        (root / "init").write_text(_INIT)
        (root / "init").chmod(0o755)
        initramfs._archive(root, made.initrd)


def _modules(wanted: kernels.Kernel, vmlinuz: Path, scratch: Path) -> Path:
    """A copy of the modules in a tree of its own: lib/modules/RELEASE under scratch/tree."""
    unpacked = vmlinuz.parent / "unpacked"
    found = next(unpacked.rglob("virtio_net.ko*"), None)
    if found is None:
        # Since 7 the modules stand in a package of their own.
        version = next(unpacked.glob("usr/lib/modules/*")).name
        _unpack(wanted, f"linux-modules-{version}", unpacked)
        found = next(unpacked.rglob("virtio_net.ko*"), None)
    if found is None:
        raise kernels.NoKernel(f"the packages of kernel {wanted.name} have no virtio_net")
    release = found.parents[3]
    tree = scratch / "tree" / "lib" / "modules" / release.name
    shutil.copytree(release, tree, symlinks=True, ignore=shutil.ignore_patterns("vmlinuz*"))
    return tree


def _unpack(wanted: kernels.Kernel, package: str, into: Path) -> None:
    options = kernels._options(wanted, into.parent)
    kernels._run(["apt-get", *options, "-q", "download", package], into.parent)
    for file in into.parent.glob("*.deb"):
        kernels._run(["dpkg-deb", "-x", str(file), str(into)])
        file.unlink()


def _plain(tree: Path) -> None:
    """Undo compression: busybox's insmod knows none of it."""
    for packed in tree.rglob("*.ko.xz"):
        packed.with_suffix("").write_bytes(lzma.decompress(packed.read_bytes()))
        packed.unlink()


def _order(tree: Path) -> Iterator[Path]:
    """The wanted modules and what they need, in the order of loading; built-in ones are left out.

    modules.dep names all that a module needs, each before those it needs itself.
    """
    needs = {}
    for line in (tree / "modules.dep").read_text().splitlines():
        path, _, others = line.partition(":")
        needs[Path(path).name.removesuffix(".ko")] = [path, *others.split()]
    given: set[str] = set()
    for name in _WANTED:
        for needed in reversed(needs.get(name, [])):
            if needed not in given:
                given.add(needed)
                yield tree / needed


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise kernels.NoKernel(f"{' '.join(command)}: {done.stderr.strip()[-400:]}")
