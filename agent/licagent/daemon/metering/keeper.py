# SPDX-License-Identifier: Apache-2.0
"""Metering in the daemon's life: the meter, the ledger, and when a sheet is committed.

All of it runs on a thread of its own, so that neither a slow disk nor 10,000 processes hold up a
revocation. The kernel's thread is asked only for what the policy in force says (`PolicyCharge`).
Nothing that fails here ends the daemon: what is not committed stays in the kernel.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Final, TypeVar

from licagent.daemon.metering.charge import PolicyCharge
from licagent.daemon.metering.footing import specs_of
from licagent.daemon.metering.host import HostCounters
from licagent.daemon.metering.parts import (
    MeteringParts,
    is_counting,
    open_parts,
    when_full,
)
from licagent.daemon.metering.totals import UsageTotals
from licagent.domain.attribution import EMPTY, AttributionTable
from licagent.domain.footprint import FootprintSpec
from licagent.domain.policy_model import Resource
from licagent.domain.tables import Tables
from licagent.domain.usage import Meter
from licagent.host.processes import pids
from licagent.metering.sampler import Step
from licagent.metering.spool import Refusal
from licagent.metering.unattributed import HostTotals
from licagent.store.errors import StoreError

if TYPE_CHECKING:
    from licagent.daemon.agent import Agent
    from licagent.daemon.policy.compiled import Compiled
    from licagent.daemon.service import OnKernel

_log: Final = logging.getLogger(__name__)

_AGAIN_S: Final = 30.0
_SETTLE_S: Final = 0.05
_APART_S: Final = 1.0
"""Changes of policy that come within this time close one sheet."""
_OPEN_S: Final = 10.0
_LAST_STEP_S: Final = 5.0
_SWEEP_NS: Final = 30_000_000_000
_MERGED_MAX_S: Final = 3600
"""However full the spool is, usage is committed as often."""
_MERGED_ALONE: Final = 12
"""Intervals that are committed as one, at the most, on a host that delivers to nobody."""

T = TypeVar("T")


class MeteringKeeper:
    """Owns the metering of one host."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="metering")
        self._on_kernel: OnKernel | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._wake = asyncio.Event()
        self._tried = asyncio.Event()
        self._table: AttributionTable = EMPTY
        self._table_of: Compiled | None = None
        self._stepped_s = 0.0
        self._first_totals: HostTotals = {}
        self._swept_ns = 0
        self._footprints: tuple[FootprintSpec, ...] = agent.config.footprint
        self.parts: MeteringParts | None = None
        """Ledger, meter and the rest, once they are open. Used on the metering thread."""
        self.charge: PolicyCharge | None = None
        """What the open sheet is charged by."""
        self.problem = ""
        """Why nothing is metered or committed now; empty while all is well."""
        self.refusal: Refusal | None = None
        self.committed_at_s = 0.0
        """Unix time of the last commit; 0: none yet."""
        self.step_s = 0.0
        """How long the last step took, of the metering thread's time."""
        self.records = 0
        """Committed since the daemon started."""
        self.attributed: dict[Meter, int] = {}
        self.unattributed: dict[Meter, int] = {}
        self.totals = UsageTotals()
        """By license and resource, where metrics are served."""
        self._has_metrics = agent.config.metrics_listen != "off"

    @property
    def is_off(self) -> bool:
        """The settings want nothing metered."""
        return self._agent.config.metering == "off"

    # --- on the loop

    async def run(self, on_kernel: OnKernel) -> None:
        """Until cancelled."""
        self._on_kernel = on_kernel
        self._loop = asyncio.get_running_loop()
        while True:
            try:
                await self._live()
            except Exception as error:  # noqa: BLE001 - no fault of a meter may end enforcement
                self._tried.set()
                _log.exception("metering failed; it is begun again in %s s", _AGAIN_S)
                await self._say(f"metering failed: {error}")
            await asyncio.sleep(_AGAIN_S)

    async def _live(self) -> None:
        if self.parts is None:
            await self.on_thread(self._open)
            self._tried.set()
        if self.is_off:
            await self._switch_off()
            await asyncio.Event().wait()
        self.charge = await self._kernel(self._take_charge)
        interval_s = float(self._agent.config.metering_interval_s)
        next_s = time.monotonic() + interval_s
        held = 0
        while True:
            is_woken = await self._pause(next_s - time.monotonic())
            if not is_woken:
                next_s = max(next_s + interval_s, time.monotonic())
            held += 1
            if not is_woken and held < self.interval_factor:
                await self.on_thread(self._hold)
                continue
            held = 0
            await self._commit()

    async def _switch_off(self) -> None:
        """Commit what an earlier daemon had counted, and let the kernel count no more."""
        self.charge = charge = await self._kernel(self._take_charge)
        while True:
            refusal = await self.on_thread(lambda: self._end(charge))
            parts = self._open_parts()
            if refusal is None:
                await self._say("")
                return
            # Until then the kernel goes on: what it holds is not ours to throw away.
            await self._say(parts.spool.problem or str(refusal), refusal)
            await asyncio.sleep(float(self._agent.config.metering_interval_s))

    async def _pause(self, wait_s: float) -> bool:
        """Until then, or until the policy changes; whether it did."""
        # Not wait_for: see Daemon._ends.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, wait_s)):
                await self._wake.wait()
                since_s = time.monotonic() - self._stepped_s
                await asyncio.sleep(max(_SETTLE_S, _APART_S - since_s))
        is_woken = self._wake.is_set()
        self._wake.clear()
        return is_woken

    async def _commit(self) -> None:
        charge = self.charge
        if charge is None:
            raise RuntimeError("no policy was looked at")
        step = await self.on_thread(lambda: self._step(charge))
        self._stepped_s = time.monotonic()
        if step.refusal is None:
            await self._say("")
        else:
            parts = self._open_parts()
            await self._say(parts.spool.problem or str(step.refusal), step.refusal)
        # After the sheet is closed: what it holds was used under the policy before.
        self.charge = await self._kernel(self._take_charge)

    async def _say(self, problem: str, refusal: Refusal | None = None) -> None:
        """Keep on record that metering has stopped, or goes on."""
        before, self.problem, self.refusal = self.problem, problem, refusal
        if bool(before) == bool(problem):
            return
        message = f"usage is not committed: {problem}" if problem else "usage is committed again"
        try:
            await self._kernel(lambda: self._agent.emit("metering", message, problem=problem))
        except (StoreError, OSError) as error:
            _log.error("%s", error)

    def policy_changed(self) -> None:
        """Commit what was used so far under the policy before. Any thread may call."""
        if self._table is EMPTY and self._agent.policy.compiled is self._table_of:
            return  # nothing that is measured depends on it
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closing
                self._loop.call_soon_threadsafe(self._wake.set)

    async def flush(self) -> str:
        """Commit what there is now; the caller is about to take the meter away.

        Why usage is lost with it; "" if none is. Never raises, and takes seconds at the most:
        neither a full disk nor one that hangs may keep somebody from taking enforcement away.
        """
        if not is_counting(self._agent):
            return ""
        charge = self.charge
        if self.parts is None or charge is None:
            return self.problem or "the ledger is not open"
        try:
            async with asyncio.timeout(_LAST_STEP_S):
                step = await self.on_thread(lambda: self._step(charge))
        except TimeoutError:
            return f"the disk took nothing in {_LAST_STEP_S:.0f} s"
        except Exception as error:  # noqa: BLE001 - whatever it is, it must not be in the way
            _log.exception("the last usage could not be committed")
            return str(error) or type(error).__name__
        if step.refusal is None:
            return ""
        return self.parts.spool.problem or str(step.refusal)

    async def wait_open(self) -> None:
        """Return once the ledger is open, or is known not to be; at most a few seconds."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_OPEN_S):
                await self._tried.wait()

    async def on_thread(self, action: Callable[[], T]) -> T:
        """Run `action` on the metering thread, after what waits there."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, action)

    async def _kernel(self, action: Callable[[], Any]) -> Any:
        if self._on_kernel is None:
            raise RuntimeError("metering was not started")
        return await self._on_kernel(action)

    async def close(self) -> None:
        """Commit what there is, if that is quick, and let go of the ledger."""
        try:
            async with asyncio.timeout(_LAST_STEP_S):
                await self.on_thread(self._last_step)
        except TimeoutError:
            _log.warning("the last usage is not committed yet: it stays in the kernel")
        self._thread.shutdown(wait=False)

    # --- on the kernel's thread

    def begin(self) -> None:
        """Let the kernel count, before the daemon says that it is ready."""
        if is_counting(self._agent):
            self._first_totals = HostCounters(self._agent.tree).read()
            self._agent.kernel.usage.begin()

    def _take_charge(self) -> PolicyCharge:
        """What use is charged to from now on. Cheap while nothing has changed."""
        agent = self._agent
        compiled = agent.policy.compiled
        if compiled is not self._table_of:
            self._table_of = compiled
            licenses = agent.licenses()
            resources: tuple[Resource, ...] = ()
            if compiled is None:
                self._table = EMPTY
            else:
                self._table = agent.keeper.attribution(compiled, licenses)
                managed = compiled.managed.resources.values()
                resources = (*compiled.local.resources, *managed)
            self._footprints = specs_of(agent.config.footprint, resources)
        held = agent.licensing.held
        valid = frozenset(
            jti
            for jti in self._table.licenses
            if jti in held and agent.licensing.judge(held[jti].license).valid
        )
        tables = Tables() if compiled is None else compiled.tables
        charge = self.charge
        if (
            charge is not None
            and charge.tables is tables
            and charge.table is self._table
            and charge.valid == valid
        ):
            return charge  # with all that it has looked up
        return PolicyCharge(
            self._table,
            valid,
            tables,
            license_id=agent.records.jti_of,
            resource_name=agent.names.resource,
        )

    # --- on the metering thread

    def _open(self) -> None:
        self.parts = parts = open_parts(self._agent, self._first_totals)
        if self._has_metrics:
            self.totals.take_up(self._agent.state, _place(parts))

    def _open_parts(self) -> MeteringParts:
        if self.parts is None:
            raise RuntimeError("metering was not started")
        return self.parts

    def _step(self, charge: PolicyCharge) -> Step:
        """Commit the open sheet, and before it one that was left over."""
        step = self._one_step(charge)
        return self._one_step(charge) if step.is_late else step

    def _one_step(self, charge: PolicyCharge) -> Step:
        parts = self._open_parts()
        began_ns = time.thread_time_ns()
        # A step makes tens of thousands of objects that hold no cycles: walking all that the
        # daemon has, again and again meanwhile, would cost half as much as the step.
        gc.disable()
        try:
            return self._measured_step(parts, charge, began_ns)
        finally:
            gc.enable()

    def _measured_step(self, parts: MeteringParts, charge: PolicyCharge, began_ns: int) -> Step:
        parts.ledger.set_when_full(when_full(self._agent))
        parts.footing.follow(self._footprints)
        step = parts.sampler.step(charge)
        if step.sheet is not None:
            parts.table.take(step.sheet, parts.sampler.owners, step.work)
            self._sweep(step.sheet.closed_ns)
            self.committed_at_s = time.time()
            self.records += len(step.records)
            if self._has_metrics:
                self.totals.add(step.records)
            _add(self.attributed, step.quantities)
            _add(self.unattributed, step.unattributed)
        self.step_s = (time.thread_time_ns() - began_ns) / 1e9
        return step

    def _end(self, charge: PolicyCharge) -> Refusal | None:
        parts = self._open_parts()
        parts.ledger.set_when_full(when_full(self._agent))
        if not is_counting(self._agent):
            return parts.sampler.note_off()
        parts.footing.follow(self._footprints)
        refusal = parts.sampler.end(charge)
        if refusal is None:
            parts.footing.follow(())
        return refusal

    def _sweep(self, now_ns: int) -> None:
        """Note now and then which processes are gone: idle ones end without a row."""
        if now_ns - self._swept_ns >= _SWEEP_NS:
            self._swept_ns = now_ns
            self._open_parts().table.sweep(dict.fromkeys(pids()), now_ns)

    def _hold(self) -> None:
        self._open_parts().sampler.hold()

    @property
    def interval_factor(self) -> int:
        """How many intervals are committed as one, so that the spool grows coarser, not full."""
        parts = self.parts
        if parts is None:
            return 1
        most = _MERGED_MAX_S // self._agent.config.metering_interval_s
        if when_full(self._agent) == "drop_oldest":
            # Full for good: it shall not be coarse for good, too.
            most = min(most, _MERGED_ALONE)
        return max(1, min(parts.ledger.interval_factor, most))

    def _last_step(self) -> None:
        parts = self.parts
        if parts is None:
            return
        try:
            if self.charge is not None and not self.is_off:
                self._step(self.charge)
        except Exception:  # noqa: BLE001 - it stays in the kernel
            _log.exception("the last usage could not be committed")
        finally:
            if self._has_metrics:
                self.totals.put_down(self._agent.state, _place(parts))
            parts.close()
            self.parts = None


def _place(parts: MeteringParts) -> tuple[int, int]:
    return parts.ledger.epoch, parts.ledger.next_sequence


def _add(sums: dict[Meter, int], amounts: Mapping[Meter, int] | None) -> None:
    for meter, amount in (amounts or {}).items():
        sums[meter] = sums.get(meter, 0) + amount
