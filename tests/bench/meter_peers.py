# SPDX-License-Identifier: Apache-2.0
"""Other tools that look at processes, each in the way that costs it least, and what they saw.

Debian's packages are unpacked into `build/bench/peers` and run from there. Nothing is installed:
the packages would start services, one of which switches process accounting on for the machine.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tests.bench.meter_load import BINARY
from tests.bench.paired import ROOT

if TYPE_CHECKING:
    from tests.bench.meter_load import Link

FOLDER: Final = ROOT / "build" / "bench" / "peers"
INTERVAL_S: Final = 5
"""Of all of them, as of the agent."""

EXPORTER_PORT: Final = 19256

PACKAGES: Final = {
    "atop": ("atop",),
    "nethogs": ("nethogs", "libpcap0.8"),
    "prometheus-process-exporter": ("prometheus-process-exporter",),
}
"""Program -> packages; the other libraries they need are those of every Debian."""


def program(name: str) -> str:
    """Where a peer's program is: installed, or unpacked from its package.

    Raises:
        RuntimeError: there is no such package here, or it cannot be fetched.
    """
    if found := shutil.which(name):
        return found
    places = [FOLDER / "root" / "usr" / part / name for part in ("bin", "sbin")]
    if not any(place.exists() for place in places):
        FOLDER.mkdir(parents=True, exist_ok=True)
        try:
            fetch = ["apt-get", "-qq", "download", *PACKAGES[name]]
            subprocess.run(fetch, cwd=FOLDER, check=True, capture_output=True, timeout=120)
            for package in PACKAGES[name]:
                for archive in FOLDER.glob(f"{package}_*.deb"):
                    command = ["dpkg-deb", "-x", str(archive), str(FOLDER / "root")]
                    subprocess.run(command, check=True, capture_output=True)
        except (OSError, subprocess.SubprocessError) as error:
            raise RuntimeError(f"cannot fetch {name} from Debian: {error}") from error
    for place in places:
        if place.exists():
            return str(place)
    raise RuntimeError(f"the package of {name} has no such program")


def version(name: str) -> str:
    """Of the package that was unpacked; empty for an installed program."""
    for archive in FOLDER.glob(f"{name}_*.deb"):
        return archive.name.split("_")[1].split("-")[0].split("+")[0]
    return ""


def cpu_ns(pid: int) -> int:
    """CPU time of a process with all its threads, in ns (clock_getcpuclockid)."""
    return time.clock_gettime_ns((~pid << 3) | 2)


class Peer(ABC):
    """One of them, from its start until what it saw is read."""

    name: str
    sees_cpu = True
    sees_network = False

    def __init__(self, folder: Path) -> None:
        """Args: folder: for its output, a new one."""
        self._folder = folder
        self._folder.mkdir(parents=True)
        libraries = f"{FOLDER}/root/usr/lib/{os.uname().machine}-linux-gnu"
        with (folder / "out").open("wb") as out, (folder / "err").open("wb") as err:
            self._process = subprocess.Popen(
                self._command(),
                stdout=out,
                stderr=err,
                env={**os.environ, "LD_LIBRARY_PATH": libraries},
                cwd=folder,
            )
        self._begun_ns = 0
        self._used_ns = 0

    @abstractmethod
    def _command(self) -> list[str]: ...

    def begin(self) -> None:
        """Its CPU time counts from here."""
        if self._process.poll() is not None:
            said = (self._folder / "err").read_text(errors="replace")[-300:]
            raise RuntimeError(f"{self.name} ended: {said}")
        self._begun_ns = cpu_ns(self._process.pid)

    def end(self) -> int:
        """CPU time since `begin`, in ns."""
        self._used_ns = cpu_ns(self._process.pid) - self._begun_ns
        return self._used_ns

    def stop(self) -> None:
        """A last look, then it ends."""
        self._signal(signal.SIGTERM)

    def _signal(self, number: signal.Signals) -> None:
        if self._process.poll() is not None:
            return
        self._process.send_signal(number)
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def cpu_of(self, prefix: str) -> float:
        """CPU seconds of processes whose name begins so, since its start. After `stop`."""
        raise NotImplementedError(prefix)

    def wire_of(self, prefix: str) -> int:
        """Bytes, both ways, of processes whose name begins so, since its start. After `stop`."""
        raise NotImplementedError(prefix)


class Atop(Peer):
    """Writes its raw log, as its own service does; process accounting tells it who ended."""

    name = "atop"

    def _command(self) -> list[str]:
        return [program("atop"), "-w", str(self._folder / "raw"), str(INTERVAL_S)]

    def stop(self) -> None:
        """SIGUSR2 asks for a last sample; only a clean end switches the accounting off."""
        self._signal(signal.SIGUSR2)
        if self._process.returncode < 0:
            ctypes.CDLL(None).acct(None)

    def cpu_of(self, prefix: str) -> float:
        """Ticks of the samples after the first, which is since boot."""
        command = [program("atop"), "-r", str(self._folder / "raw"), "-P", "PRC"]
        text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        ticks, samples = 0, 0
        for line in text.splitlines():
            if line in {"RESET", "SEP"}:
                samples += line == "SEP"
            elif samples and f"({prefix}" in line:
                # PRC host epoch date time interval pid (name) state hz user system ... is-process
                left, _, rest = line.partition(") ")
                fields = rest.split()
                if left.split("(", 1)[1].startswith(prefix) and fields[11] == "y":
                    ticks += (int(fields[2]) + int(fields[3])) * 1000 // int(fields[1])
        return ticks / 1000


class ProcessExporter(Peer):
    """Scraped every 5 s, without threads, children and smaps, which would cost it more."""

    name = "process-exporter"

    def __init__(self, folder: Path, names: tuple[str, ...]) -> None:
        """Args: names: the groups of processes it looks for."""
        self._names = names
        self._last = ""
        self._ending = threading.Event()
        super().__init__(folder)
        self._scraper = threading.Thread(target=self._scrape_for_ever, daemon=True)
        self._scraper.start()

    def _command(self) -> list[str]:
        found = [program("prometheus-process-exporter"), "-procnames", ",".join(self._names)]
        found += ["-children=false", "-threads=false", "-gather-smaps=false"]
        return [*found, "-web.listen-address", f"127.0.0.1:{EXPORTER_PORT}"]

    def _scrape_for_ever(self) -> None:
        while not self._ending.wait(INTERVAL_S):
            self._scrape()

    def _scrape(self) -> None:
        address = f"http://127.0.0.1:{EXPORTER_PORT}/metrics"
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with contextlib.suppress(OSError), opener.open(address, timeout=10) as answer:
            self._last = answer.read().decode()

    def stop(self) -> None:
        """A last scrape."""
        self._ending.set()
        self._scraper.join()
        self._scrape()
        super().stop()

    def cpu_of(self, prefix: str) -> float:
        """Of the groups that begin so."""
        total = 0.0
        wanted = f'namedprocess_namegroup_cpu_seconds_total{{groupname="{prefix}'
        for line in self._last.splitlines():
            if line.startswith(wanted):
                total += float(line.rpartition(" ")[2])
        return total


class NetHogs(Peer):
    """In the namespace of the load, on its only interface."""

    name = "nethogs"
    sees_cpu = False
    sees_network = True

    def __init__(self, folder: Path, link: Link, interface: str) -> None:
        """Args: link, interface: what it listens on."""
        self._where = (f"--net={link.client.path}", interface)
        super().__init__(folder)

    def _command(self) -> list[str]:
        namespace, interface = self._where
        hogs = [program("nethogs"), "-t", "-v", "2", "-d", str(INTERVAL_S), interface]
        return ["nsenter", namespace, "stdbuf", "-oL", *hogs]  # it ends without a flush

    def wire_of(self, prefix: str) -> int:
        """The largest sum that each process had in any line, as ended ones leave the list.

        It names a process by its command line, which only who executes a program changes.
        """
        most: dict[str, int] = {}
        text = (self._folder / "out").read_text(encoding="utf-8", errors="replace")
        for line in text.splitlines():
            parts = line.split("\t")
            if len(parts) == 3 and (f"{prefix}-" in parts[0] or str(BINARY) in parts[0]):
                with contextlib.suppress(ValueError):
                    seen = int(float(parts[1]) + float(parts[2]))
                    most[parts[0]] = max(most.get(parts[0], 0), seen)
        return sum(most.values())


class Psutil(Peer):
    """A loop of a few lines: `meter_psutil.py`."""

    name = "psutil"

    def _command(self) -> list[str]:
        return [sys.executable, str(Path(__file__).with_name("meter_psutil.py"))]

    def cpu_of(self, prefix: str) -> float:
        """Seconds by name."""
        totals = json.loads((self._folder / "out").read_text(encoding="utf-8"))
        return float(sum(used for name, used in totals.items() if name.startswith(prefix)))
