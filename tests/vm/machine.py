# SPDX-License-Identifier: Apache-2.0
"""A Debian 12 host under QEMU: booted, spoken to over SSH, cut off, saved and brought back.

It runs without acceleration, so that it works on any machine. What it writes goes into an overlay
that goes away with it. It ends with the process that started it.
"""

from __future__ import annotations

import shlex
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from tests.support.ports import free_port
from tests.vm.bootfiles import boot_files
from tests.vm.image import Image, image
from tests.vm.kernels import CPU
from tests.vm.qmp import Qmp

HOST_ADDRESS: Final = "10.0.2.2"
"""The machine that runs QEMU, as every guest sees it: its 127.0.0.1."""
BOOT_S: Final = 420
"""Generous: some 40 s on an idle machine, and others may want it too."""
_LSM: Final = "lsm=lockdown,capability,landlock,yama,apparmor,bpf"
_TAIL: Final = 3000
_PORTS: Final = range(11_000, 20_000)
"""To be forwarded from: the kernel hands none of them out by itself."""


class MachineError(Exception):
    """The machine did not do what it was asked; the text has what it said."""


class CommandFailed(MachineError):
    """A command in the machine ended with another status than 0."""


@dataclass(frozen=True, slots=True)
class Ran:
    """How a command in the machine ended."""

    status: int
    stdout: str
    stderr: str


@dataclass(frozen=True, slots=True)
class Hardware:
    """What a machine is started with."""

    kernel: str = "6.1"
    """The name of one in tests.vm.kernels."""
    memory_mib: int = 1024
    cmdline_extra: str = ""
    """Words for the kernel and for systemd, such as systemd.mask=licagent-load.service."""
    clock: datetime | None = None
    """What its real-time clock says at power-on; None for the time of this machine."""


@dataclass(slots=True)
class Machine:
    """One machine. Use `Machine.boot()`; as a context it is stopped at the end."""

    folder: Path
    """Its disk, sockets and console; removed by stop()."""
    base: Image
    hardware: Hardware
    ssh_port: int
    """On this machine's 127.0.0.1; the same for the life of this object."""
    host_address: str = HOST_ADDRESS
    _qemu: subprocess.Popen[bytes] | None = None
    _ssh: subprocess.Popen[bytes] | None = None
    _saved: dict[str, Hardware] = field(default_factory=dict)

    @classmethod
    def boot(
        cls,
        *,
        kernel: str = "6.1",
        memory_mib: int = 1024,
        cmdline_extra: str = "",
        clock: datetime | None = None,
        disk: Path | None = None,
    ) -> Self:
        """A machine that answers to commands.

        `disk` is a qcow2 overlay of the image to begin from (it is copied), None for the bare
        image. Raises MachineError, image.NoImage, kernels.NoKernel.
        """
        base = image()
        folder = Path(tempfile.mkdtemp(prefix="licagent-vm-"))
        hardware = Hardware(kernel, memory_mib, cmdline_extra, clock)
        made = cls(folder, base, hardware, free_port(_PORTS))
        try:
            made._make_disk(disk)
            made.power_on()
        except BaseException:
            made.stop()
            raise
        return made

    @classmethod
    def resume(cls, disk: Path, name: str, hardware: Hardware) -> Self:
        """The machine that was saved in `disk` under that name; its folder is the disk's."""
        made = cls(disk.parent, image(), hardware, free_port(_PORTS), _saved={name: hardware})
        try:
            made.restore(name)
        except BaseException:
            made.stop()
            raise
        return made

    # ------------------------------------------------------------------------- power

    def power_on(self, *, saved: str | None = None, wait: bool = True) -> None:
        """Start QEMU: at power-on, or in the state that was saved under that name."""
        with (self.folder / "qemu.log").open("ab") as log:
            self._qemu = subprocess.Popen(
                self._command(saved),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        if wait:
            self.wait_until_up()

    def power_cut(
        self,
        *,
        cmdline_extra: str | None = None,
        kernel: str | None = None,
        clock: datetime | None = None,
        wait: bool = True,
    ) -> None:
        """Take the power away, at once, and give it back.

        What the machine had not written to its disk is lost. It comes back with other words for
        the kernel, another kernel or another time on its clock, where given.
        """
        self._end_qemu()
        changed = replace(self.hardware, clock=clock)
        if cmdline_extra is not None:
            changed = replace(changed, cmdline_extra=cmdline_extra)
        if kernel is not None:
            changed = replace(changed, kernel=kernel)
        self.hardware = changed
        self.power_on(wait=wait)

    def reboot(self, *, wait: bool = True) -> None:
        """The machine shuts down in order and starts again."""
        before = self.boot_id()
        self.run("systemctl reboot", check=False)
        if wait:
            self.wait_until_up(other_than=before)

    def suspend(self) -> None:
        """Put the machine to sleep (ACPI S3), as `systemctl suspend` does."""
        self.run("systemctl suspend", check=False)
        self._disconnect()
        deadline = time.monotonic() + 120
        with self.qmp() as control:
            while control.execute("query-status")["status"] != "suspended":
                if time.monotonic() > deadline:
                    raise MachineError(f"it does not go to sleep:\n{self.console}")
                time.sleep(0.2)

    def wake(self) -> None:
        """Wake the machine up as its power button does."""
        with self.qmp() as control:
            control.execute("system_wakeup")
        self.wait_until_up()

    def stop(self) -> None:
        """End the machine and remove all that it wrote."""
        self._end_qemu()
        shutil.rmtree(self.folder, ignore_errors=True)

    def quit(self) -> None:
        """End the machine as if its power were cut; its disk is whole for another to use."""
        self._disconnect()
        with self.qmp() as control:
            control.execute("quit")
        if self._qemu is not None:
            self._qemu.wait()
            self._qemu = None

    def boot_id(self) -> str:
        """Of the running system."""
        return self.run("cat /proc/sys/kernel/random/boot_id").stdout.strip()

    def wait_until_up(self, *, other_than: str | None = None) -> None:
        """Wait for SSH; `other_than` is the boot id of the system that goes down."""
        deadline = time.monotonic() + BOOT_S
        while time.monotonic() < deadline:
            self._check_alive()
            if self._connect():
                try:
                    if self.boot_id() != other_than:
                        return
                except MachineError:
                    pass  # it is on its way down
                self._disconnect()
            time.sleep(0.5)
        raise MachineError(f"no answer over SSH within {BOOT_S} s:\n{self.console}")

    # ---------------------------------------------------------------------- commands

    def run(
        self, command: str, *, check: bool = True, timeout: float = 120, stdin: str | None = None
    ) -> Ran:
        """A shell command as root. Raises CommandFailed if `check`, MachineError without SSH."""
        if not self._is_connected() and not self._connect():
            raise MachineError(f"no SSH for {command!r}:\n{self.console}")
        try:
            done = subprocess.run(
                ["ssh", *self._ssh_options(), "root@127.0.0.1", command],
                input=stdin if stdin is not None else "",
                capture_output=True,
                text=True,
                errors="replace",
                check=False,
                timeout=timeout,
            )
        except subprocess.TimeoutExpired as late:
            told = (late.stdout or b"").decode(errors="replace")[-_TAIL:]
            raise MachineError(f"{command!r} had not ended after {timeout} s: {told}") from late
        ran = Ran(done.returncode, done.stdout, done.stderr)
        if ran.status == 255 and not self._is_connected():
            raise MachineError(f"SSH broke off during {command!r}: {ran.stderr[-_TAIL:]}")
        if check and ran.status != 0:
            raise CommandFailed(
                f"{command!r} ended with status {ran.status}\n"
                f"stdout: {ran.stdout[-_TAIL:]}\nstderr: {ran.stderr[-_TAIL:]}"
            )
        return ran

    def put(self, local: Path, remote: str) -> None:
        """Copy a file or a folder into the machine; a folder's own name is not kept.

        It goes past SSH, whose encryption is what takes long under emulation.
        """
        quoted = shlex.quote(remote)
        if local.is_dir():
            source = ["tar", "-C", str(local), "-c", "."]
            sink = f"mkdir -p {quoted} && tar -C {quoted} -x"
        else:
            source = ["cat", str(local)]
            sink = f"cat >{quoted} && chmod {local.stat().st_mode & 0o777:o} {quoted}"
        with socket.create_server(("127.0.0.1", 0)) as server:
            server.settimeout(120)
            sender = threading.Thread(target=_send, args=(server, source))
            sender.start()
            try:
                take = f"nc -d {self.host_address} {server.getsockname()[1]}"
                self.run(f"set -o pipefail; {take} | {{ {sink}; }}", timeout=600)
            finally:
                sender.join()

    def write(self, remote: str, text: str, *, mode: int = 0o644) -> None:
        """Make a file in the machine, and the folders above it."""
        quoted, folder = shlex.quote(remote), shlex.quote(str(Path(remote).parent))
        self.run(f"mkdir -p {folder} && cat >{quoted} && chmod {mode:o} {quoted}", stdin=text)

    def get(self, remote: str, local: Path) -> None:
        """Copy a file out of the machine."""
        with local.open("wb") as target:
            done = subprocess.run(
                ["ssh", *self._ssh_options(), "root@127.0.0.1", f"cat {shlex.quote(remote)}"],
                stdin=subprocess.DEVNULL,
                stdout=target,
                stderr=subprocess.PIPE,
                check=False,
            )
        if done.returncode != 0:
            raise CommandFailed(f"{remote}: {done.stderr.decode(errors='replace')}")

    def wait_for(self, command: str, *, timeout: float = 120) -> Ran:
        """Run the command until it succeeds. Raises MachineError with what it said last."""
        deadline = time.monotonic() + timeout
        while True:
            ran = self.run(command, check=False)
            if ran.status == 0:
                return ran
            if time.monotonic() > deadline:
                raise MachineError(f"{command!r} did not succeed within {timeout} s: {ran}")
            time.sleep(0.5)

    # ------------------------------------------------------------------------ states

    def snapshot(self, name: str) -> None:
        """Save memory and disk of the running machine under that name."""
        with self.qmp() as control:
            said = control.monitor(f"savevm {name}")
        if said:
            raise MachineError(f"savevm {name}: {said}")
        self._saved[name] = self.hardware

    def restore(self, name: str) -> None:
        """Be again as at that snapshot, but for the clock, which is set to the present."""
        self._end_qemu()
        self.hardware = self._saved[name]
        self.power_on(saved=name)
        self.set_clock(datetime.now(UTC))

    def set_clock(self, now: datetime) -> None:
        """Set the guest's wall clock."""
        self.run(f"date --utc --set=@{now.timestamp():.3f}")

    def qmp(self) -> Qmp:
        """The control socket, to be closed after use."""
        deadline = time.monotonic() + 30
        while True:
            self._check_alive()
            try:
                return Qmp(self.folder / "qmp")
            except OSError as error:
                if time.monotonic() > deadline:
                    raise MachineError(f"QEMU's control socket: {error}") from error
                time.sleep(0.1)

    def forward(self, guest_port: int) -> int:
        """A TCP port of this machine's 127.0.0.1 that leads to that port of the guest."""
        port = free_port(_PORTS)
        with self.qmp() as control:
            said = control.monitor(f"hostfwd_add tcp:127.0.0.1:{port}-:{guest_port}")
        if said:
            raise MachineError(f"hostfwd_add: {said}")
        return port

    @property
    def disk(self) -> Path:
        """Its overlay of the image, with the snapshots in it."""
        return self.folder / "disk.qcow2"

    @property
    def ssh_key(self) -> Path:
        """The key that lets in as root."""
        return self.base.key

    @property
    def console(self) -> str:
        """The end of what stood on the serial console, and of QEMU's own words."""
        texts = []
        for name in ("qemu.log", "console.log"):
            path = self.folder / name
            if path.exists():
                texts.append(path.read_text(errors="replace")[-_TAIL:])
        return "\n".join(texts)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        self.stop()

    # ----------------------------------------------------------------------- insides

    def _make_disk(self, begin: Path | None) -> None:
        if begin is not None:
            subprocess.run(["cp", "--sparse=always", str(begin), str(self.disk)], check=True)
            return
        options = ["-q", "-f", "qcow2", "-F", "raw", "-b", str(self.base.disk)]
        subprocess.run(["qemu-img", "create", *options, str(self.disk)], check=True)

    def _command(self, saved: str | None) -> list[str]:
        files = boot_files(self.hardware.kernel)
        words = f"console=ttyS0 loglevel=4 panic=1 no_timer_check net.ifnames=0 {_LSM}"
        words += f" {self.hardware.cmdline_extra}"
        clock = ""
        if self.hardware.clock is not None:
            clock = f",base={self.hardware.clock.astimezone(UTC):%Y-%m-%dT%H:%M:%S}"
        # It ends when this process does, however that ends.
        command = ["setpriv", "--pdeathsig", "KILL", "qemu-system-x86_64", "-nodefaults"]
        command += ["-accel", "tcg,thread=multi", "-machine", "pc", "-smp", "2", "-cpu", CPU]
        command += ["-m", str(self.hardware.memory_mib), "-display", "none"]
        command += ["-kernel", str(files.vmlinuz), "-initrd", str(files.initrd), "-append", words]
        command += ["-drive", f"if=virtio,format=qcow2,file={self.disk},discard=unmap"]
        command += ["-drive", f"if=virtio,format=raw,readonly=on,file={files.modules}"]
        command += ["-nic", f"user,model=virtio-net-pci,hostfwd=tcp:127.0.0.1:{self.ssh_port}-:22"]
        command += ["-rtc", f"clock=host{clock or ',base=utc'}"]
        command += ["-global", "PIIX4_PM.disable_s3=0"]
        command += ["-serial", f"file:{self.folder / 'console.log'}"]
        command += ["-qmp", f"unix:{self.folder / 'qmp'},server=on,wait=off"]
        if saved is not None:
            command += ["-loadvm", saved]
        return command

    def _ssh_options(self) -> list[str]:
        options = ["-F", "none", "-i", str(self.ssh_key), "-p", str(self.ssh_port)]
        for option in (
            f"ControlPath={self.folder / 'ssh'}",
            *("IdentitiesOnly=yes", "BatchMode=yes", "LogLevel=ERROR", "ConnectTimeout=10"),
            *("StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null"),
            *("ServerAliveInterval=15", "ServerAliveCountMax=8"),
        ):
            options += ["-o", option]
        return options

    def _connect(self) -> bool:
        """Open the connection that the commands share; False if nobody answers yet."""
        self._disconnect()
        with (self.folder / "ssh.log").open("ab") as log:
            self._ssh = subprocess.Popen(
                ["ssh", *self._ssh_options(), "-o", "ControlMaster=yes", "-N", "root@127.0.0.1"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
            )
        while self._ssh.poll() is None:
            if (self.folder / "ssh").exists() and self._is_connected():
                return True
            time.sleep(0.05)
        self._ssh = None
        return False

    def _is_connected(self) -> bool:
        if self._ssh is None or self._ssh.poll() is not None:
            return False
        done = subprocess.run(
            ["ssh", *self._ssh_options(), "-O", "check", "root@127.0.0.1"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
        )
        return done.returncode == 0

    def _disconnect(self) -> None:
        _end(self._ssh)
        self._ssh = None
        (self.folder / "ssh").unlink(missing_ok=True)

    def _end_qemu(self) -> None:
        self._disconnect()
        _end(self._qemu)
        self._qemu = None

    def _check_alive(self) -> None:
        if self._qemu is None or self._qemu.poll() is not None:
            raise MachineError(f"QEMU has ended:\n{self.console}")
        if "Kernel panic" in self.console:
            raise MachineError(f"the kernel panicked:\n{self.console}")


def _send(server: socket.socket, source: Sequence[str]) -> None:
    """The output of a program to the first that connects."""
    with suppress(OSError):
        connection, _ = server.accept()
        with connection:
            subprocess.run(
                source, stdin=subprocess.DEVNULL, stdout=connection.fileno(), check=False
            )


def _end(process: subprocess.Popen[Any] | None) -> None:
    if process is not None:
        process.kill()
        process.wait()
