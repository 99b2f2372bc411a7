# SPDX-License-Identifier: Apache-2.0
"""The host's own totals, against which the meters are held: CPU time, and the wires."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from licagent.domain.usage import Meter
from licagent.host.cgroups import CgroupTree
from licagent.metering.unattributed import HostTotals

_TICK_NS: Final = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
_BUSY: Final = (0, 1, 2, 5, 6)
"""user, nice, system, irq and softirq of /proc/stat; guests are in user, stolen time is no use."""
_LINK_HEADER_BYTES: Final = 14
"""Of Ethernet; an interface's bytes have it, IP packets do not."""
_INTERFACES: Final = Path("/sys/class/net")


class HostCounters:
    """Reads the totals of the agent's cgroup, or of the whole host where that is its root."""

    def __init__(self, tree: CgroupTree) -> None:
        self._cpu_stat = tree.root / "cpu.stat"
        self.is_whole_host = tree.root == tree.mount

    def read(self) -> HostTotals:
        """The counters now; a meter that cannot be read is not in it."""
        found: dict[Meter, dict[str, int]] = {}
        cpu_ns = self.cpu_ns()
        if cpu_ns is not None:
            found[Meter.CPU_NS] = {"host": cpu_ns}
        if self.is_whole_host:
            self._wires(found)
        return found

    def cpu_ns(self) -> int | None:
        """CPU time used below the agent's root since boot, or since the cgroup was made.

        Of the whole host from /proc/stat, which counts in ticks; of a subtree from the
        scheduler's own sum (cpu.stat).
        """
        try:
            if self.is_whole_host:
                with open("/proc/stat", encoding="ascii") as stat:
                    fields = stat.readline().split()[1:]
                return sum(int(fields[place]) for place in _BUSY) * _TICK_NS
            for line in self._cpu_stat.read_text(encoding="ascii").splitlines():
                name, _, value = line.partition(" ")
                if name == "usage_usec":
                    return int(value) * 1000
        except (OSError, ValueError, IndexError):
            return None
        return None

    @staticmethod
    def _wires(found: dict[Meter, dict[str, int]]) -> None:
        """IP bytes and packets of the interfaces that stand for hardware."""
        meters = (
            (Meter.TX_WIRE_BYTES, Meter.TX_PACKETS, "tx"),
            (Meter.RX_WIRE_BYTES, Meter.RX_PACKETS, "rx"),
        )
        try:
            names = sorted(os.listdir(_INTERFACES))
        except OSError:
            return
        for name in names:
            folder = _INTERFACES / name
            if not (folder / "device").exists():
                continue
            try:
                for of_bytes, of_packets, side in meters:
                    count = int((folder / f"statistics/{side}_bytes").read_text())
                    packets = int((folder / f"statistics/{side}_packets").read_text())
                    wire = max(0, count - packets * _LINK_HEADER_BYTES)
                    found.setdefault(of_bytes, {})[name] = wire
                    found.setdefault(of_packets, {})[name] = packets
            except (OSError, ValueError):
                continue
