# SPDX-License-Identifier: Apache-2.0
"""A daemon that is only a local server with canned answers, and ways to run the command."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from licagent.cli import session
from licagent.cli.main import cli
from licagent.local.client import LocalClient
from licagent.local.errors import LocalError
from licagent.local.methods import METHODS
from licagent.local.peer import Peer
from licagent.local.server import LocalServer

PATIENCE_S = 120.0
"""What commands wait for a daemon by themselves: this one's thread may not run for seconds."""

PATIENT = f"""
from licagent.cli import session
given = session.with_session
session.with_session = lambda timeout_s=0.0: given({PATIENCE_S})
from licagent.cli.main import main
main()
"""

EXAMPLES = Path(__file__).parents[3] / "docs" / "reference" / "examples"


class FakeDaemon:
    """Answers every method with its example; `answers` and `items` replace them."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.answers: dict[str, dict[str, Any] | LocalError] = {}
        self.items: list[dict[str, Any]] = [example("events")]
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self._started = threading.Event()
        self._stop: Callable[[], None] = lambda: None
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()))

    def start(self) -> None:
        self._thread.start()
        assert self._started.wait(60)

    def stop(self) -> None:
        if not self._thread.is_alive():
            return
        self._stop()
        self._thread.join(60)
        assert not self._thread.is_alive()

    async def _serve(self) -> None:
        server = LocalServer(self.directory / "licagent.sock", readers_gid=None)
        for method in METHODS.values():
            if not method.stream:
                server.method(method.name, self._handler(method.name))
        server.stream("events", self._events)
        await server.start()
        ended = asyncio.Event()
        loop = asyncio.get_running_loop()
        self._stop = lambda: loop.call_soon_threadsafe(ended.set)
        self._started.set()
        await ended.wait()
        await server.close()

    def _handler(self, name: str) -> Any:
        async def answer(params: Mapping[str, Any], peer: Peer) -> Mapping[str, object]:
            self.calls.append((name, dict(params)))
            found = self.answers.get(name)
            if isinstance(found, LocalError):
                raise found
            if found is None:
                found = example(name.replace(".", "-").replace("_", "-"))
            return {key: value for key, value in found.items() if key != "schema_version"}

        return answer

    async def _events(
        self, params: Mapping[str, Any], peer: Peer
    ) -> AsyncIterator[dict[str, object]]:
        self.calls.append(("events", dict(params)))
        for item in self.items:
            yield item
        if params["follow"]:
            await asyncio.Event().wait()


def example(name: str) -> dict[str, Any]:
    return json.loads((EXAMPLES / f"{name}.json").read_text(encoding="utf-8"))


@pytest.fixture
def examples() -> Callable[[str], dict[str, Any]]:
    return example


@pytest.fixture(autouse=True)
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("LICAGENT_") and name != "LICAGENT_TEST_TALLY":
            monkeypatch.delenv(name)
    settings = tmp_path / "agent.toml"
    lines = [f'{key}_dir = "{tmp_path / key}"\n' for key in ("config", "state", "runtime", "bpffs")]
    settings.write_text("".join(lines), encoding="utf-8")
    (tmp_path / "runtime").mkdir()
    monkeypatch.setenv("LICAGENT_CONFIG", str(settings))


@pytest.fixture
def daemon(tmp_path: Path, environment: None) -> Iterator[FakeDaemon]:
    fake = FakeDaemon(tmp_path / "runtime")
    fake.start()
    yield fake
    fake.stop()


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """The command in this process, its output captured (no terminal). Its --timeout is not kept."""
    monkeypatch.setattr(session, "LocalClient", lambda path, _: LocalClient(path, PATIENCE_S))

    def invoke(*arguments: str, stdin: str | bytes | None = None) -> Result:
        return CliRunner().invoke(cli, list(arguments), input=stdin, catch_exceptions=False)

    return invoke


@pytest.fixture
def command() -> list[str]:
    """The command as a process of its own. What --timeout says is kept."""
    return [sys.executable, "-c", PATIENT]


@pytest.fixture
def spawn(command: list[str]) -> Callable[..., subprocess.CompletedProcess[str]]:
    def start(*arguments: str, **more: Any) -> subprocess.CompletedProcess[str]:
        line = [*command, *arguments]
        return subprocess.run(
            line, capture_output=True, text=True, timeout=150, check=False, **more
        )

    return start
