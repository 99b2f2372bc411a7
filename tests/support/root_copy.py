# SPDX-License-Identifier: Apache-2.0
"""A copy of this machine's file system that only one test sees, to install packages into."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path


class RootCopy:
    """An overlay over `/`, in a mount namespace of its own. It is gone with `close()`."""

    def __init__(self, folder: Path, *, kernel: bool = False) -> None:
        """Make it in the empty `folder`; `kernel`: with cgroups, and a BPF file system on /mnt."""
        self.root = folder / "root"
        script = (
            # Mounts of tests beside this one stay theirs.
            "awk '$2 ~ \"/licagent-\" {print $2}' /proc/mounts"
            " | xargs -r umount -l 2>/dev/null || true;"
            f" mount -t tmpfs tmpfs {folder} && cd {folder} && mkdir upper work root &&"
            " mount -t overlay -o lowerdir=/,upperdir=upper,workdir=work overlay root &&"
            " mount -t tmpfs tmpfs root/run && mount -t tmpfs tmpfs root/tmp &&"
            " mount -t proc proc root/proc"
        )
        if kernel:
            script += (
                " && mount -t sysfs sysfs root/sys && mount --rbind /sys/fs/cgroup"
                " root/sys/fs/cgroup && mount -t bpf bpf root/mnt"
            )
        script += " && echo ready && exec cat"
        self._holder = subprocess.Popen(
            ["unshare", "--mount", "--propagation", "private", "sh", "-ec", script],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._holder.stdout is not None
        assert self._holder.stdout.readline() == "ready\n"

    def run(
        self, command: str, *, check: bool = True, chroot: bool = True, as_host: bool = False
    ) -> str:
        """A shell command in the copy, or beside it where the machine's own tools are wanted.

        `as_host`: the copy's root is that of its process 1, as on a host; else it is a chroot.
        """
        inside = ["chroot", str(self.root)] if chroot else []
        if as_host:
            inside = ["unshare", "--pid", "--fork", f"--mount-proc={self.root}/proc", *inside]
        done = subprocess.run(
            ["nsenter", f"--mount=/proc/{self._holder.pid}/ns/mnt", *inside, "sh", "-ec", command],
            capture_output=True,
            text=True,
            check=False,
            env={
                "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
                "LC_ALL": "C.UTF-8",
                "DEBIAN_FRONTEND": "noninteractive",
            },
        )
        if check:
            assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    def put(self, path: Path) -> str:
        """Bring a file into the copy's /tmp; its name there."""
        # The copy's lower layer is the real file system, so the clone may be seen in it; but not
        # if it lies below /tmp or on another file system.
        number, target = self._holder.pid, f"{self.root}/tmp/{path.name}"
        with path.open("rb") as file:
            subprocess.run(
                ["nsenter", f"--mount=/proc/{number}/ns/mnt", "tee", target],
                stdin=file,
                stdout=subprocess.DEVNULL,
                check=True,
            )
        return f"/tmp/{path.name}"

    def close(self) -> None:
        self._holder.send_signal(signal.SIGTERM)
        self._holder.communicate()
