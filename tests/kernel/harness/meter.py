# SPDX-License-Identifier: Apache-2.0
"""The kernel's meter with no daemon: programs on a cgroup of the test's own, read directly."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Final, Protocol, Self, TypeVar

import pytest
from tests.kernel.harness.cgroups import CgroupTree, mount_point

from licagent.kernel.attach import cgroup_id
from licagent.kernel.bpffs import PinFolder
from licagent.kernel.control import ControlWord
from licagent.kernel.maps import Map
from licagent.kernel.usage import FlowRow, MeterSupport, Sheet, Who, WorkRow
from licagent.kernel.usage_structs import Owner

if TYPE_CHECKING:
    from licagent.kernel.usage_meter import UsageMeter

LOADER: Final = os.environ.get("LICAGENT_TEST_LOADER", "prebuilt")

once = pytest.mark.skipif(
    LOADER != "prebuilt", reason="the same objects under each loader: tested under prebuilt"
)
"""For compute and storage: only network use is counted by what bcc compiles, too."""

_PAUSE_S: Final = 0.05
_PATIENCE_S: Final = 5.0
"""What still runs on purpose in the tree never settles; nor does what was freed unseen."""

_Total = TypeVar("_Total", "Work", "Flow")


class Meter(Protocol):
    """What of UsageMeter the tests use."""

    support: MeterSupport

    def begin(self) -> None:
        """Open the first sheet, or go on with what is pinned."""

    def collect(self) -> None:
        """Move what live tasks used so far into the open sheet."""

    def close_sheet(self) -> Sheet:
        """Close the open sheet."""

    def discard(self, number: int) -> None:
        """Forget a closed sheet."""

    def peek(self) -> Sheet:
        """The open sheet."""


@dataclass(slots=True)
class Work:
    """Sum of rows of compute and storage use."""

    cpu_ns: int = 0
    read_bytes: int = 0
    write_bytes: int = 0
    cancelled_bytes: int = 0
    memory_byte_ms: int = 0
    processes: int = 0


@dataclass(slots=True)
class Flow:
    """Sum of rows of network use."""

    tx_payload_bytes: int = 0
    rx_payload_bytes: int = 0
    tx_wire_bytes: int = 0
    rx_wire_bytes: int = 0
    tx_packets: int = 0
    rx_packets: int = 0


def _add(total: _Total, row: WorkRow | FlowRow) -> None:
    for each in fields(total):
        setattr(total, each.name, getattr(total, each.name) + getattr(row, each.name))


Chosen = Callable[[Who], bool]


def anybody(_who: Who) -> bool:
    """Every owner."""
    return True


@dataclass(slots=True)
class Use:
    """What was counted while something was measured; complete when the context ends."""

    work_rows: list[WorkRow] = field(default_factory=list)
    flow_rows: list[FlowRow] = field(default_factory=list)
    opened_ns: int = 0
    closed_ns: int = 0

    def add(self, sheet: Sheet) -> None:
        """Take a sheet. The tables of a test never fill up: nothing may be without its owner."""
        spilled = sheet.spilled_work
        assert spilled is None or not (spilled.cpu_ns or spilled.processes), spilled
        assert not sheet.spilled_flows, sheet.spilled_flows
        self.opened_ns = self.opened_ns or sheet.opened_ns
        self.closed_ns = sheet.closed_ns
        self.work_rows += sheet.work
        self.flow_rows += sheet.flows

    def work(self, cgroup: Path | None = None, chosen: Chosen = anybody) -> Work:
        """Sum over a cgroup with its descendants (of those that exist now)."""
        total = Work()
        for row in self.work_of(cgroup, chosen):
            _add(total, row)
        return total

    def work_of(self, cgroup: Path | None = None, chosen: Chosen = anybody) -> list[WorkRow]:
        """The rows themselves."""
        ids = None if cgroup is None else cgroup_ids(cgroup)
        return [
            row
            for row in self.work_rows
            if (ids is None or row.who.cgroup in ids) and chosen(row.who)
        ]

    def flow(
        self,
        cgroup: Path | None = None,
        *,
        protocol: int | None = None,
        loopback: bool | None = None,
        chosen: Chosen = anybody,
    ) -> Flow:
        """Sum over a cgroup, an IP protocol, loopback or not; None: all."""
        total = Flow()
        for row in self.flows_of(cgroup, chosen):
            if protocol is not None and row.protocol != protocol:
                continue
            if loopback is not None and row.is_loopback != loopback:
                continue
            _add(total, row)
        return total

    def flows_of(self, cgroup: Path | None = None, chosen: Chosen = anybody) -> list[FlowRow]:
        """The rows themselves."""
        ids = None if cgroup is None else cgroup_ids(cgroup)
        return [
            row
            for row in self.flow_rows
            if (ids is None or row.who.cgroup in ids) and chosen(row.who)
        ]


def cgroup_ids(cgroup: Path) -> set[int]:
    """Kernel numbers of a cgroup and its descendants."""
    return {path.stat().st_ino for path in (cgroup, *cgroup.rglob("*")) if path.is_dir()}


def load(bpffs: Path, cgroup: Path, loader: str = LOADER) -> None:
    """Load and attach all programs, as the daemon does. AssertionError where that fails."""
    command = [sys.executable, "-m", "licagent.kernel.loader", "--loader", loader]
    command += ["--bpffs", str(bpffs), "--cgroup", str(cgroup)]
    done = subprocess.run(command, capture_output=True, check=False, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    failed = [state for state in report["hooks"] if not state["attached"]]
    assert not failed, failed


def open_meter(bpffs: Path) -> UsageMeter:
    """The meter of a pin folder."""
    from licagent.kernel.usage_meter import UsageMeter

    return UsageMeter(PinFolder(bpffs))


class MeterOf:
    """A meter, and the cgroup in which things are measured by it."""

    def __init__(self, pins: PinFolder, root: Path, meter: Meter | None = None) -> None:
        self.pins = pins
        self.root = root
        self._meter = meter
        self._given_up: set[int] = set()

    @property
    def meter(self) -> Meter:
        """Of one that was opened here: only inside of the context."""
        assert self._meter is not None
        return self._meter

    def cut(self) -> Sheet:
        """Close the open sheet and discard it; what it held."""
        sheet = self.meter.close_sheet()
        self.meter.discard(sheet.number)
        return sheet

    @contextmanager
    def measuring(self) -> Iterator[Use]:
        """What is used inside: a sheet is cut before and after."""
        self._settle()
        self.cut()
        use = Use()
        yield use
        self._settle()
        use.add(self.cut())

    def _settle(self) -> None:
        """Return when what ended in the tree has been counted: the kernel frees tasks later."""
        limit = time.monotonic() + _PATIENCE_S
        last: object = None
        while time.monotonic() < limit:
            use = Use()
            use.add(self.meter.peek())
            found = use.work(self.root), use.flow(self.root), self._dead()
            if found == last and not found[-1]:
                return
            last = found
            time.sleep(_PAUSE_S)
        self._given_up |= set(self._dead())

    def _dead(self) -> list[int]:
        """Processes of the tree that are gone, and that the kernel has not let go of yet."""
        ids = cgroup_ids(self.root)
        accounts = Map(self.pins.maps / "accounts")
        try:
            owners = [Owner.from_buffer_copy(value) for _, value in accounts.items()]
        finally:
            accounts.close()
        return [
            owner.pid
            for owner in owners
            if owner.cgroup in ids
            and owner.pid not in self._given_up
            and not Path(f"/proc/{owner.pid}").exists()
        ]


class MeterUnderTest(MeterOf):
    """A meter with programs and a cgroup of its own, and no daemon."""

    def __init__(self, loader: str = LOADER) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="licagent-meter-"))
        self.bpffs = self.folder / "bpf"
        self.loader = loader
        self.tree = CgroupTree()
        super().__init__(PinFolder(self.bpffs), self.tree.root)

    def __enter__(self) -> Self:
        try:
            self.tree.__enter__()
            load(self.bpffs, self.tree.root, self.loader)
            control = ControlWord(self.pins)
            control.root_cgroup = cgroup_id(self.tree.root)
            control.close()
            self._meter = open_meter(self.bpffs)
            self._meter.begin()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._meter is not None and hasattr(self._meter, "close"):
            self._meter.close()
        self.pins.remove()
        self.tree.remove()
        shutil.rmtree(self.folder, ignore_errors=True)

    def count_the_host(self) -> None:
        """From now on processes outside of the tree are counted, too: all of the host."""
        control = ControlWord(self.pins)
        control.root_cgroup = cgroup_id(mount_point())
        control.close()
        self.cut()
