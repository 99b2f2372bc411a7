# SPDX-License-Identifier: Apache-2.0
"""An agent, its real command line, a server to reach and programs that reach for it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, TypeVar

from tests.kernel.harness.agent import AgentUnderTest
from tests.kernel.harness.programs import PYTHON, REPOSITORY, Program, run_in_cgroup, start

COMMAND: Final = Path(sys.executable).with_name("licagent")
CLIENT: Final = (*PYTHON, str(REPOSITORY / "tests/system/harness/client.py"))
HOLDER: Final = 61234
"""The uid that the license's binding names; nobody's on this machine."""
STRANGER: Final = 61235
WAIT_S: Final = 90.0
PATIENT: Final = {
    *("break-glass", "config", "detach", "doctor", "events", "explain", "license", "policy"),
    *("run", "status", "top"),
}
"""Commands that wait some seconds for an answer: here for longer, as others want processors too."""

Value = TypeVar("Value")


def eventually(question: Callable[[], Value], what: str = "", *, within_s: float = WAIT_S) -> Value:
    """The first answer that is true; AssertionError after a generous while."""
    limit = time.monotonic() + within_s
    while not (answer := question()):
        assert time.monotonic() < limit, f"not within {within_s:.0f} s: {what or question}"
        time.sleep(0.05)
    return answer


@dataclass(frozen=True, slots=True)
class Result:
    """How a command ended."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        """Standard output as one JSON object with its version."""
        found: dict[str, Any] = json.loads(self.out)
        assert found["schema_version"] == 1
        return found

    @property
    def lines(self) -> list[dict[str, Any]]:
        """Standard output as JSON lines."""
        return [json.loads(line) for line in self.out.splitlines()]


class Server:
    """Accepts connections on a loopback port and sends back what it gets."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=512)
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                made, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._echo, args=(made,), daemon=True).start()

    @staticmethod
    def _echo(made: socket.socket) -> None:
        with made, suppress(OSError):
            while data := made.recv(65536):
                if data.startswith(b"GET "):
                    made.sendall(b"HTTP/1.0 200 OK\r\nContent-Length: 8\r\n\r\nlicensed")
                    return
                made.sendall(data)

    def close(self) -> None:
        """Accept no more."""
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


class Scene:
    """One agent with resources "db" (the server) and "other", and a license for `HOLDER`."""

    def __init__(self, agent: AgentUnderTest) -> None:
        self.agent = agent
        self.server = Server()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.server.close()
        self.agent.close()

    # --- policy

    def policy_text(self, *licenses: str, name: str = "db", port: int | None = None) -> str:
        """A resource for the server, and a binding of `HOLDER` for each license."""
        where = f'{{ cidr = "127.0.0.1/32", ports = ["{port or self.server.port}"] }}'
        text = (
            f'[[resource]]\nname = "{name}"\nkind = "network"\nmode = "enforce"\n'
            f"destinations = [{where}]\n"
        )
        for jti in licenses:
            text += f'[[binding]]\nlicense = "{jti}"\nselectors = ["unix:uid:{HOLDER}"]\n'
        return text

    def ready(self, jti: str = "acme", **fields: Any) -> None:
        """Issue a license for "db" and put the policy in force."""
        self.agent.issue(jti, ["db"], **fields)
        self.agent.policy(self.policy_text(jti))

    # --- asking

    def cli(self, *words: str | Path, stdin: str | None = None, timeout_s: float = 60.0) -> Result:
        """Run `licagent` to its end."""
        spoken = [str(COMMAND), *map(str, words)]
        if PATIENT.intersection(words[:1]) and not {"--timeout", "--help"}.intersection(words):
            place = 2 if words[0] == "run" else len(spoken)  # a program's words follow that one
            spoken[place:place] = "--timeout", "20"
        done = subprocess.run(
            spoken,
            env=self.agent.environment,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        assert "Traceback" not in done.stderr, done.stderr
        return Result(done.returncode, done.stdout, done.stderr)

    def cli_as(self, uid: int, *words: str) -> Result:
        """Run `licagent` as another user, with the settings that name this agent's socket."""
        variables = [
            f"LICAGENT_RUNTIME_DIR={self.agent.folder / 'run'}",
            f"PYTHONPATH={os.environ.get('PYTHONPATH', '')}",
        ]
        done = subprocess.run(
            [
                *("setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups"),
                *("env", *variables, str(COMMAND), *words),
            ],
            cwd="/",
            capture_output=True,
            text=True,
            check=False,
        )
        return Result(done.returncode, done.stdout, done.stderr)

    def ask(self, *words: str | Path) -> dict[str, Any]:
        """The JSON of a command that must go well."""
        result = self.cli(*words, "--json")
        assert result.status == 0, result
        return result.json

    def file(self, name: str, text: str | bytes) -> Path:
        """A file of the test's own."""
        path = self.agent.folder / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    def reload(self) -> None:
        """Let the daemon read licenses and policy again (SIGHUP), and wait until it did."""
        marker = self.agent.config / "licenses" / "zz-marker.lic"
        marker.write_text("not a license")
        for is_there in (True, False):
            assert self.agent.process is not None
            self.agent.process.send_signal(signal.SIGHUP)
            eventually(
                lambda wanted=is_there: (marker.name in self.refused()) == wanted, "it read again"
            )
            if is_there:
                marker.unlink()

    def refused(self) -> dict[str, dict[str, Any]]:
        """Refused license files by name, as status has them."""
        rows = self.cli("status", "--json").json["refused_files"]
        return {row["file"]: row for row in rows}

    def state_of(self, jti: str) -> str | None:
        """A license's state, None if there is none."""
        rows = self.cli("license", "list", "--json").json["licenses"]
        return next((row["state"] for row in rows if row["id"] == jti), None)

    # --- programs

    def connect(self, uid: int = HOLDER, port: int | None = None) -> str:
        """What connecting to the server ends with: "ok", or the name of the errno."""
        argv = [*CLIENT, "once", str(port or self.server.port)]
        done = run_in_cgroup(self.agent.cgroup, argv, uid=uid)
        assert done.returncode == 0, done
        return str(json.loads(done.stdout)["outcome"])

    @contextmanager
    def program(
        self, uid: int = HOLDER, cgroup: Path | None = None
    ) -> Iterator[tuple[Program, dict[str, Any]]]:
        """A program that tried to connect and goes on living; its report."""
        argv = [*CLIENT, "stay", str(self.server.port)]
        with start(cgroup or self.agent.cgroup, argv, uid=uid) as program:
            report = program.line()
            assert report is not None
            yield program, report

    def curl(self, *prefix: str, uid: int | None = None) -> subprocess.CompletedProcess[bytes]:
        """Run curl against the server, by the command `prefix` if there is one."""
        url = f"http://127.0.0.1:{self.server.port}/"
        where = f"LICAGENT_CONFIG={self.agent.config / 'agent.toml'}"
        argv = ["env", where, *prefix, "curl", "-sS", "--max-time", "10", url]
        return run_in_cgroup(self.agent.cgroup, argv, uid=uid, limit_s=WAIT_S)
