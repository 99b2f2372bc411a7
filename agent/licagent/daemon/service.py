# SPDX-License-Identifier: Apache-2.0
"""The local API's methods: what the command line asks and tells."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Protocol, TypeVar

from licagent.daemon import (
    enrolling,
    explain,
    history,
    leaving,
    metering_reports,
    metering_top,
    reports,
    run_scopes,
)
from licagent.daemon.agent import Agent
from licagent.daemon.decisions import Record
from licagent.daemon.doctor import doctor
from licagent.daemon.policy_keeper import run_cgroup
from licagent.daemon.usage_verify import verified
from licagent.domain.policy import PolicyError
from licagent.kernel.libbpf import BpfError
from licagent.local.errors import ErrorCode, LocalError
from licagent.local.fanout import Fanout, Missed
from licagent.local.peer import Peer
from licagent.local.server import LocalServer, Params
from licagent.store.errors import StoreError
from licagent.store.licenses import LicenseNotAccepted
from lictoken.errors import TokenError

T = TypeVar("T")
Result = Mapping[str, object]


class OnKernel(Protocol):
    """Runs a function on the kernel thread."""

    def __call__(self, action: Callable[[], T], /) -> Awaitable[T]:
        """Its result."""
        ...  # pragma: no cover


class Service:
    """Handlers of the local API."""

    def __init__(
        self, agent: Agent, on_kernel: OnKernel, fanout: Fanout[Record], stop: asyncio.Event
    ) -> None:
        self._agent = agent
        self._on_kernel = on_kernel
        self._fanout = fanout
        self._stop = stop
        self._enrolling = asyncio.Lock()
        self._reading: dict[str, asyncio.Future[Result]] = {}

    def register(self, server: LocalServer) -> None:
        """Register every method."""
        server.method("status", self._status)
        server.method("explain", self._explain)
        server.stream("events", self._events)
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

    async def _shared(self, name: str, action: Callable[[], Result]) -> Result:
        """The result of `action`, one run of which answers all who ask meanwhile.

        So a crowd of readers costs the kernel thread one report at a time, and a revocation
        waits for one. Nobody sees a state from before a change that was acknowledged to him:
        the thread does one thing after the other, and what ran before the change is answered
        before it.
        """
        running = self._reading.get(name)
        if running is None:
            running = asyncio.ensure_future(self._on_kernel(action))
            self._reading[name] = running
            running.add_done_callback(lambda _done: self._reading.pop(name, None))
        # Shielded: the one who asked first may leave before the others have their answer.
        return await asyncio.shield(running)

    async def _status(self, _params: Params, _peer: Peer) -> Result:
        return await self._shared("status", lambda: reports.status(self._agent))

    async def _explain(self, params: Params, _peer: Peer) -> Result:
        pid, socket = params["pid"], params["socket"]
        return await self._on_kernel(lambda: explain.explain(self._agent, pid, socket))

    async def _license_list(self, _params: Params, _peer: Peer) -> Result:
        return await self._shared("license.list", lambda: reports.license_list(self._agent))

    async def _license_show(self, params: Params, _peer: Peer) -> Result:
        return await self._on_kernel(lambda: reports.license_show(self._agent, params["id"]))

    async def _policy_show(self, _params: Params, _peer: Peer) -> Result:
        return reports.policy_show(self._agent)

    async def _doctor(self, _params: Params, _peer: Peer) -> Result:
        return await self._shared("doctor", lambda: doctor(self._agent))

    async def _usage(self, params: Params, _peer: Peer) -> Result:
        await self._agent.metering.wait_open()
        found = await metering_reports.usage(self._agent, params, self._on_kernel)
        return {"schema_version": 1, **found}

    async def _usage_verify(self, _params: Params, _peer: Peer) -> Result:
        found = await asyncio.to_thread(verified, self._agent.config.usage_dir)
        return {"schema_version": 1, **found}

    async def _top(self, params: Params, _peer: Peer) -> Result:
        metering = self._agent.metering
        await metering.wait_open()
        found = await metering.on_thread(lambda: metering_top.top(self._agent, params))
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
            past = await asyncio.to_thread(history.select, log, params, end)
            while batch := await asyncio.to_thread(history.batch, past):
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
        agent = self._agent

        def add() -> Result:
            try:
                agent.licensing.load_trust()  # its key may have come since the last reading
                found, _path, changed = agent.licensing.store(params["text"].encode())
            except (TokenError, StoreError) as error:
                raise _refused(error) from error
            agent.write_licenses()
            if changed:
                agent.emit(
                    "license",
                    f"license {found.jti} (generation {found.generation}) added by uid {peer.uid}",
                    license=found.jti,
                    by=f"uid {peer.uid}",
                )
                # A policy that was refused for want of this license may be good now, and
                # rules follow what the license entitles.
                agent.load_policy()
            result = reports.license_row(agent, found, {})
            judgement = agent.licensing.judge(found)
            warnings = [agent.policy_problem] if agent.policy_problem else []
            if not judgement.valid:
                warnings.append(f"{judgement.detail} [{judgement.state.value}]; {judgement.hint}")
            return {
                "schema_version": 1,
                "changed": changed,
                **result,
                "generation": found.generation,
                "warnings": warnings,
            }

        return await self._on_kernel(add)

    async def _license_remove(self, params: Params, peer: Peer) -> Result:
        agent, jti = self._agent, params["id"]

        def remove() -> Result:
            held = agent.licensing.held.get(jti)
            if held is not None and held.managed:
                raise LocalError(
                    ErrorCode.REFUSED,
                    f"license {jti} comes from the control plane, which would deliver it again",
                    f"end it there: licplane license revoke {jti}; or here: licagent license "
                    f"revoke {jti}",
                )
            if not agent.licensing.forget(jti):
                return {"schema_version": 1, "id": jti, "changed": False}
            agent.last_cut = []
            agent.write_licenses()
            count = reports.cut_of(agent, jti)
            agent.emit(
                "license",
                f"license {jti} removed by uid {peer.uid}",
                license=jti,
                by=f"uid {peer.uid}",
                sockets_cut=count,
            )
            # As the next start would find it: a binding to this license is a problem now.
            agent.load_policy()
            return {
                "schema_version": 1,
                "id": jti,
                "changed": True,
                "sockets_cut": count,
                "warnings": [agent.policy_problem] if agent.policy_problem else [],
            }

        return await self._on_kernel(remove)

    async def _license_revoke(self, params: Params, peer: Peer) -> Result:
        agent = self._agent

        def revoke() -> Result:
            agent.last_cut = []
            by = f"uid {peer.uid}"
            try:
                # The kernel comes first, then the sockets, then the disk: the answer waits for
                # all three, and without an answer nobody was told that it is done.
                with agent.records.batch():
                    jti, reason, action, changed = _revoked(agent, params, by)
                    agent.write_few([jti])
            except (TokenError, StoreError) as error:
                raise _refused(error) from error
            count = 0
            if changed:
                count = reports.cut_of(agent, jti)
                agent.emit(
                    "license",
                    f"license {jti} {action} by {by}: {reason}",
                    license=jti,
                    by=by,
                    reason_text=reason,
                    sockets_cut=count,
                )
            return {
                "schema_version": 1,
                "id": jti,
                "changed": changed,
                "action": action,
                "sockets_cut": count,
            }

        return await self._on_kernel(revoke)

    async def _policy_check(self, params: Params, _peer: Peer) -> Result:
        agent = self._agent

        def check() -> Result:
            try:
                texts = _merged(agent, params["files"])
                compiled = agent.keeper.compile(texts, agent.licenses())
            except PolicyError as error:
                raise _bad_policy(error) from error
            return {"schema_version": 1, **reports.amounts(compiled), "warnings": []}

        return await self._on_kernel(check)

    async def _policy_apply(self, params: Params, _peer: Peer) -> Result:
        agent = self._agent

        def apply() -> Result:
            agent.licensing.load()
            agent.write_licenses()
            try:
                texts = _merged(agent, params["files"])
                compiled = agent.keeper.compile(texts, agent.licenses())
            except PolicyError as error:
                if not params["files"]:  # so will the next start find them
                    agent.policy_problem = str(error)
                raise _bad_policy(error) from error
            changed = agent.compiled is None or agent.compiled.tables != compiled.tables
            if changed:
                try:
                    agent.apply(compiled)
                except BpfError as error:  # a table is full: nothing was switched
                    raise LocalError(
                        ErrorCode.REFUSED,
                        f"the policy does not fit the kernel's tables: {error}",
                        "the last policy stays in force; docs/reference/limits.md has the sizes",
                    ) from error
            else:
                agent.take_over(compiled)
            agent.keeper.install(params["files"])
            agent.policy_problem = ""
            return {
                "schema_version": 1,
                "changed": changed,
                "generation": agent.kernel.control.generation,
                **reports.amounts(compiled),
            }

        return await self._on_kernel(apply)

    async def _break_glass(self, params: Params, peer: Peer) -> Result:
        agent, by = self._agent, f"uid {peer.uid}"
        if params["end"]:
            changed = await self._on_kernel(lambda: agent.end_glass(by))
            return {"schema_version": 1, "changed": changed, "break_glass": None}
        if not params["reason"].strip():
            raise LocalError(ErrorCode.INVALID_PARAMS, "break_glass: a reason is needed")
        glass = await self._on_kernel(
            lambda: agent.open_glass(params["for_s"], params["reason"], by)
        )
        return {
            "schema_version": 1,
            "changed": True,
            "break_glass": {key: glass[key] for key in ("until", "reason", "by")},
        }

    async def _run_prepare(self, params: Params, _peer: Peer) -> Result:
        agent, jti = self._agent, params["license"]

        def prepare() -> Result:
            if jti not in agent.licensing.held:
                raise LocalError(
                    ErrorCode.NOT_FOUND,
                    f"no license {jti!r} is on this host",
                    "list them: licagent license list",
                )
            run_scopes.tidy(agent.tree.root)
            path = f"{run_cgroup(jti)}/{params['pid']}"
            if agent.keeper.allow_run(jti):
                agent.renew_policy()
            agent.tree.create(path)
            return {"schema_version": 1, "cgroup": str(agent.tree.directory(path))}

        return await self._on_kernel(prepare)

    async def enroll(self, params: Params, peer: Peer) -> Result:
        """Join a control plane as `params` say; LocalError where it did not happen."""
        async with self._enrolling:  # two at once would leave the key of one with the other's name
            return await enrolling.answer(self._agent, params, peer)

    async def _leave(self, params: Params, peer: Peer) -> Result:
        async with self._enrolling:
            return await leaving.answer(self._agent, params, peer)

    async def _detach(self, _params: Params, _peer: Peer) -> Result:
        agent = self._agent
        lost = await agent.metering.flush()
        rows = await self._on_kernel(lambda: agent.detach(usage_lost=lost))
        await self._on_kernel(lambda: run_scopes.remove(agent.tree.root))
        # The answer must leave first; then the daemon ends.
        asyncio.get_running_loop().call_later(0.2, self._stop.set)
        return {
            "schema_version": 1,
            "changed": bool(rows),
            "detached": rows,
            "usage_lost": lost or None,
        }


def _merged(agent: Agent, files: tuple[tuple[str, str], ...]) -> tuple[tuple[str, str], ...]:
    """The installed files, with those given in place of their namesakes."""
    if len(dict(files)) != len(files):
        raise LocalError(
            ErrorCode.INVALID_PARAMS,
            "two of the files have one name",
            "policy.d has room for one of each name: rename one",
        )
    for name, _text in files:
        if "/" in name or name.startswith(".") or not name.endswith(".toml"):
            raise LocalError(
                ErrorCode.INVALID_PARAMS, f"{name!r} is no name of a policy file", "use NAME.toml"
            )
    merged = {**dict(agent.keeper.installed()), **dict(files)}
    return tuple(sorted(merged.items()))


def _revoked(agent: Agent, params: Params, by: str) -> tuple[str, str, str, bool]:
    """License, reason, what was done in a word, and whether it is news; on record, not yet in
    the kernel."""
    if params["statement"]:
        agent.licensing.load_trust()
        found, changed = agent.licensing.take_statement(params["statement"].encode(), by)
        words = {"revoke": "revoked", "suspend": "suspended"}
        return found.license, found.reason, words.get(found.action.value, "reinstated"), changed
    jti, reason = params["id"], params["reason"]
    if jti not in agent.licensing.held and not agent.records.newest_generation(jti):
        raise LocalError(
            ErrorCode.NOT_FOUND,
            f"no license {jti!r} is known here",
            "list them: licagent license list",
        )
    return jti, reason, "revoked", agent.licensing.revoke_here(jti, reason, by)


def _refused(error: TokenError | StoreError) -> LocalError:
    if isinstance(error, TokenError):
        return LocalError(
            ErrorCode.REFUSED,
            f"{error.detail} [{error.refusal.value}]",
            str(error.next_step),
            {"refusal": error.refusal.value},
        )
    refusal = error.refusal if isinstance(error, LicenseNotAccepted) else type(error).__name__
    return LocalError(ErrorCode.REFUSED, f"{error} [{refusal}]", "", {"refusal": refusal})


def _bad_policy(error: PolicyError) -> LocalError:
    problems = [
        {
            "file": problem.file,
            "line": problem.line,
            "key": problem.key,
            "message": problem.message,
            "suggestion": problem.suggestion,
        }
        for problem in error.problems
    ]
    return LocalError(
        ErrorCode.REFUSED,
        f"the policy is refused: {len(problems)} problem{'s' if len(problems) != 1 else ''}",
        "nothing was changed; mend them all and apply again",
        {"problems": problems},
    )
