# SPDX-License-Identifier: Apache-2.0
"""A daemon as its unit confines it: its capabilities, no socket but UNIX and netlink, and no look
at the clock's state.

What systemd does by RestrictAddressFamilies= and ProtectClock= is one seccomp filter (seccomp(2));
it is set here by hand, so that it holds on machines without systemd too.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import runpy
import struct
import subprocess
import sys
import time
from pathlib import Path

from tests.kernel.harness.agent import AgentUnderTest

_LOAD, _EQUAL, _RETURN = 0x20, 0x15, 0x06  # BPF_LD|W|ABS, BPF_JMP|JEQ|K, BPF_RET|K
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000
_NR, _ARGUMENT = 0, 16  # struct seccomp_data: nr, and the low half of args[0]
_SOCKET, _ADJTIMEX, _CLOCK_ADJTIME = 41, 159, 305  # x86-64
_AGAIN = "confined"
_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _MODE_FILTER = 38, 22, 2


def confine() -> None:
    """Deny AF_INET and AF_INET6 to this process for good, and reading the clock's state."""
    program = (
        (_LOAD, 0, 0, _NR),
        (_EQUAL, 0, 4, _SOCKET),
        (_LOAD, 0, 0, _ARGUMENT),
        (_EQUAL, 1, 0, 2),
        (_EQUAL, 0, 4, 10),
        (_RETURN, 0, 0, _ERRNO | errno.EAFNOSUPPORT),
        (_EQUAL, 1, 0, _ADJTIMEX),
        (_EQUAL, 0, 1, _CLOCK_ADJTIME),
        (_RETURN, 0, 0, _ERRNO | errno.EPERM),
        (_RETURN, 0, 0, _ALLOW),
    )
    code = b"".join(struct.pack("=HBBI", *line) for line in program)
    kept = ctypes.create_string_buffer(code)

    class Program(ctypes.Structure):
        _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))

    filter_ = Program(len(program), ctypes.addressof(kept))
    libc = ctypes.CDLL(None, use_errno=True)
    for arguments in (
        (_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0),
        (_PR_SET_SECCOMP, _MODE_FILTER, ctypes.byref(filter_), 0, 0),
    ):
        if libc.prctl(*arguments) != 0:
            raise OSError(ctypes.get_errno(), "no seccomp filter")


class ConfinedAgent(AgentUnderTest):
    """An agent with a way out, and without any other."""

    uplink: subprocess.Popen[bytes] | None = None

    @property
    def uplink_path(self) -> Path:
        """Where its way out listens."""
        return self.folder / "uplink.sock"

    def start_uplink(self) -> None:
        """Start the way out, and wait until it listens."""
        self.uplink_path.unlink(missing_ok=True)
        with (self.folder / "uplink.log").open("ab") as log:
            self.uplink = subprocess.Popen(
                [str(Path(sys.executable).with_name("licagent")), "daemon", "--uplink"],
                env={**self.environment, "LICAGENT_UPLINK": str(self.uplink_path)},
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
            )
        end = time.monotonic() + 30
        while not self.uplink_path.exists():
            assert self.uplink.poll() is None, (self.folder / "uplink.log").read_text()
            assert time.monotonic() < end, "the way out does not listen"
            time.sleep(0.02)

    def stop_uplink(self) -> None:
        """End the way out."""
        if self.uplink is not None:
            self.uplink.terminate()
            self.uplink.wait(30)
            self.uplink = None

    def start(self, *, wait: bool = True) -> None:
        """Start the daemon, confined."""
        self.write_config()
        self.spawn("tests.system.harness.confined", LICAGENT_UPLINK=str(self.uplink_path))
        if wait:
            self.wait_ready()

    def close(self) -> None:
        """Everything away."""
        self.stop_uplink()
        super().close()


def _capabilities() -> str:
    """Those of the unit, as setpriv(1) writes a set."""
    text = (Path(__file__).parents[3] / "systemd" / "licagent.service").read_text()
    found = re.search(r"^CapabilityBoundingSet=(.+)$", text, re.MULTILINE)
    assert found is not None
    names = [name.removeprefix("CAP_").lower() for name in found[1].split()]
    return ",".join(["-all", *(f"+{name}" for name in names)])


if __name__ == "__main__":
    if _AGAIN not in sys.argv:
        # exec(2) is what takes rights away that are not in the bounding set any more.
        again = [sys.executable, "-m", "tests.system.harness.confined", _AGAIN]
        os.execvp("setpriv", ["setpriv", f"--bounding-set={_capabilities()}", *again])
    confine()
    runpy.run_module("licagent.daemon.main", run_name="__main__")
