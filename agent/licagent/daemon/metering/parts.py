# SPDX-License-Identifier: Apache-2.0
"""What metering is made of on this host: which meter, which ledger, how far each is exact."""

from __future__ import annotations

import struct
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from licagent.daemon.metering.footing import Footing
from licagent.daemon.metering.host import HostCounters
from licagent.daemon.metering.names import HostNameBook
from licagent.daemon.metering.spool import LedgerSpool
from licagent.domain.usage import Meter, Quality
from licagent.host import posture
from licagent.metering.footprint import Instant
from licagent.metering.mixed import MixedMeter
from licagent.metering.processes import ProcessTable
from licagent.metering.records import FLOW_METERS, WORK_METERS, Qualities
from licagent.metering.rows import Meter as SheetMeter
from licagent.metering.rows import WorkRow
from licagent.metering.sampler import Sampler
from licagent.metering.spool import FALLBACK_MARK, FOOTPRINT_MARK
from licagent.metering.unattributed import HostTotals
from licagent.store.ledger import Ledger
from licagent.store.ledger_types import LedgerLimits

if TYPE_CHECKING:
    from licagent.daemon.agent import Agent
    from licagent.kernel.usage import MeterSupport
    from licagent.metering.fallback.sampler import FallbackMeter

BOOT_MARK: Final = "boot"
_BOOT: Final = struct.Struct(">16sq")


@dataclass(slots=True)
class MeteringParts:
    """All of it, open. Used on the metering thread; the ledger on any."""

    ledger: Ledger
    spool: LedgerSpool
    sampler: Sampler
    table: ProcessTable
    names: HostNameBook
    counters: HostCounters
    qualities: Qualities
    sources: Mapping[Meter, str]
    """What each meter is read from, in a word; "" where it is not."""
    footing: Footing
    started_ns: int
    """CLOCK_BOOTTIME since which the totals of `table` are counted."""
    _closing: tuple[Callable[[], None], ...]

    def close(self) -> None:
        """Let go of everything. The kernel goes on counting."""
        for close in self._closing:
            close()


def open_parts(agent: Agent, totals: HostTotals) -> MeteringParts:
    """Open meter and ledger. `totals`: the host's when the kernel's meter began.

    Raises StoreError, BpfError, OSError.
    """
    boot_id = posture.boot_id()
    meter = agent.kernel.usage
    ledger = Ledger(
        agent.state.subdirectory("usage"),
        boot_id=boot_id,
        host_id=lambda: agent.link.state.host_id,
        limits=LedgerLimits(
            spool_max_bytes=agent.config.spool_max_bytes,
            when_full=when_full(agent),
        ),
    )
    closing: list[Callable[[], None]] = [ledger.close]
    try:
        fallback = None
        if not meter.support.work:
            fallback = _fallback(boot_id, ledger)
            closing.append(fallback.close)
            if is_counting(agent):
                fallback.begin()  # from here on it knows how exact it is
        boot_unix_ms = _boot_unix_ms(ledger.marks.get(BOOT_MARK, b""), boot_id, agent)
        names = HostNameBook(agent.tree, boot_unix_ms, agent.names.path)
        footing = Footing(
            lambda: _instant(agent, boot_id), lambda: ledger.marks.get(FOOTPRINT_MARK, b"")
        )
        closing.append(footing.close)
        counters = HostCounters(agent.tree)

        def is_ours(row: WorkRow) -> bool:
            return counters.is_whole_host or bool(names.relative(row.who.cgroup_path))  # type: ignore[attr-defined]

        counted: SheetMeter = meter
        if fallback is not None:
            counted = MixedMeter(meter, fallback, is_ours)
        spool = LedgerSpool(ledger)
        qualities = _qualities(meter.support, fallback)
        sampler = Sampler(
            counted,
            spool,
            names,
            boot_id=boot_id,
            unix_ms=lambda at_ns: _unix_ms(agent, at_ns),
            now_ns=posture.boottime_ns,
            totals=counters.read,
            qualities=qualities,
            footprints=footing,
            more_marks={BOOT_MARK: _BOOT.pack(uuid.UUID(boot_id).bytes, boot_unix_ms)},
        )
        if is_counting(agent):
            sampler.begin(totals)
    except BaseException:
        for close in closing:
            close()
        raise
    return MeteringParts(
        ledger=ledger,
        spool=spool,
        sampler=sampler,
        table=ProcessTable(),
        names=names,
        counters=counters,
        qualities=qualities,
        sources=_sources(meter.support, fallback),
        footing=footing,
        started_ns=posture.boottime_ns(),
        _closing=tuple(closing),
    )


def is_counting(agent: Agent) -> bool:
    """Whether the kernel counts: also where an earlier daemon's settings wanted it, and ours not.

    What is there then is committed once, and counting ends (`MeteringKeeper`).
    """
    return agent.config.metering != "off" or agent.kernel.usage.open_number != 0


def when_full(agent: Agent) -> Literal["hold", "drop_oldest"]:
    """What nobody will ever fetch may go to make room; what somebody bills may not."""
    return "hold" if agent.link.state.host_id else "drop_oldest"


def _fallback(boot_id: str, ledger: Ledger) -> FallbackMeter:
    from licagent.metering.fallback.sampler import FallbackMeter

    return FallbackMeter(boot_id=boot_id, baseline=ledger.marks.get(FALLBACK_MARK, b""))


def _unix_ms(agent: Agent, at_ns: int) -> int:
    """Trusted time of a past reading of CLOCK_BOOTTIME: what root sets the clock to is not it."""
    now_ns = posture.boottime_ns()
    return (agent.clock.now_ns(now_ns) - (now_ns - at_ns)) // 1_000_000


def _instant(agent: Agent, boot_id: str) -> Instant:
    now_ns = posture.boottime_ns()
    return Instant(boot_id, now_ns // 1_000_000, agent.clock.now_ns(now_ns) // 1_000_000)


def _boot_unix_ms(mark: bytes, boot_id: str, agent: Agent) -> int:
    """When CLOCK_BOOTTIME was zero: as first said in this boot, so that processes keep a name."""
    if len(mark) == _BOOT.size:
        boot, boot_unix_ms = _BOOT.unpack(mark)
        if boot == uuid.UUID(boot_id).bytes:
            return int(boot_unix_ms)
    return _unix_ms(agent, 0)


def _qualities(support: MeterSupport, fallback: FallbackMeter | None) -> Qualities:
    of: dict[Meter, Quality] = {Meter.MEMORY_BYTE_MS: Quality.ESTIMATED}
    if fallback is not None:
        of |= {meter: fallback.quality.get(meter, Quality.UNSUPPORTED) for meter in WORK_METERS}
    if not support.payload:
        of[Meter.TX_PAYLOAD_BYTES] = of[Meter.RX_PAYLOAD_BYTES] = Quality.ESTIMATED
    if not support.flows:
        of |= dict.fromkeys(FLOW_METERS, Quality.UNSUPPORTED)
    return Qualities(of)


def _sources(support: MeterSupport, fallback: FallbackMeter | None) -> dict[Meter, str]:
    if fallback is not None:
        work = dict.fromkeys(WORK_METERS, fallback.source)
    else:
        work = dict.fromkeys(WORK_METERS, "task_io_accounting")
        work[Meter.CPU_NS] = "sum_exec_runtime"
        work[Meter.MEMORY_BYTE_MS] = "mm_struct, sampled"
        work[Meter.PROCESSES] = "task exits"
    flows = dict.fromkeys(FLOW_METERS, "cgroup_skb" if support.flows else "")
    if support.flows and support.payload:
        flows[Meter.TX_PAYLOAD_BYTES] = flows[Meter.RX_PAYLOAD_BYTES] = "tcp_sock, cgroup_skb"
    return {**work, **flows}
