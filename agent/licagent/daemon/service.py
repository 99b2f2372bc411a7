# SPDX-License-Identifier: Apache-2.0
"""The local API's methods: what the command line asks and tells."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable, Mapping
from typing import Any, Final, Protocol, TypeVar

from licagent.daemon import explain, history, reports
from licagent.daemon.agent import Agent
from licagent.daemon.control import enrolling, leaving
from licagent.daemon.decisions import Record
from licagent.daemon.doctor import doctor
from licagent.daemon.licensing import changes as license_changes
from licagent.daemon.licensing import reports as license_reports
from licagent.daemon.metering import reports as metering_reports
from licagent.daemon.metering import top as metering_top
from licagent.daemon.metering.verify import verified
from licagent.daemon.policy import changes as policy_changes
from licagent.daemon.policy import reports as policy_reports
from licagent.daemon.policy import run_scopes
from licagent.daemon.readers import Readers
from licagent.daemon.shadow import report as shadow_report
from licagent.daemon.shadow.watch import ShadowWatch
from licagent.local.errors import ErrorCode, LocalError
from licagent.local.fanout import Fanout, Missed
from licagent.local.methods import Params
from licagent.local.peer import Peer
from licagent.local.server import LocalServer

T = TypeVar("T")
Result = Mapping[str, object]

_DISK_READERS: Final = 4
"""At once: a check of the ledger, a judgement of the whole log, and two clients' events."""


class OnKernel(Protocol):
    """Runs a function on the kernel thread."""

    def __call__(self, action: Callable[[], T], /) -> Awaitable[T]:
        """Its result."""
        ...  # pragma: no cover


class Service:
    """Handlers of the local API."""

    def __init__(
        self,
        agent: Agent,
        on_kernel: OnKernel,
        fanout: Fanout[Record],
        stop: asyncio.Event,
        watch: ShadowWatch,
    ) -> None:
        self._agent = agent
        self._on_kernel = on_kernel
        self._fanout = fanout
        self._stop = stop
        self._watch = watch
        self._enrolling = asyncio.Lock()
        self._judging = asyncio.Lock()  # the whole log is read for it: one at a time
        self._reading: dict[Hashable, asyncio.Future[Result]] = {}
        # Two of them: a ledger takes a minute to check, and `explain` is not asked for so long.
        self._from_memory = Readers("readers")
        self._from_disk = Readers("disk-readers", _DISK_READERS)

    def register(self, server: LocalServer) -> None:
        """Register every method."""
        server.method("status", self._status)
        server.method("explain", self._explain)
        server.stream("events", self._events)
        server.method("shadow", self._shadow)
        server.method("license.list", self._license_list)
        server.method("license.show", self._license_show)
        server.method("license.add", self._license_add, write=True)
        server.method("license.remove", self._license_remove, write=True)
        server.method("license.revoke", self._license_revoke, write=True)
        server.method("policy.check", self._policy_check)
        server.method("policy.apply", self._policy_apply, write=True)
        server.method("policy.show", self._policy_show)
        server.method("doctor", self._doctor)
        server.method("break_glass", self._break_glass, write=True)
        server.method("run.prepare", self._run_prepare, write=True)
        server.method("enroll", self.enroll, write=True)
        server.method("leave", self._leave, write=True)
        server.method("usage", self._usage)
        server.method("usage.verify", self._usage_verify)
        server.method("top", self._top)
        server.method("config.check", self._config_check)
        server.method("detach", self._detach, write=True)

    # --- reads

    async def _shared(
        self, key: Hashable, action: Callable[[], Result], run: OnKernel | None = None
    ) -> Result:
        """The result of `action`, one run of which answers all who ask for `key` meanwhile.

        So a crowd of readers costs the kernel thread one report at a time, and a revocation
        waits for one. Nobody sees a state from before a change that was acknowledged to him:
        the thread does one thing after the other, and what ran before the change is answered
        before it. What is to `run` elsewhere needs a key for that, another one after a change.
        """
        running = self._reading.get(key)
        if running is None:
            running = asyncio.ensure_future((run or self._on_kernel)(action))
            self._reading[key] = running
            running.add_done_callback(lambda _done: self._reading.pop(key, None))
        # Shielded: the one who asked first may leave before the others have their answer.
        return await asyncio.shield(running)

    async def _status(self, _params: Params, _peer: Peer) -> Result:
        return await self._shared("status", lambda: reports.status(self._agent))

    async def _explain(self, params: Params, _peer: Peer) -> Result:
        return await explain.explain(
            self._agent, params["pid"], params["socket"], self._on_kernel, self._from_memory
        )

    async def _license_list(self, _params: Params, _peer: Peer) -> Result:
        return await self._shared("license.list", lambda: license_reports.license_list(self._agent))

    async def _license_show(self, params: Params, _peer: Peer) -> Result:
        return await self._on_kernel(
            lambda: license_reports.license_show(self._agent, params["id"])
        )

    async def _policy_show(self, _params: Params, _peer: Peer) -> Result:
        # Up to 100,000 bindings. They do not change while they are read: another policy takes
        # their place.
        return await self._shared(
            ("policy.show", self._agent.policy.compiled),
            lambda: policy_reports.policy_show(self._agent),
            self._from_memory,
        )

    async def _doctor(self, _params: Params, _peer: Peer) -> Result:
        return await self._shared("doctor", lambda: doctor(self._agent))

    async def _usage(self, params: Params, _peer: Peer) -> Result:
        await self._agent.metering.wait_open()
        found = await metering_reports.usage(self._agent, params, self._on_kernel)
        return {"schema_version": 1, **found}

    async def _usage_verify(self, _params: Params, _peer: Peer) -> Result:
        # Who comes late is answered of what the ledger was when the first one asked: it grows
        # every few seconds, and a check of it takes longer than that.
        return await self._shared(
            "usage.verify",
            lambda: {"schema_version": 1, **verified(self._agent.config.usage_dir)},
            self._from_disk,
        )

    async def _top(self, params: Params, _peer: Peer) -> Result:
        metering = self._agent.metering
        await metering.wait_open()
        found = await metering.on_thread(lambda: metering_top.top(self._agent, params))
        return {"schema_version": 1, **found}

    async def _shadow(self, params: Params, _peer: Peer) -> Result:
        async with self._judging:
            found = await shadow_report.shadow(
                self._agent,
                self._watch,
                params,
                on_kernel=self._on_kernel,
                on_reader=self._from_disk,
            )
        return {"schema_version": 1, **found}

    async def _config_check(self, _params: Params, _peer: Peer) -> Result:
        return {"schema_version": 1, "settings": reports.settings(self._agent)}

    async def _events(self, params: Params, _peer: Peer) -> AsyncIterator[Result]:
        try:
            history.moment(params["since"])
        except ValueError as error:
            raise LocalError(
                ErrorCode.INVALID_PARAMS, f"events: since: {error}", "write 2026-01-02T03:04:05Z"
            ) from error
        # Subscribed before the log is read, so that nothing falls in between: what the log had
        # by then is told from the log, and the rest as it comes.
        subscription = self._fanout.subscribe() if params["follow"] else None
        try:
            log = self._agent.log
            end = log.next_sequence
            # Not on the kernel thread: a long log must not hold up a revocation.
            past = await self._from_disk(lambda: history.select(log, params, end))
            while batch := await self._from_disk(lambda: history.batch(past)):
                for record in batch:
                    yield record
            if subscription is None:
                return
            async for item in subscription:
                if isinstance(item, Missed):
                    yield {"kind": "missed", "count": item.count, "verdict": None}
                elif item.get("seq", end) >= end and history.is_wanted(item, params):
                    yield item
        finally:
            if subscription is not None:
                await subscription.aclose()

    # --- changes

    async def _license_add(self, params: Params, peer: Peer) -> Result:
        return await self._on_kernel(lambda: license_changes.add(self._agent, params, peer))

    async def _license_remove(self, params: Params, peer: Peer) -> Result:
        return await self._on_kernel(lambda: license_changes.remove(self._agent, params, peer))

    async def _license_revoke(self, params: Params, peer: Peer) -> Result:
        return await self._on_kernel(lambda: license_changes.revoke(self._agent, params, peer))

    async def _policy_check(self, params: Params, _peer: Peer) -> Result:
        return await self._on_kernel(lambda: policy_changes.check(self._agent, params))

    async def _policy_apply(self, params: Params, _peer: Peer) -> Result:
        return await self._on_kernel(lambda: policy_changes.apply(self._agent, params))

    async def _break_glass(self, params: Params, peer: Peer) -> Result:
        agent, by = self._agent, f"uid {peer.uid}"
        if params["end"]:
            changed = await self._on_kernel(lambda: agent.glass.end(by))
            return {"schema_version": 1, "changed": changed, "break_glass": None}
        if not params["reason"].strip():
            raise LocalError(ErrorCode.INVALID_PARAMS, "break_glass: a reason is needed")
        glass = await self._on_kernel(
            lambda: agent.glass.open(params["for_s"], params["reason"], by)
        )
        return {
            "schema_version": 1,
            "changed": True,
            "break_glass": {key: glass[key] for key in ("until", "reason", "by")},
        }

    async def _run_prepare(self, params: Params, _peer: Peer) -> Result:
        return await self._on_kernel(lambda: run_scopes.prepare(self._agent, params))

    async def enroll(self, params: Params, peer: Peer) -> Result:
        """Join a control plane as `params` say; LocalError where it did not happen."""
        async with self._enrolling:  # two at once would leave the key of one with the other's name
            return await enrolling.answer(self._agent, params, peer)

    async def _leave(self, params: Params, peer: Peer) -> Result:
        async with self._enrolling:
            return await leaving.answer(self._agent, params, peer)

    async def _detach(self, _params: Params, _peer: Peer) -> Result:
        agent = self._agent
        loop = asyncio.get_running_loop()
        lost = await agent.metering.flush()

        def detach() -> list[dict[str, Any]]:
            try:
                rows = agent.detach(usage_lost=lost)
                run_scopes.remove(agent.tree.root)
            finally:
                # Whatever came between, and whoever has left: a daemon that goes on would find
                # its links gone and put them back. The answer must leave first.
                if agent.is_detached:
                    loop.call_soon_threadsafe(loop.call_later, 0.2, self._stop.set)
            return rows

        # In one go: what waits for the kernel thread may be a disk that hangs.
        rows = await self._on_kernel(detach)
        return {
            "schema_version": 1,
            "changed": bool(rows),
            "detached": rows,
            "usage_lost": lost or None,
        }
