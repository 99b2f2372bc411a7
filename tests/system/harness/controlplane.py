# SPDX-License-Identifier: Apache-2.0
"""A real control plane for tests: `licplane serve` as a child process, on ports of its own."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

from tests.kernel.harness.agent import AgentUnderTest
from tests.kernel.harness.probes import free_port
from tests.system.harness import warm
from tests.system.harness.scene import HOLDER, Result, Scene, eventually

if TYPE_CHECKING:
    from licplane.service.plane import Plane

COMMAND: Final = Path(sys.executable).with_name("licplane")
START_S: Final = 120.0
SERVES: Final = b"Serving hosts and administrators on "
"""The server says so when each worker accepts connections."""
PASSPHRASE: Final = "test words"
LABELS: Final = {"org": "acme"}
_given: Final[set[int]] = set()
"""Ports of ours: two servers that share one by SO_REUSEPORT would both get on."""


def address(ports: int = 1) -> str:
    """A loopback address nobody listens on, nor on the next ports; no port is given twice."""
    while True:
        first = free_port(socket.SOCK_STREAM)
        row = range(first, first + ports)
        if _given.isdisjoint(row) and all(map(_is_free, row[1:])):
            _given.update(row)
            return f"127.0.0.1:{first}"


def _is_free(port: int) -> bool:
    with socket.socket() as probe, contextlib.suppress(OSError, OverflowError):
        probe.bind(("127.0.0.1", port))
        return True
    return False


@dataclass(frozen=True, slots=True)
class Document:
    """A resource, binding or license as its author writes it."""

    kind: str
    table: dict[str, Any]

    @property
    def name(self) -> str:
        """By which it is known."""
        return str(self.table["id" if self.kind == "license" else "name"])

    def but(self, **fields: Any) -> Document:
        """The same with other values; None takes a key out."""
        table = {**self.table, **fields}
        return Document(self.kind, {k: v for k, v in table.items() if v is not None})


def binding(license: str = "acme-db", uid: int = HOLDER, **fields: Any) -> Document:
    """A binding of a user to a license."""
    table = {"license": license, "selectors": [f"unix:uid:{uid}"]}
    return Document("binding", {"name": f"{license}-{uid}", **table, **fields})


def license(name: str = "acme-db", resource: str = "db", **fields: Any) -> Document:
    """A license for a resource, of an hour."""
    end = datetime.now(UTC) + timedelta(hours=1)
    table = {
        "subject": "Acme Ltd",
        "scope": {"org": "acme"},
        "entitlements": [{"resource": resource}],
        "expires": end.strftime("%Y-%m-%dT%H:%M:%SZ"),
    }
    return Document("license", {"id": name, **table, **fields})


class ControlPlane:
    """One control plane: its state folder (or database), its server, its command line.

    Another one made with `replica_of` serves the same state.
    """

    def __init__(
        self,
        *options: str,
        database: str = "",
        replica_of: ControlPlane | None = None,
    ) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="licplane-test-"))
        self.state = replica_of.state if replica_of else self.folder / "plane"
        self.database = database or (replica_of.database if replica_of else "")
        self.options = options
        self.control = address()
        self.public = address()
        self.metrics = address(_workers(options))
        self.process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    # --- life

    @property
    def environment(self) -> dict[str, str]:
        """The environment of its commands."""
        kept = {
            key: value
            for key, value in os.environ.items()
            if not key.startswith(("LICAGENT_", "LICPLANE_")) and not key.endswith("_proxy")
        }
        made = {**kept, "LICPLANE_STATE": str(self.state), "LICPLANE_PASSPHRASE": PASSPHRASE}
        return {**made, "LICPLANE_DATABASE": self.database} if self.database else made

    @property
    def is_of_another_revision(self) -> bool:
        """Whether its modules are not those that the tests import."""
        return self.environment.get("PYTHONPATH") != os.environ.get("PYTHONPATH")

    @property
    def addresses(self) -> tuple[str, ...]:
        """The options that say where to listen."""
        return (
            *("--listen", self.control),
            *("--public-listen", self.public),
            *("--metrics-listen", self.metrics),
        )

    def start(self, *options: str) -> None:
        """Start the server and wait until it serves: all of its workers, if there are several.

        Its own word for it: a socket that takes connections is one worker's, or nobody's yet.
        """
        path = self.folder / "server.log"
        with path.open("ab") as log:
            before = log.tell()
            self.process = subprocess.Popen(
                [str(COMMAND), "serve", *self.addresses, *self.options, *options],
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # its workers end with it, whatever happens
            )
        end = time.monotonic() + START_S
        while SERVES not in path.read_bytes()[before:]:
            assert self.process.poll() is None, f"the server ended: {self.log()}"
            assert time.monotonic() < end, f"the server does not answer: {self.log()}"
            time.sleep(0.05)

    def log(self) -> str:
        """The end of the server's log."""
        path = self.folder / "server.log"
        return path.read_text(errors="replace")[-6000:] if path.exists() else ""

    def workers_metrics(self, workers: int) -> list[str]:
        """Where each of several workers has its metrics: from the first one's port on."""
        host, _, port = self.metrics.rpartition(":")
        return [f"{host}:{int(port) + number}" for number in range(workers)]

    @property
    def pid(self) -> int:
        """The server's process id."""
        assert self.process is not None
        return self.process.pid

    def kill(self) -> None:
        """kill -9, its workers too."""
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None

    def stop(self) -> int:
        """SIGTERM; the exit status."""
        if self.process is None:
            return 0
        self.process.terminate()
        try:
            status = self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.kill()
            raise
        self.process = None
        return status

    def close(self) -> None:
        """Stop everything and leave nothing behind. Safe after any failure."""
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    # --- asking

    def cli(self, *words: str | Path, stdin: str | None = None, timeout_s: float = 60.0) -> Result:
        """Run `licplane` on the state to its end."""
        spoken = tuple(map(str, words))
        if self.is_of_another_revision:
            done = subprocess.run(
                [str(COMMAND), *spoken],
                env=self.environment,
                cwd=self.folder,
                input=stdin,
                capture_output=True,
                text=True,
                timeout=timeout_s,
                check=False,
            )
        else:
            where = {"environment": self.environment, "folder": self.folder}
            done = warm.licplane(*spoken, **where, stdin=stdin, timeout_s=timeout_s)
        assert "Traceback" not in done.stderr, done.stderr
        return Result(done.returncode, done.stdout, done.stderr)

    def ask(self, *words: str | Path) -> dict[str, Any]:
        """The JSON of a command that must go well."""
        result = self.cli(*words, "--json")
        assert result.status == 0, (words, result)
        return result.json

    def do(self, *words: str | Path) -> str:
        """Standard output of a command that must go well."""
        result = self.cli(*words)
        assert result.status == 0, (words, result)
        return result.out

    def make_keys(self) -> None:
        """The issuer's key, and the authority that the first start would make."""
        self.do("keys", "create", "--issuer", "acme")
        if not self.is_of_another_revision:
            done = warm.found(environment=self.environment, folder=self.folder, timeout_s=60)
            assert done.returncode == 0, done.stderr

    def join(self, *, uses: int = 1, ttl: str = "1h", **labels: str) -> str:
        """A join token."""
        chosen = [f"--label={name}={value}" for name, value in {**LABELS, **labels}.items()]
        found = self.ask("token", "create", *chosen, "--uses", str(uses), "--expires", f"+{ttl}")
        return str(found["join"])

    def apply(self, *documents: Document, options: tuple[str, ...] = ()) -> dict[str, Any]:
        """Put documents in force."""
        return self.ask("apply", "-f", self.folder_of(*documents), *options)

    def folder_of(self, *documents: Document) -> Path:
        """A folder with these documents, as `licplane apply -f` takes it."""
        folder = Path(tempfile.mkdtemp(dir=self.folder, prefix="documents-"))
        for number, document in enumerate(documents):
            text = f"[[{document.kind}]]\n{toml_lines(document.table)}"
            (folder / f"{number:02}.toml").write_text(text)
        return folder

    def hosts(self) -> dict[str, dict[str, Any]]:
        """Every host by its id."""
        return {row["host_id"]: row for row in self.ask("host", "list")["hosts"]}

    def host(self, host: str) -> dict[str, Any]:
        """One host, as `licplane host show` has it."""
        return dict(self.ask("host", "show", host)["host"])

    @contextmanager
    def opened(self, **settings: Any) -> Iterator[Plane]:
        """The service itself on this state, as `licplane` uses it, with settings of a test."""
        from licplane.cli.local import server_store
        from licplane.cli.place import Place
        from licplane.issuer.keyring import open_keys
        from licplane.service.plane import Plane
        from licplane.service.requests import PlaneSettings

        place = Place(database=self.database) if self.database else Place(state=self.state)
        with server_store(place) as store:
            with store.reading() as reader:
                keys = open_keys(reader, lambda: PASSPHRASE)
            addresses = {"public_address": self.public, "control_address": self.control}
            yield Plane(store, keys, PlaneSettings(**{**addresses, **settings}))

    @contextmanager
    def rows(self) -> Iterator[sqlite3.Connection]:
        """The database behind licplane's back."""
        found = sqlite3.connect(self.state / "licplane.db", timeout=30)
        try:
            yield found
            found.commit()
        finally:
            found.close()

    def metric(self, name: str, **labels: str) -> float:
        """The sum of a metric's samples with these labels, of a server that is up.

        Asked again while there is no answer: others want processors, too.
        """
        total = 0.0
        for line in eventually(self._metrics_page, "metrics").splitlines():
            if line.startswith((f"{name} ", f"{name}{{")) and all(
                f'{key}="{value}"' in line for key, value in labels.items()
            ):
                total += float(line.rsplit(" ", 1)[1])
        return total

    def _metrics_page(self) -> str:
        import urllib.request

        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        where = f"http://{self.metrics}/metrics"
        with contextlib.suppress(OSError), opener.open(where, timeout=10) as answer:
            return str(answer.read().decode())
        return ""


def _workers(options: tuple[str, ...]) -> int:
    return int(options[options.index("--workers") + 1]) if "--workers" in options else 1


def takes_connections(where: str) -> bool:
    """Whether somebody listens there."""
    host, _, port = where.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except OSError:
        return False
    return True


def toml_lines(table: dict[str, Any]) -> str:
    """A table's keys, values in the form that JSON and TOML share."""
    return "".join(f"{name} = {toml_value(value)}\n" for name, value in table.items())


def toml_value(value: Any) -> str:
    """A value of TOML."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{k} = {toml_value(v)}" for k, v in value.items()) + " }"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(toml_value, value)) + "]"
    return json.dumps(value)


class Host(Scene):
    """A real agent that gets licenses and policy from a control plane, and a server to reach."""

    def __init__(self, plane: ControlPlane, agent: AgentUnderTest | None = None) -> None:
        super().__init__(agent or AgentUnderTest())
        self.plane = plane

    def enroll(self, join: str | None = None, *options: str) -> dict[str, Any]:
        """Join the control plane with the real command; the daemon runs."""
        return self.ask("enroll", *options, join or self.plane.join())

    @property
    def control(self) -> dict[str, Any]:
        """What status says of the link: without a process, for it is asked often."""
        return dict(self.agent.call("status")["control"])

    def told(self, code: str) -> bool:
        """Whether the control plane said that, last of all."""
        notices = self.control["notices"]
        return bool(notices) and notices[-1]["code"] == code

    @property
    def id(self) -> str:
        """The host's id."""
        return str(self.control["host_id"])

    # --- documents

    def resource(self, name: str = "db", **fields: Any) -> Document:
        """The server as a resource."""
        where = {"cidr": "127.0.0.1/32", "ports": [str(self.server.port)], "protocol": "tcp"}
        table = {"name": name, "kind": "network", "mode": "enforce", "destinations": [where]}
        return Document("resource", {**table, **fields})

    def licensed(self) -> None:
        """Resource, binding and license for `HOLDER`, in the kernel."""
        self.plane.apply(self.resource(), binding(), license())
        self.closed()
        self.until("ok")

    def closed(self) -> None:
        """Wait until there is a policy: before that anybody may connect."""
        eventually(lambda: self.agent.call("status")["policy"]["resources"], "a resource")

    def until(self, outcome: str, uid: int = HOLDER) -> None:
        """Wait until connecting ends so."""
        eventually(lambda: self.connect(uid) == outcome, f"{outcome} for {uid}: {self.state()}")

    def state(self) -> str:
        """For a test that failed: what both sides say."""
        return f"{self.cli('status').out}\n{self.agent.log()}\n{self.plane.log()}"
