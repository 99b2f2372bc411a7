# SPDX-License-Identifier: Apache-2.0
"""Where the bench runs: a cgroup subtree, a bpffs mount and network namespaces of its own."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

CLIENT_UID: Final = 65001
"""User of the measured client, in the agent's bindings and in nftables' rules."""

SERVER: Final = "127.0.0.2"
"""Licensed destination."""

NO_RESOURCE: Final = "198.51.100.1"
"""Destination that nothing names (TEST-NET-2, on lo), nor any failsafe entry."""

PORT: Final = 18080
IPERF_PORT: Final = 5201

NFT_RULES: Final = f"""
table inet bench {{
    chain output {{
        type filter hook output priority 0; policy accept;
        ip daddr {SERVER} meta skuid {CLIENT_UID + 1} accept
        ip daddr {SERVER} meta skuid {CLIENT_UID + 2} accept
        ip daddr {SERVER} meta skuid {CLIENT_UID} accept
        ip daddr {SERVER} meta skuid != {CLIENT_UID} reject
    }}
}}
"""
"""The same job: a destination that only some users may reach; ours is the third of three.

The last line names a user again because packets that no socket owns any more (the last ACK, a RST)
have none: they must pass, or closed connections would hang on the far side.
"""


def cgroup2_mount() -> Path:
    """Where cgroup v2 is mounted. RuntimeError if it is not."""
    for line in Path("/proc/mounts").read_text(encoding="utf-8").splitlines():
        fields = line.split()
        if fields[2] == "cgroup2":
            return Path(fields[1])
    raise RuntimeError("no cgroup v2 mount: mount -t cgroup2 none FOLDER")


class Namespace:
    """A network namespace with lo up, held by a process of ours."""

    def __init__(self, *, nft: str = "") -> None:
        script = (
            "ip link set lo up && ip addr add 198.51.100.1/32 dev lo"
            " && echo 0 > /proc/sys/net/ipv4/tcp_max_tw_buckets"
            " && echo 65535 > /proc/sys/net/core/somaxconn"
            ' && { [ -z "$RULES" ] || printf %s "$RULES" | nft -f -; }'
            " && echo ready && exec sleep infinity"
        )
        self._holder = subprocess.Popen(
            ["unshare", "--net", "sh", "-c", script],
            stdout=subprocess.PIPE,
            env={**os.environ, "RULES": nft},
            text=True,
        )
        assert self._holder.stdout is not None
        if self._holder.stdout.readline() != "ready\n":
            raise RuntimeError("cannot make a network namespace of the bench's own; run as root")

    @property
    def path(self) -> str:
        """The namespace's file, for setns(2)."""
        return f"/proc/{self._holder.pid}/ns/net"

    def close(self) -> None:
        """End the holder, and with it the namespace."""
        self._holder.kill()
        self._holder.wait()


class Places:
    """All of it; `close` removes what was made."""

    def __init__(self) -> None:
        self._mounts: list[Path] = []
        with contextlib.ExitStack() as undo:
            self.folder = Path(tempfile.mkdtemp(prefix="licbench-"))
            undo.callback(shutil.rmtree, self.folder, ignore_errors=True)
            self.cgroup = cgroup2_mount() / f"licbench-{os.getpid()}"
            self.cgroup.mkdir()
            undo.callback(remove_cgroup, self.cgroup)
            self.plain = Namespace()
            undo.callback(self.plain.close)
            self.nft = Namespace(nft=NFT_RULES)
            undo.callback(self.nft.close)
            undo.callback(self._unmount)
            self.bare = self.make_cgroup("bare/work")
            self._undo = undo.pop_all()

    def make_cgroup(self, name: str) -> Path:
        """A cgroup below the bench's own."""
        folder = self.cgroup / name
        folder.mkdir(parents=True)
        return folder

    def make_bpffs(self, name: str) -> Path:
        """A bpffs of its own: unmounting it removes every pin, and with the pins the links."""
        folder = self.folder / name
        folder.mkdir(parents=True)
        subprocess.run(["mount", "-t", "bpf", "bpf", str(folder)], check=True)
        self._mounts.append(folder)
        pins = folder / "licagent"  # the kernel puts pins of its own at the top of a bpffs
        pins.mkdir()
        return pins

    def drop_bpffs(self, pins: Path) -> None:
        """Unmount one made by `make_bpffs`."""
        self._mounts.remove(pins.parent)
        subprocess.run(["umount", str(pins.parent)], check=True)

    def _unmount(self) -> None:
        for folder in self._mounts:
            subprocess.run(["umount", "--lazy", str(folder)], check=False)

    def close(self) -> None:
        """Remove everything, also after a failure half-way."""
        self._undo.close()


def remove_cgroup(folder: Path) -> None:
    """Remove a cgroup of ours and those below it; processes left in them are ended first."""
    for path in [*sorted(folder.rglob("*/"), reverse=True), folder]:
        for _ in range(100):
            try:
                path.rmdir()
                break
            except FileNotFoundError:
                break
            except OSError:
                for pid in (path / "cgroup.procs").read_text(encoding="ascii").split():
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(int(pid), signal.SIGKILL)
                time.sleep(0.02)


@contextlib.contextmanager
def kept_awake() -> Iterator[None]:
    """Ask for no CPU idle latency while measuring; without the device nothing happens."""
    try:
        fd = os.open("/dev/cpu_dma_latency", os.O_WRONLY)
    except OSError:
        yield
        return
    try:
        os.write(fd, bytes(ctypes.c_int32(0)))
        yield
    finally:
        os.close(fd)
