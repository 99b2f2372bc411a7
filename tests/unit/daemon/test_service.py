# SPDX-License-Identifier: Apache-2.0
"""Clients that only ask, many at once, and what does not wait for them."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar

import pytest

from licagent.daemon import service as service_module
from licagent.daemon.service import Service
from licagent.daemon.shadow import report as shadow_report
from licagent.local.errors import ErrorCode, LocalError
from licagent.store.eventlog import EventLog

T = TypeVar("T")

NOBODY: Any = None
NOW = {"follow": False, "limit": 5, "since": None, "verdict": "deny"} | dict.fromkeys(
    ("license", "resource", "pid")
)


class Agent(SimpleNamespace):
    """As much of an agent as these questions need."""

    def __init__(self, **parts: Any) -> None:
        super().__init__(config=SimpleNamespace(usage_dir=Path("/nowhere")), **parts)


async def on_kernel(action: Callable[[], T]) -> T:
    return action()


def service(agent: Any) -> Service:
    return Service(agent, on_kernel, NOBODY, asyncio.Event(), NOBODY)


@contextlib.asynccontextmanager
async def narrow_pool() -> AsyncIterator[None]:
    """The pool that the control link uses as well has one thread."""
    with ThreadPoolExecutor(max_workers=1) as pool:
        asyncio.get_running_loop().set_default_executor(pool)
        yield


async def pool_is_free() -> None:
    async with asyncio.timeout(10):
        await asyncio.to_thread(lambda: None)


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not holds():  # noqa: ASYNC110 - what threads do sets no event of the loop
            await asyncio.sleep(0.001)


async def test_the_ledger_is_checked_once_for_all_who_ask_and_holds_nobody_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    runs: list[Path] = []
    go = threading.Event()

    def verified(folder: Path) -> dict[str, Any]:
        runs.append(folder)
        assert go.wait(15)
        return {"good": True, "segments": len(runs)}

    monkeypatch.setattr(service_module, "verified", verified)
    asked = service(Agent())
    async with narrow_pool():
        asking = [asyncio.ensure_future(asked._usage_verify({}, NOBODY)) for _ in range(8)]
        try:
            await until(lambda: len(runs) == 1)
            await pool_is_free()
            # Whoever asked first may leave.
            asking[0].cancel()
            await asyncio.gather(asking[0], return_exceptions=True)
        finally:
            go.set()
        found = await asyncio.gather(*asking[1:])
        assert found == [{"schema_version": 1, "good": True, "segments": 1}] * 7
        assert (await asked._usage_verify({}, NOBODY))["segments"] == 2


class InForce:
    def __init__(self, name: str) -> None:
        self.name = name


class Policies:
    """A policy in force whose answer takes until `go`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.compiled = InForce("old")
        self.go = threading.Event()
        self.threads: list[threading.Thread] = []
        monkeypatch.setattr(service_module.policy_reports, "policy_show", self._show)

    def _show(self, agent: Any) -> dict[str, Any]:
        self.threads.append(threading.current_thread())
        name = agent.policy.compiled.name
        assert self.go.wait(15)
        return {"schema_version": 1, "name": name}


async def test_a_large_policy_is_shown_beside_the_loop_and_the_pool(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    policies = Policies(monkeypatch)
    asked = service(Agent(policy=policies))
    async with narrow_pool():
        helper = threading.Timer(10, policies.go.set)  # where it runs on the loop
        helper.start()
        try:
            asking = [asyncio.ensure_future(asked._policy_show({}, NOBODY)) for _ in range(8)]
            await until(lambda: len(policies.threads) == 1)
            assert policies.threads != [threading.main_thread()]
            await pool_is_free()
        finally:
            helper.cancel()
            policies.go.set()
        assert {answer["name"] for answer in await asyncio.gather(*asking)} == {"old"}
    assert len(policies.threads) == 1


async def test_nobody_is_shown_the_policy_before_the_one_he_has_seen_come(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    policies = Policies(monkeypatch)
    asked = service(Agent(policy=policies))
    early = asyncio.ensure_future(asked._policy_show({}, NOBODY))
    await until(lambda: len(policies.threads) == 1)
    policies.compiled = InForce("new")
    late = asyncio.ensure_future(asked._policy_show({}, NOBODY))
    await asyncio.sleep(0)
    policies.go.set()
    assert ((await early)["name"], (await late)["name"]) == ("old", "new")


async def test_the_whole_log_is_judged_beside_the_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    begun, go = threading.Event(), threading.Event()

    def read(*_given: Any) -> Any:
        begun.set()
        assert go.wait(15)
        raise LocalError(ErrorCode.BUSY, "enough of it")

    async def look() -> dict[str, Any]:
        return {}

    monkeypatch.setattr(shadow_report, "_read", read)
    asked = service(
        Agent(
            policy=SimpleNamespace(compiled=InForce("old")),
            identity_keeper=lambda: SimpleNamespace(resolved_paths=dict),
        )
    )
    asked._watch = SimpleNamespace(look=look)  # type: ignore[assignment]
    async with narrow_pool():
        asking = asyncio.ensure_future(asked._shadow({"since": None, "limit": 5}, NOBODY))
        try:
            await until(begun.is_set)
            await pool_is_free()
        finally:
            go.set()
        with pytest.raises(LocalError, match="enough of it"):
            await asking


async def test_the_log_of_events_is_read_beside_the_pool(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = EventLog(tmp_path)
    for number in range(20):
        log.append({"verdict": "deny" if number % 2 else "allow", "at": "2026-01-02T03:04:05Z"})
    go = threading.Event()
    read = log.read

    begun = threading.Event()

    def slowly(after: int = 0) -> Any:
        begun.set()
        assert go.wait(15)
        return read(after)

    monkeypatch.setattr(log, "read", slowly)
    asked = service(Agent(log=log))

    async def all_events() -> list[Any]:
        return [each async for each in asked._events(NOW, NOBODY)]

    async with narrow_pool():
        asking = asyncio.ensure_future(all_events())
        try:
            await until(begun.is_set)
            await pool_is_free()
        finally:
            go.set()
        assert [each["seq"] for each in await asking] == [12, 14, 16, 18, 20]
    log.close()
