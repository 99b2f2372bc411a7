# SPDX-License-Identifier: Apache-2.0
"""The lines above the table of `top`: the host, the totals, and what they leave out. Pure."""

from __future__ import annotations

from licagent.cli.top.arrange import View
from licagent.cli.top.model import Sample
from licagent.cli.words import compact, count, safe


def summary(sample: Sample, view: View) -> list[str]:
    """Three lines, each below 80 characters unless names are long."""
    return [_first(sample, view), _second(sample, view), _third(sample)]


def _first(sample: Sample, view: View) -> str:
    snapshot = sample.snapshot
    parts = [
        f"licagent top  {safe(snapshot.host.get('name'))}",
        _time_of_day(snapshot.at),
        f"by {view.by}",
        "totals" if view.totals else "per second",
    ]
    if view.wire:
        parts.append("bytes on the wire")
    if snapshot.metering != "on":
        parts.append(f"METERING {snapshot.metering.upper()}")
    return "  ".join(parts)


def _second(sample: Sample, view: View) -> str:
    snapshot, rates = sample.snapshot, sample.host_rates
    cpus = snapshot.host.get("cpus")
    whole = f" of {cpus * 100}%" if isinstance(cpus, int) else ""
    kind = "wire" if view.wire else "payload"
    used = compact(snapshot.host.get("memory_used_bytes"))
    fitted = compact(snapshot.host.get("memory_bytes"))
    flows = "  ".join(
        f"{name} {_rate(rates.get(meter))}"
        for name, meter in (
            ("in", f"rx_{kind}_bytes"),
            ("out", f"tx_{kind}_bytes"),
            ("read", "read_bytes"),
            ("write", "write_bytes"),
        )
    )
    return f"cpu {_percent(rates.get('cpu_ns'))}{whole}  mem {used} of {fitted}  {flows}"


def _third(sample: Sample) -> str:
    snapshot = sample.snapshot
    rows = snapshot.rows
    if snapshot.by == "process":
        exited = sum(1 for row in rows if row.exited_ns)
        live = sum(row.processes for row in rows)
        text = "1 process" if live == 1 else f"{live} processes"
        text += f", {exited} ended" if exited else ""
    else:
        text = count(len(rows), snapshot.by)
    lost = sample.unattributed_rates.get("cpu_ns")
    if lost is not None:
        text += f"; {_percent(lost)} cpu unattributed"
    # Footprints are measured where they are asked for; that none is asked for is no lack.
    unsupported = [
        meter
        for meter, how in snapshot.qualities.items()
        if how == "unsupported" and meter != "stored_bytes"
    ]
    if unsupported:
        text += f"; not measured here: {', '.join(safe(meter) for meter in unsupported)}"
    elif any(how == "estimated" for how in snapshot.qualities.values()):
        text += "; ~ estimated"
    return text


def _percent(rate: float | None) -> str:
    return "-" if rate is None else f"{rate / 1e7:.1f}%"


def _rate(rate: float | None) -> str:
    return "-" if rate is None else compact(rate)


def _time_of_day(at: str) -> str:
    _, _, time = at.partition("T")
    return f"{time[:8]}Z" if time else "-"
