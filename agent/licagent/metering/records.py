# SPDX-License-Identifier: Apache-2.0
"""A sheet as usage records: rows of one owner, license and resource are one record."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import add
from typing import Final, TypeVar

from licagent.domain.attribution import Attribution
from licagent.domain.usage import Meter, Quality, UsageKind, UsageOwner, UsageRecord
from licagent.domain.usage_lines import COMPUTE_METERS, Amounts, ComputeLines, UsageLine
from licagent.metering.footprint import FootprintRow
from licagent.metering.owners import Charging, OwnedWork, OwnerBook, work_amounts
from licagent.metering.rows import FlowRow, Sheet, WorkRow

WORK_METERS: Final = COMPUTE_METERS
FLOW_METERS: Final = (
    Meter.TX_PAYLOAD_BYTES,
    Meter.RX_PAYLOAD_BYTES,
    Meter.TX_WIRE_BYTES,
    Meter.RX_WIRE_BYTES,
    Meter.TX_PACKETS,
    Meter.RX_PACKETS,
)
_NOTHING: Final = (0,) * len(COMPUTE_METERS)
K = TypeVar("K")
SPILLED: Final = "the kernel's table of owners was full"


def flow_amounts(row: FlowRow) -> tuple[int, ...]:
    """The quantities of a row in the order of FLOW_METERS."""
    return (
        row.tx_payload_bytes,
        row.rx_payload_bytes,
        row.tx_wire_bytes,
        row.rx_wire_bytes,
        row.tx_packets,
        row.rx_packets,
    )


@dataclass(frozen=True, slots=True)
class Qualities:
    """How far the meters of this host may be trusted."""

    of: Mapping[Meter, Quality]
    """A meter that is not named is exact."""

    def among(self, meters: Iterable[Meter], quality: Quality) -> frozenset[Meter]:
        """Those of `meters` that have a quality."""
        return frozenset(each for each in meters if self.of.get(each) is quality)


@dataclass(frozen=True, slots=True)
class SheetRecords:
    """The records of one sheet, and what they come to."""

    compute: ComputeLines
    others: list[UsageRecord]
    """Network use, and what was spilled."""
    work: OwnedWork
    """The sheet's rows, of which `compute` is made."""
    attributed: dict[Meter, int]
    """What somebody, or the line of spilled rows, was given; network use without loopback."""

    @property
    def records(self) -> list[UsageRecord]:
        """All of them, each made anew."""
        return [*self.compute, *self.others]


def read_sheet(
    sheet: Sheet,
    owners: OwnerBook,
    qualities: Qualities,
    unix_ms: Callable[[int], int],
) -> SheetRecords:
    """The records of a sheet. `unix_ms`: the wall time of a reading of CLOCK_BOOTTIME."""
    start_ms, end_ms = unix_ms(sheet.opened_ns), unix_ms(sheet.closed_ns)
    # A sheet may know better: dropped exit records make estimates of what is exact otherwise.
    own: Mapping[Meter, Quality] = getattr(sheet, "quality", {})
    if own:
        qualities = Qualities({**qualities.of, **own})
    maker = _Maker(qualities, start_ms, max(start_ms, end_ms))
    work = owners.of_work(sheet.work)
    compute = maker.work(work)
    maker.flows(sheet.flows, owners)
    maker.spilled(sheet.spilled_work, sheet.spilled_flows)
    return SheetRecords(compute, maker.records, work, maker.attributed)


class _Maker:
    def __init__(self, qualities: Qualities, start_ms: int, end_ms: int) -> None:
        self._qualities = qualities
        self._start_ms = start_ms
        self._end_ms = end_ms
        self.records: list[UsageRecord] = []
        self.attributed: dict[Meter, int] = {}

    def work(self, work: OwnedWork) -> ComputeLines:
        amounts = work.amounts
        lines = [known.line for known in work.owners]
        sums: dict[UsageLine, Amounts] = dict(zip(lines, amounts, strict=True))
        if len(sums) < len(lines):  # several rows are one's
            sums = {}
            for line, one in zip(lines, amounts, strict=True):
                held = sums.setdefault(line, one)
                if held is not one:
                    sums[line] = _sum(held, one)
        # By column: many rows are added up without one step in Python for each.
        totals = map(sum, zip(*amounts, strict=True))
        self._note({meter: total for meter, total in zip(WORK_METERS, totals) if total})  # noqa: B905
        return ComputeLines(
            self._start_ms,
            self._end_ms,
            [row for row in sums.items() if row[1] != _NOTHING],
            self._qualities.among(WORK_METERS, Quality.ESTIMATED),
            self._qualities.among(WORK_METERS, Quality.UNSUPPORTED),
        )

    def flows(self, rows: Sequence[FlowRow], owners: OwnerBook) -> None:
        sums: dict[tuple[UsageOwner, Attribution, int, bool], list[int]] = {}
        charging = owners.charging
        for row in rows:
            known = owners.of(row.who)
            charge = charging.network(row.license, row.resource, known.subject)
            key = (known.owner, charge, row.protocol, row.is_loopback)
            _add(sums, key, flow_amounts(row))
        estimated = self._qualities.among(FLOW_METERS, Quality.ESTIMATED)
        unsupported = self._qualities.among(FLOW_METERS, Quality.UNSUPPORTED)
        for (owner, charge, protocol, is_loopback), amounts in sums.items():
            quantities = _named(FLOW_METERS, amounts)
            if not quantities:
                continue
            if not is_loopback:
                self._note(quantities)
            self.records.append(
                UsageRecord(
                    kind=UsageKind.NETWORK,
                    start_unix_ms=self._start_ms,
                    end_unix_ms=self._end_ms,
                    quantities=quantities,
                    owner=owner,
                    license=charge.license,
                    resource=charge.resource,
                    binding=charge.binding,
                    protocol=protocol,
                    is_loopback=is_loopback,
                    estimated=estimated.intersection(quantities),
                    unsupported=unsupported,
                )
            )

    def spilled(self, work: WorkRow | None, flows: Sequence[FlowRow]) -> None:
        """Exact in sum, of nobody: lines of their own."""
        if work is not None:
            self._spilled_line(_named(WORK_METERS, work_amounts(work)))
        by_kind: dict[tuple[int, bool], list[int]] = {}
        for row in flows:
            _add(by_kind, (row.protocol, row.is_loopback), flow_amounts(row))
        for (protocol, is_loopback), amounts in by_kind.items():
            self._spilled_line(_named(FLOW_METERS, amounts), protocol, is_loopback=is_loopback)

    def _spilled_line(
        self, quantities: dict[Meter, int], protocol: int = 0, *, is_loopback: bool = False
    ) -> None:
        if not quantities:
            return
        if not is_loopback:
            self._note(quantities)
        estimated = self._qualities.among(quantities, Quality.ESTIMATED)
        self.records.append(
            UsageRecord(
                kind=UsageKind.UNATTRIBUTED,
                start_unix_ms=self._start_ms,
                end_unix_ms=self._end_ms,
                quantities=quantities,
                protocol=protocol,
                is_loopback=is_loopback,
                estimated=estimated,
                detail=SPILLED,
            )
        )

    def _note(self, quantities: Mapping[Meter, int]) -> None:
        for meter, quantity in quantities.items():
            self.attributed[meter] = self.attributed.get(meter, 0) + quantity


def footprint_records(rows: Iterable[FootprintRow], charging: Charging) -> list[UsageRecord]:
    """Records of storage footprints, and of the time for which there is none."""
    records = []
    for row in rows:
        uid = row.uid if row.uid >= 0 else None
        charge = charging.footprint(row.resource, uid)
        owner = UsageOwner(unit=row.name, user=row.user, uid=row.uid)
        if row.uncounted_ms > 0:
            records.append(
                UsageRecord(
                    kind=UsageKind.GAP,
                    start_unix_ms=row.start_unix_ms - row.uncounted_ms,
                    end_unix_ms=row.start_unix_ms,
                    quantities={},
                    owner=owner,
                    resource=row.resource,
                    detail=f"footprint {row.name} was not measured",
                )
            )
        quality = frozenset((Meter.STORED_BYTE_MS,))
        records.append(
            UsageRecord(
                kind=UsageKind.STORAGE,
                start_unix_ms=row.start_unix_ms,
                end_unix_ms=row.end_unix_ms,
                quantities={Meter.STORED_BYTE_MS: row.stored_byte_ms},
                owner=owner,
                license=charge.license,
                resource=charge.resource,
                binding=charge.binding,
                estimated=quality if row.quality is Quality.ESTIMATED else frozenset(),
                unsupported=quality if row.quality is Quality.UNSUPPORTED else frozenset(),
                detail=row.detail,
            )
        )
    return records


def _add(sums: dict[K, list[int]], key: K, amounts: tuple[int, ...]) -> None:
    held = sums.get(key)
    if held is None:
        sums[key] = list(amounts)
    else:
        for position, amount in enumerate(amounts):
            held[position] += amount


def _sum(one: Amounts, other: Amounts) -> Amounts:
    return tuple(map(add, one, other))


def _named(meters: tuple[Meter, ...], amounts: Sequence[int]) -> dict[Meter, int]:
    return {meter: amount for meter, amount in zip(meters, amounts, strict=True) if amount > 0}
