# SPDX-License-Identifier: Apache-2.0
"""A PostgreSQL server of the tests' own, and databases in it.

A test module asks for the fixtures by `pytest_plugins = ["tests.support.postgres"]`: `postgres`
is one server for the session, on a UNIX socket and a loopback port in a temporary folder;
`postgres_url` is a new, empty database in it for one test. Import names from here for type
checking only: pytest refuses a plugin that was imported before it.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import secrets
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest
from psycopg import sql
from tests.support.ports import free_port

_PROGRAMS = Path("/usr/lib/postgresql")
_START_S = 60
_PORTS = range(10_240, 21_000)
"""Below the ports that the kernel hands out by itself, and those of tests.kernel.harness.recorder:
this one is to be free again after a restart."""
_TRIES = 20


@dataclass(frozen=True, slots=True)
class Postgres:
    """A running server."""

    folder: Path
    port: int
    programs: Path

    def url(self, database: str) -> str:
        """SQLAlchemy's URL of a database, over the loopback port."""
        return f"postgresql+psycopg://postgres@127.0.0.1:{self.port}/{database}"

    def run(self, statement: sql.Composable) -> None:
        """Run one statement as the superuser, outside a transaction."""
        with psycopg.connect(
            f"postgresql://postgres@127.0.0.1:{self.port}/postgres", autocommit=True
        ) as connection:
            connection.execute(statement)

    @contextlib.contextmanager
    def database(self, template: str = "template1") -> Iterator[str]:
        """The URL of a new database, which is dropped at the end, whoever is connected to it.

        It is a copy of `template`: the name of a database that nobody is connected to.
        """
        name = f"t_{secrets.token_hex(8)}"
        create = sql.SQL("CREATE DATABASE {} TEMPLATE {}")
        self.run(create.format(sql.Identifier(name), sql.Identifier(template)))
        try:
            yield self.url(name)
        finally:
            self.run(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))

    def restart(self) -> None:
        """Stop the server as a crash would (connections are cut) and start it again."""
        self._control("restart", "-m", "immediate")

    def start(self) -> None:
        """Start it, and wait until it answers."""
        self._control("start")

    def stop(self) -> None:
        """Stop it, and whoever is connected."""
        self._control("stop", "-m", "immediate")

    def _control(self, *what: str) -> None:
        log, data = self.folder / "log", self.folder / "data"
        words = [self.programs / "pg_ctl", "-D", data, "-l", log, "-w", "-t", str(_START_S), *what]
        done = _run(words, self.folder)
        if done.returncode:
            said = log.read_text(errors="replace")[-2000:] if log.exists() else ""
            raise RuntimeError(f"pg_ctl {what[0]}: {done.stdout}{said}")


@contextlib.contextmanager
def running_postgres() -> Iterator[Postgres]:
    """A server that lives as long as the block."""
    programs = _newest_programs()
    folder = Path(tempfile.mkdtemp(prefix="licplane-pg-"))
    try:
        if os.geteuid() == 0:
            user = pwd.getpwnam("postgres")
            os.chown(folder, user.pw_uid, user.pw_gid)
        _create(folder, programs)
        server = started(folder, programs)
        try:
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def started(folder: Path, programs: Path) -> Postgres:
    """A server on `folder`/data, started for the first time, on a port that nobody has."""
    for _ in range(_TRIES):
        server = Postgres(folder, free_port(_PORTS), programs)
        listen(server)
        try:
            server.start()
        except RuntimeError as error:
            with contextlib.suppress(RuntimeError):  # it may be late only
                server.stop()
            # Somebody may have taken it since it was drawn.
            if "Address already in use" not in str(error):
                raise
            (folder / "log").unlink(missing_ok=True)
        else:
            return server
    raise RuntimeError(f"somebody else took each of {_TRIES} ports")


def listen(server: Postgres) -> None:
    """Have it listen on its port when it starts."""
    with (server.folder / "data" / "postgresql.conf").open("a") as file:
        file.write(f"port = {server.port}\n")  # the last one counts


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """One server for the whole session."""
    with running_postgres() as server:
        yield server


@pytest.fixture
def postgres_url(postgres: Postgres) -> Iterator[str]:
    """An empty database of the test's own."""
    with postgres.database() as url:
        yield url


def _create(folder: Path, programs: Path) -> None:
    data = folder / "data"
    # A locale that is not C: what sorts by it by mistake is found.
    words = [programs / "initdb", "-D", data, "-U", "postgres", "-A", "trust", "-E", "UTF8"]
    icu = ["--locale-provider=icu", "--icu-locale=en-US", "--locale=C.UTF-8"]
    done = _run([*words, *icu, "--no-sync"], folder)
    if done.returncode:
        raise RuntimeError(f"initdb: {done.stdout}")
    settings = f"""
listen_addresses = '127.0.0.1'
unix_socket_directories = '{folder}'
fsync = off
max_connections = 100
shared_buffers = 32MB
"""
    with (data / "postgresql.conf").open("a") as file:
        file.write(settings)


def _run(words: list[object], folder: Path) -> subprocess.CompletedProcess[str]:
    """As the user postgres: the server refuses to run as root."""
    command = [str(word) for word in words]
    if os.geteuid() == 0:
        command = ["runuser", "-u", "postgres", "--", *command]
    # Its output goes to a file: the server would inherit a pipe, and hold it open.
    with tempfile.TemporaryFile("w+") as output:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd=folder, check=False
        )
        output.seek(0)
        return subprocess.CompletedProcess(command, done.returncode, output.read())


def _newest_programs() -> Path:
    found = [path for path in _PROGRAMS.glob("*/bin") if (path / "initdb").exists()]
    if not found:
        pytest.fail("no PostgreSQL in /usr/lib/postgresql: apt-get install postgresql")
    return max(found, key=lambda path: float(path.parent.name))
