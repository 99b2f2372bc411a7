# SPDX-License-Identifier: Apache-2.0
"""Compile the enforcement core on this host by bcc, on maps that are pinned already.

Only ever imported by the loader process, which ends afterwards: bcc costs 65 MB of memory and
0.5 s to import, and compiling peaks at 135 MB. The bcc meant is iovisor's (Debian:
python3-bpfcc); the package of that name on PyPI is something else.
"""

from __future__ import annotations

import importlib
import os
import platform
import sys
from pathlib import Path
from typing import Any, Final

from licagent.kernel.hook_model import Hook
from licagent.kernel.libbpf import AttachType

_DISTRIBUTION_FOLDERS: Final = (
    "/usr/lib/python3/dist-packages",  # Debian
    "/usr/lib/python3/site-packages",
    f"/usr/lib/python3.{sys.version_info.minor}/site-packages",  # Fedora, RHEL
)

# enum bpf_prog_type, include/uapi/linux/bpf.h
_CGROUP_SKB: Final = 8
_CGROUP_SOCK: Final = 9
_CGROUP_SOCK_ADDR: Final = 18

_PROGRAM_TYPES: Final[dict[AttachType, int]] = {
    AttachType.CGROUP_INET4_CONNECT: _CGROUP_SOCK_ADDR,
    AttachType.CGROUP_INET6_CONNECT: _CGROUP_SOCK_ADDR,
    AttachType.CGROUP_UDP4_SENDMSG: _CGROUP_SOCK_ADDR,
    AttachType.CGROUP_UDP6_SENDMSG: _CGROUP_SOCK_ADDR,
    AttachType.CGROUP_INET4_BIND: _CGROUP_SOCK_ADDR,
    AttachType.CGROUP_INET6_BIND: _CGROUP_SOCK_ADDR,
    AttachType.CGROUP_INET4_POST_BIND: _CGROUP_SOCK,
    AttachType.CGROUP_INET6_POST_BIND: _CGROUP_SOCK,
    AttachType.CGROUP_INET_SOCK_CREATE: _CGROUP_SOCK,
    AttachType.CGROUP_INET_SOCK_RELEASE: _CGROUP_SOCK,
    AttachType.CGROUP_INET_EGRESS: _CGROUP_SKB,
    AttachType.CGROUP_INET_INGRESS: _CGROUP_SKB,
}


class BccUnavailable(Exception):
    """bcc is not installed, or not the right one."""


def _import_bcc() -> Any:
    for folder in _DISTRIBUTION_FOLDERS:
        if (Path(folder) / "bcc" / "libbcc.py").exists():
            sys.path.append(folder)
            break
    else:
        raise BccUnavailable("bcc is not installed; install python3-bpfcc (Debian) or python3-bcc")
    module = importlib.import_module("bcc")
    if not hasattr(module, "BPF"):
        raise BccUnavailable("the module named bcc is not iovisor's; remove the one from PyPI")
    return module


def kernel_version_code() -> int:
    """LINUX_VERSION_CODE of the running kernel."""
    numbers = [*platform.release().split("-")[0].split("."), "0", "0"][:3]
    major, minor, patch = (int("".join(c for c in part if c.isdigit()) or "0") for part in numbers)
    return (major << 16) + (minor << 8) + min(patch, 255)


def feature_defines(version: int) -> list[str]:
    """What the source must do without on a kernel of this version."""
    defines = []
    if version < (5 << 16) + (11 << 8):
        defines.append("-DLICAGENT_NO_COARSE_CLOCK")
    if version < (5 << 16) + (18 << 8):
        defines.append("-DLICAGENT_NO_SET_RETVAL")
    return defines


class BccObject:
    """One compiled source file. Keep it alive while its descriptors are used."""

    def __init__(self, source: Path, map_fds: dict[str, int]) -> None:
        stubs = source.parent / "bcc"
        os.environ["BCC_KERNEL_SOURCE"] = str(stubs)
        os.environ["BCC_LINUX_VERSION_CODE"] = str(kernel_version_code())
        self._bcc = _import_bcc()
        flags = [
            "-DLICAGENT_BCC",
            f"-I{stubs}/include",
            f"-I{source.parent}",
            "-I/usr/include",
            *(f"-I{folder}" for folder in sorted(Path("/usr/include").glob("*-linux-gnu"))),
            "-Wno-everything",
            *(f"-D{name}_fd={fd}" for name, fd in map_fds.items()),
            *feature_defines(kernel_version_code()),
        ]
        self._object = self._bcc.BPF(text=source.read_bytes(), cflags=flags)

    def program_fd(self, hook: Hook) -> int:
        """Load one program; its descriptor lives as long as this object."""
        if hook.attach_type is None:
            raise ValueError(f"{hook.name} is not a cgroup program")
        function = self._object.load_func(
            hook.program.encode(),
            _PROGRAM_TYPES[hook.attach_type],
            attach_type=int(hook.attach_type),
        )
        return int(function.fd)
