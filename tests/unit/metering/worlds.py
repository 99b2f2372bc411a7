# SPDX-License-Identifier: Apache-2.0
"""A kernel, a disk and a host for the tests of metering: they keep what outlives a daemon."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from licagent.domain.attribution import Attribution
from licagent.domain.decision import Subject
from licagent.domain.usage import Meter, UsageRecord
from licagent.kernel.usage import FlowRow, Sheet, Who, WorkRow
from licagent.metering.rows import WhoRow
from licagent.metering.spool import Refusal

BOOT = "0d3c3a0e-5f4f-4f0e-9a55-8f4a3a6d1b11"


class Killed(Exception):
    """The daemon is gone, here and now."""


def who(pid: int = 0, **changes: object) -> Who:
    fields: dict[str, object] = {
        "pid": pid,
        "start_ns": pid * 1_000_000,
        "uid": 1000,
        "gid": 1000,
        "cgroup": 1,
        "device": 1,
        "inode": 7,
        "path": 0,
        "digest": 0,
        "comm": "prog",
    }
    return Who(**(fields | changes))  # type: ignore[arg-type]


def work(owner: Who, cpu_ns: int, **changes: int) -> WorkRow:
    fields = {
        "cpu_ns": cpu_ns,
        "read_bytes": 0,
        "write_bytes": 0,
        "cancelled_bytes": 0,
        "memory_byte_ms": 0,
        "processes": 0,
    }
    return WorkRow(owner, **(fields | changes))


def flow(owner: Who, **changes: int | bool) -> FlowRow:
    fields: dict[str, int | bool] = {
        "license": 0,
        "resource": 0,
        "protocol": 6,
        "is_loopback": False,
        "tx_payload_bytes": 0,
        "rx_payload_bytes": 0,
        "tx_wire_bytes": 0,
        "rx_wire_bytes": 0,
        "tx_packets": 0,
        "rx_packets": 0,
    }
    return FlowRow(owner, **(fields | changes))  # type: ignore[arg-type]


@dataclass
class Kernel:
    """Counts in sheets, as the real one does: what is closed stays until it is discarded."""

    now_ns: int = 1_000
    number: int = 1
    opened_ns: int = 1_000
    open: dict[Who, int] = field(default_factory=dict)
    closed: Sheet | None = None
    total_ns: int = 0
    """CPU time of everybody: the host's own total."""
    nobody_ns: int = 0
    """Of it, what no process is given."""
    is_off: bool = False

    def use(self, owner: Who, cpu_ns: int) -> None:
        if not self.is_off:
            self.open[owner] = self.open.get(owner, 0) + cpu_ns
        self.total_ns += cpu_ns

    def begin(self) -> None:
        """Count, if that was ended."""
        if self.is_off:
            self.is_off, self.opened_ns = False, self.now_ns

    def use_unseen(self, cpu_ns: int) -> None:
        self.total_ns += cpu_ns
        self.nobody_ns += cpu_ns

    def sheet(self) -> Sheet:
        rows = tuple(work(owner, cpu_ns) for owner, cpu_ns in self.open.items())
        return Sheet(self.number, self.opened_ns, self.now_ns, rows, (), None, ())

    def restart(self) -> None:
        """Programs that were taken away and loaded again: everything begins anew."""
        self.number, self.opened_ns, self.open, self.closed = 1, self.now_ns, {}, None


class FakeMeter:
    """The daemon's end of a `Kernel`. `die` names the step before or after which it is killed."""

    def __init__(self, kernel: Kernel, die: str = "") -> None:
        self.kernel = kernel
        self.die = die

    def collect(self) -> None:
        return

    def close_sheet(self) -> Sheet:
        kernel = self.kernel
        self._perhaps("close")
        if kernel.closed is None:
            kernel.now_ns += 10
            kernel.closed = kernel.sheet()
            kernel.number += 1
            kernel.opened_ns, kernel.open = kernel.now_ns, {}
        self._perhaps("closed")
        return kernel.closed

    def discard(self, number: int) -> None:
        kernel = self.kernel
        self._perhaps("discard")
        if kernel.closed is not None and kernel.closed.number == number:
            kernel.closed = None
        self._perhaps("discarded")

    def peek(self) -> Sheet:
        return self.kernel.sheet()

    def end(self) -> None:
        self._perhaps("end")
        self.kernel.closed = None
        self.kernel.open = {}
        self.kernel.is_off = True
        self._perhaps("ended")

    def _perhaps(self, where: str) -> None:
        if self.die == where:
            raise Killed


@dataclass
class Disk:
    """The frames of a ledger."""

    records: list[UsageRecord] = field(default_factory=list)
    marks: dict[str, bytes] = field(default_factory=dict)


class FakeSpool:
    """The daemon's end of a `Disk`."""

    def __init__(self, disk: Disk, die: str = "", refusal: Refusal | None = None) -> None:
        self.disk = disk
        self.die = die
        self.refusal = refusal
        self.is_settled = True
        self.room = 1_000_000

    @property
    def marks(self) -> Mapping[str, bytes]:
        return self.disk.marks

    def settle(self) -> bool:
        return self.is_settled

    def commit(
        self, records: Collection[UsageRecord], marks: Mapping[str, bytes]
    ) -> Refusal | None:
        if self.die == "commit":
            raise Killed
        if self.refusal is not None:
            return self.refusal
        if len(records) > self.room:
            return Refusal.FULL
        self.disk.records += records
        self.disk.marks = dict(marks)
        if self.die == "committed":
            raise Killed
        return None


class Names:
    """A host on which everything is called by its number."""

    def __init__(self) -> None:
        self.asked = 0
        self.executables: dict[int, str] = {7: "/bin/prog"}

    def cgroup(self, number: int) -> str:
        self.asked += 1
        return f"/c{number}" if number else ""

    def relative(self, path: str) -> str:
        return path.removeprefix("/root") if path.startswith("/root/") else ""

    def unit(self, cgroup: str) -> str:
        return f"{cgroup[1:]}.service" if cgroup != "/c2" else ""

    def user(self, uid: int) -> str:
        return f"u{uid}"

    def executable(self, who: WhoRow) -> str:
        return self.executables.get(who.inode, "")

    def process_start_unix_ms(self, start_ns: int) -> int:
        return 5_000_000 + start_ns // 1_000_000


class Charge:
    """Who is charged: the license of one's user."""

    def __init__(self, licenses: Mapping[int, str] | None = None) -> None:
        self.licenses = licenses or {}

    def compute(self, subject: Subject) -> Attribution:
        found = self.licenses.get(subject.uid, "")
        return Attribution(found, "cpu", f"b-{found}" if found else "")

    def network(self, license_: int, resource: int, subject: Subject) -> Attribution:
        return Attribution(f"l{license_}" if license_ else "", f"r{resource}", "b")

    def footprint(self, resource: str, uid: int | None) -> Attribution:
        return Attribution(f"stored-{uid}", resource)

    def scopes(self, cgroup: str) -> tuple[int, ...]:
        return ()


def cpu_of(records: Sequence[UsageRecord]) -> int:
    return sum(record.quantities.get(Meter.CPU_NS, 0) for record in records)
