# SPDX-License-Identifier: Apache-2.0
"""PID 1 of a machine that lives for seconds: what does this kernel load, refuse and count?

Runs from an initramfs with Python, the agent's package and the built objects, and nothing else.
Prints one line of JSON between marks on the console, then powers off. What it finds is the
kernel's row in docs/kernels.md.
"""

from __future__ import annotations

import ctypes
import errno
import importlib
import json
import os
import socket
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

BEGIN: Final = "LICAGENT-PROBE-BEGIN"
END: Final = "LICAGENT-PROBE-END"
CGROUP: Final = Path("/sys/fs/cgroup/licagent-probe")
PINS: Final = Path("/sys/fs/bpf/licagent")
PORT: Final = 9000
POLICY: Final = f"""
[[resource]]
name = "orders-db"
kind = "network"
mode = "enforce"
destinations = [
    {{ cidr = "127.0.0.1/32", ports = ["{PORT}"] }},
    {{ cidr = "::1/128", ports = ["{PORT}"] }},
]

[[resource]]
name = "web"
kind = "service"
mode = "enforce"
ports = ["8080"]
protocol = "tcp"

[[binding]]
license = "acme"
selectors = ["unix:uid:1000"]
"""


def mount(kind: str, target: str) -> str:
    """mount(2) without a command; returns why not, or ""."""
    Path(target).mkdir(parents=True, exist_ok=True)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(kind.encode(), target.encode(), kind.encode(), 0, None) == 0:
        return ""
    return os.strerror(ctypes.get_errno())


def raise_loopback() -> None:
    """ip link set lo up, by SIOCSIFFLAGS."""
    import fcntl
    import struct

    with socket.socket() as control:
        fcntl.ioctl(control, 0x8914, struct.pack("16sh14x", b"lo", 1 | 0x40))


def inside(uid: int, action: Callable[[], Any]) -> Any:
    """Run `action` in a child in the cgroup, as a user; its result through a pipe."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            (CGROUP / "cgroup.procs").write_text("0")
            os.setresgid(uid, uid, uid)
            os.setresuid(uid, uid, uid)
            result = action()
        except BaseException as error:  # noqa: BLE001 - told to the parent, whatever it is
            result = f"{type(error).__name__}: {error}"
        os.write(writing, json.dumps(result).encode())
        os._exit(0)
    os.close(writing)
    text = b""
    while part := os.read(reading, 65536):
        text += part
    os.close(reading)
    os.waitpid(child, 0)
    return json.loads(text)


def errno_of(action: Callable[[], object]) -> str:
    """The name of the errno that an action fails with; "" where it does not."""
    try:
        action()
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, str(error.errno))
    return ""


def connect(family: int, address: str, kind: int = socket.SOCK_STREAM) -> str:
    """Connect and, for datagrams, send."""

    def act() -> None:
        with socket.socket(family, kind) as client:
            client.settimeout(5)
            client.connect((address, PORT))
            if kind == socket.SOCK_DGRAM:
                client.send(b"x")

    return errno_of(act)


def send_to(family: int, address: str) -> str:
    """A datagram with an address."""

    def act() -> None:
        with socket.socket(family, socket.SOCK_DGRAM) as client:
            client.sendto(b"x", (address, PORT))

    return errno_of(act)


def bind(port: int) -> str:
    """Offer a service."""

    def act() -> None:
        with socket.socket() as server:
            server.bind(("127.0.0.1", port))
            server.listen()

    return errno_of(act)


class Numbers:
    """Numbers from 1 up, one sequence a space."""

    def __init__(self) -> None:
        self._spaces: dict[str, dict[str, int]] = {}

    def number(self, space: str, name: str) -> int:
        """The number of a name."""
        names = self._spaces.setdefault(space, {})
        return names.setdefault(name, len(names) + 1)


def load() -> dict[str, Any]:
    """Every object by the real loader."""
    from licagent.kernel.bpffs import PinFolder
    from licagent.kernel.loader import Loader

    report = Loader(PinFolder(PINS), CGROUP).run("prebuilt")
    return {state.name: state.error if not state.attached else "" for state in report.hooks}


def license_of_all() -> Any:
    """One license for all that the policies here name."""
    from lictoken.claims import Entitlement, License, LicenseScope

    return License(
        jti="acme",
        issuer="https://issuer.example",
        subject="acme",
        audience="licagent",
        number=7,
        generation=1,
        issued_at_s=1,
        not_before_s=1,
        expires_at_s=2**40,
        scope=LicenseScope("acme"),
        entitlements=tuple(
            Entitlement(name, ("connect", "bind", "use")) for name in ("orders-db", "web")
        ),
    )


def lsm() -> dict[str, Any]:
    """What the LSM programs refuse; nothing where the kernel has no BPF among its modules."""
    from licagent.kernel.bpffs import PinFolder
    from licagent.kernel.guard import security_modules

    modules = security_modules()
    found: dict[str, Any] = {"modules": modules}
    if modules and "bpf" in modules:
        lsm_probe = importlib.import_module("lsm_probe")  # beside this file, in the archive
        pins = PinFolder(PINS)
        held = license_of_all()
        found["families"] = lsm_probe.families(pins, held, Numbers(), inside, errno_of)
        found["guard"] = lsm_probe.guard(pins, errno_of)
    return found


def enforce() -> dict[str, Any]:
    """A policy with one license: who has it, who has not, and who loses it."""
    from licagent.domain.compiler import compile_policy
    from licagent.domain.policy import parse_policy
    from licagent.domain.reason import Reason
    from licagent.kernel.bpffs import PinFolder
    from licagent.kernel.control import ControlWord
    from licagent.kernel.iterators import Iterators
    from licagent.kernel.licenses import LicenseTable
    from licagent.kernel.tables import TableWriter

    pins = PinFolder(PINS)
    control = ControlWord(pins)
    control.root_cgroup = CGROUP.stat().st_ino
    licenses, tables = LicenseTable(pins), TableWriter(pins, control)
    held = license_of_all()
    policy = parse_policy([("probe.toml", POLICY)])
    compiled = compile_policy(policy, {"acme": held}, Numbers(), lambda _name: None)
    licenses.set(7, Reason.LICENSED, 0, 2**62)
    tables.switch(compiled, licenses.slot, enforce=True, keep_existing=False)
    server4, server6 = socket.socket(), socket.socket(socket.AF_INET6)
    server4.bind(("127.0.0.1", PORT))
    server6.bind(("::1", PORT))
    server4.listen()
    server6.listen()
    four, six, udp = socket.AF_INET, socket.AF_INET6, socket.SOCK_DGRAM
    found: dict[str, Any] = {
        "licensed tcp4": inside(1000, lambda: connect(four, "127.0.0.1")),
        "licensed tcp6": inside(1000, lambda: connect(six, "::1")),
        "denied tcp4": inside(1001, lambda: connect(four, "127.0.0.1")),
        "denied tcp6": inside(1001, lambda: connect(six, "::1")),
        "denied mapped": inside(1001, lambda: connect(six, "::ffff:127.0.0.1")),
        "denied udp4": inside(1001, lambda: connect(four, "127.0.0.1", udp)),
        "denied sendto4": inside(1001, lambda: send_to(four, "127.0.0.1")),
        "denied sendto6": inside(1001, lambda: send_to(six, "::1")),
        "denied bind": inside(1001, lambda: bind(8080)),
        "licensed bind": inside(1000, lambda: bind(8080)),
        "other port": inside(1001, lambda: bind(8081)),
    }

    def until_revoked() -> list[str]:
        with socket.create_connection(("127.0.0.1", PORT)) as client:
            client.sendall(b"x")
            ready.send(b"x")
            ready.recv(1)
            client.settimeout(1)
            answers = []
            for _ in range(3):
                answers.append(errno_of(lambda: client.sendall(b"y")))
                time.sleep(0.1)
            return answers

    parent, ready = socket.socketpair()
    taken = os.fork()
    if taken == 0:
        accepted = server4.accept()[0]
        parent.recv(1)
        licenses.set(7, Reason.REVOKED, 0, 0)
        Iterators(pins).cut()
        parent.send(b"x")
        got = b""
        accepted.settimeout(2)
        try:
            while part := accepted.recv(100):
                got += part
        except OSError:
            pass
        os._exit(0 if got in (b"", b"x") else 1)
    found["open socket after revocation"] = inside(1000, until_revoked)
    found["bytes after revocation"] = os.waitstatus_to_exitcode(os.waitpid(taken, 0)[1])
    found["connect after revocation"] = inside(1000, lambda: connect(four, "127.0.0.1"))
    return found


def meter() -> dict[str, Any]:
    """CPU time against cgroup cpu.stat, payload against what was sent."""
    from licagent.kernel.bpffs import PinFolder
    from licagent.kernel.usage_meter import UsageMeter

    counted = UsageMeter(PinFolder(PINS))
    counted.begin()
    counted.discard(counted.close_sheet().number)

    def used_us() -> int:
        lines = (CGROUP / "cpu.stat").read_text().splitlines()
        return int(dict(line.split() for line in lines)["usage_usec"])

    before = used_us()

    def work() -> str:
        end = time.process_time() + 0.3
        while time.process_time() < end:
            pass
        with socket.socket() as server:
            server.bind(("127.0.0.1", 0))
            server.listen()
            with socket.create_connection(server.getsockname()) as client:
                taken, _ = server.accept()
                client.sendall(bytes(50_001))
                client.shutdown(socket.SHUT_WR)
                while taken.recv(65536):
                    pass
                taken.close()
        return ""

    failed = inside(1000, work)
    limit = time.monotonic() + 20
    sheet = counted.peek()
    while time.monotonic() < limit and not sum(row.processes for row in sheet.work):
        time.sleep(0.1)
        sheet = counted.peek()
    sheet = counted.close_sheet()
    cpu_ns, reference_ns = sum(row.cpu_ns for row in sheet.work), (used_us() - before) * 1000
    return {
        "failed": failed,
        "support": {
            "work": counted.support.work,
            "payload": counted.support.payload,
            "flows": counted.support.flows,
        },
        "cpu_ns": cpu_ns,
        "cpu_reference_ns": reference_ns,
        "tx_payload_bytes": sum(row.tx_payload_bytes for row in sheet.flows),
        "rx_payload_bytes": sum(row.rx_payload_bytes for row in sheet.flows),
        "wire_bytes": sum(row.tx_wire_bytes for row in sheet.flows),
        "processes": sum(row.processes for row in sheet.work),
    }


def main() -> None:
    """Mount, try, tell, power off."""
    found: dict[str, Any] = {"release": os.uname().release}
    for kind, target in (
        ("proc", "/proc"),
        ("sysfs", "/sys"),
        ("devtmpfs", "/dev"),
        ("cgroup2", "/sys/fs/cgroup"),
        ("bpf", "/sys/fs/bpf"),
        ("tmpfs", "/run"),
        ("securityfs", "/sys/kernel/security"),
    ):
        if why := mount(kind, target):
            found.setdefault("mounts", {})[target] = why
    for name, step in (("hooks", load), ("enforce", enforce), ("meter", meter), ("lsm", lsm)):
        print(f"{time.monotonic():.1f} s: {name}", flush=True)
        try:
            if name == "hooks":
                CGROUP.mkdir()
                raise_loopback()
            found[name] = step()
        except BaseException:  # noqa: BLE001 - PID 1 must not end before it has told
            found[name] = {"exception": traceback.format_exc()}
    sys.stdout.write(f"\n{BEGIN}{json.dumps(found)}{END}\n")
    sys.stdout.flush()
    os.sync()
    libc = ctypes.CDLL(None)
    libc.reboot(0x4321FEDC)  # LINUX_REBOOT_CMD_POWER_OFF


if __name__ == "__main__":
    main()
