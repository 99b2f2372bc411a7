# SPDX-License-Identifier: Apache-2.0
"""Usage records from a host's ledger into PostgreSQL: how many a second, and after an outage."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import psycopg
from psycopg import sql
from tests.bench import control_peer
from tests.bench.table import Row
from tests.support.usage_agent import LICENSES, Outcome, Settings, total
from tests.system.harness.controlplane import ControlPlane, Document, license

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.bench.context import Bench
    from tests.support.postgres import Postgres

ROOT: Final = Path(__file__).resolve().parents[2]
WANTED_A_SECOND: Final = 20_000
OUTAGE_A_SECOND: Final = 200
DAY_S: Final = 86_400
LIVE_A_SECOND: Final = 200
LIVE_WITHIN_S: Final = 5.0


def run_agent(settings: Settings, timeout_s: float) -> Outcome:
    """One life of the agent's side, to its end."""
    with start_agent(settings) as process:
        out, _ = process.communicate(timeout=timeout_s)
    if process.returncode:
        raise RuntimeError(f"the agent's side failed: {process.returncode}")
    return Outcome(**json.loads(out))


@contextlib.contextmanager
def start_agent(settings: Settings) -> Iterator[subprocess.Popen[str]]:
    """The agent's side, running; killed at the end if it still does."""
    path = Path(settings.folder).with_suffix(".json")
    path.write_text(json.dumps(dataclasses.asdict(settings)))
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.support.usage_agent", str(path)],
        stdout=subprocess.PIPE,
        cwd=ROOT,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


@contextlib.contextmanager
def durable_postgres() -> Iterator[Postgres]:
    """The tests' PostgreSQL, but one that waits for the disk."""
    from tests.support.postgres import running_postgres

    with running_postgres() as server:
        for name, value in (("fsync", "on"), ("synchronous_commit", "on"), ("jit", "off")):
            server.run(
                sql.SQL("ALTER SYSTEM SET {} = {}").format(sql.Identifier(name), sql.Literal(value))
            )
        server.run(sql.SQL("SELECT pg_reload_conf()"))
        yield server


@contextlib.contextmanager
def plane_on(url: str) -> Iterator[ControlPlane]:
    """A control plane with keys on a database, that serves."""
    with ControlPlane(database=url) as found:
        found.make_keys()
        # Records here have dates of their own: none may be too old to be kept.
        found.do("usage", "retention", "--records", "0", "--hourly", "0")
        found.start()
        issue_licenses(found)
        yield found


def issue_licenses(plane: ControlPlane, *more: str) -> None:
    """To which the agent's side charges: of others, a record loses its license on the way in."""
    table = {"name": "db", "kind": "network", "destinations": [{"cidr": "192.0.2.1/32"}]}
    plane.apply(Document("resource", table), *map(license, (*LICENSES, *more)))


def enrolled(plane: ControlPlane) -> control_peer.Identity:
    """A host."""
    join = control_peer.Join.parse(plane.join())
    return asyncio.run(control_peer.enroll(join))


def stored(url: str, host_id: str) -> dict[str, Any]:
    """What the database has of a host: count of rows and sequences, sums of all meters."""
    meters = list(total(1, 1))
    columns = ", ".join(f"coalesce(sum({name}), 0) AS {name}" for name in meters)
    with psycopg.connect(url.replace("postgresql+psycopg", "postgresql")) as connection:
        cursor = connection.execute(
            "SELECT count(*) AS rows, count(*) FILTER (WHERE license != '') AS licensed,"
            f" count(DISTINCT (epoch, sequence)) AS sequences, {columns}"
            " FROM usage_records WHERE host_id = %s",
            (host_id,),
        )
        names = [one.name for one in cursor.description or ()]
        row = cursor.fetchone() or ()
    return {name: int(value) for name, value in zip(names, row, strict=True)}


def check_exactly_once(url: str, host_id: str, records: int) -> None:
    """Every record is there once, and all sums are what was used. Raises RuntimeError."""
    found = stored(url, host_id)
    licensed = found.pop("licensed")
    if licensed != records:
        raise RuntimeError(f"{licensed} of {records} records kept their license")
    wanted = {"rows": records, "sequences": records, **total(1, records)}
    if found != wanted:
        wrong = {
            name: (found[name], wanted[name]) for name in wanted if found[name] != wanted[name]
        }
        raise RuntimeError(f"not exactly once (found, wanted): {wrong}")


def _cpu_s(pid: int) -> float:
    """CPU time of a process and its threads, without its children."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def throughput(bench: Bench) -> list[Row]:
    """Records made, encoded, committed to the ledger, delivered and committed to PostgreSQL."""
    records = 100_000 if bench.quick else 400_000
    with (
        durable_postgres() as server,
        server.database() as url,
        plane_on(url) as plane,
        tempfile.TemporaryDirectory(prefix="licagent-bench-") as folder,
    ):
        identity = enrolled(plane)
        made = Settings(f"{folder}/spool", identity.write(), plane.control, records)
        run_agent(dataclasses.replace(made, records=2_000), 120)  # what is only done once
        before_s = _cpu_s(plane.pid)
        outcome = run_agent(made, 600)
        server_s = _cpu_s(plane.pid) - before_s
        check_exactly_once(url, identity.host_id, records)
    rate = (records - 2_000) / outcome.acked_s
    return [
        Row(
            "usage records through agent, gRPC and PostgreSQL",
            f"{rate:,.0f} records/s",
            f"{records:,} records, each there once and all sums equal; from the first record made"
            f" to the last acknowledged; CPU: agent {outcome.cpu_s / records * 1e6:.0f} us,"
            f" licplane {server_s / records * 1e6:.0f} us, the rest PostgreSQL (fsync on)",
            f">= {WANTED_A_SECOND:,}",
            rate >= WANTED_A_SECOND,
            key="usage-throughput",
        )
    ]


def outage(bench: Bench) -> list[Row]:
    """A day without the control plane, made at speed, then delivered beside what is used now."""
    seconds = DAY_S // 24 if bench.quick else round(3600 * bench.outage_hours)
    backlog = seconds * OUTAGE_A_SECOND
    with (
        durable_postgres() as server,
        server.database() as url,
        plane_on(url) as plane,
        tempfile.TemporaryDirectory(prefix="licagent-bench-") as folder,
    ):
        identity = enrolled(plane)
        away = Settings(f"{folder}/spool", "", "", backlog, each=OUTAGE_A_SECOND * 5)
        spooled = run_agent(away, 3600)
        live = backlog + LIVE_A_SECOND * max(10, backlog // WANTED_A_SECOND)
        back = dataclasses.replace(
            away,
            identity=identity.write(),
            control=plane.control,
            records=live,
            each=LIVE_A_SECOND,
            a_second=LIVE_A_SECOND,
            beside=True,
        )
        with start_agent(back) as process:
            drained_s, lag_s = _drained(url, identity.host_id, process, backlog)
            process.communicate(timeout=3600)
        check_exactly_once(url, identity.host_id, live)
    size_mb = spooled.spool_bytes / 1e6
    return [
        Row(
            f"spool after {seconds / 3600:g} h without the control plane, 1 host at"
            f" {OUTAGE_A_SECOND} records/s",
            f"{size_mb:,.0f} MB",
            f"{backlog:,} records, {spooled.spool_bytes / backlog:.0f} bytes each: a day is"
            f" {size_mb * DAY_S / seconds:,.0f} MB",
            key="usage-outage",
        ),
        Row(
            "drained afterwards, beside live usage",
            f"{backlog / drained_s:,.0f} records/s" if drained_s else "not in time",
            f"{drained_s:.0f} s; {LIVE_A_SECOND} live records/s meanwhile, each in the database at"
            f" most {lag_s:.1f} s after it was made; all of both there once",
            "live data within 5 s",
            bool(drained_s) and lag_s <= LIVE_WITHIN_S,
            key="usage-drain",
        ),
    ]


def _drained(
    url: str, host_id: str, process: subprocess.Popen[str], backlog: int
) -> tuple[float, float]:
    """Seconds until the backlog was stored (0: it was not), and how late live records were.

    Live records are the newest epoch's, made at a steady rate: how many of them are stored tells
    up to when. Looked at four times a second, from outside of both.
    """
    worst_s = began_s = drained_s = first_s = 0.0
    with psycopg.connect(url.replace("postgresql+psycopg", "postgresql"), autocommit=True) as one:
        while process.poll() is None and not drained_s:
            found = one.execute(
                "SELECT host_next_sequence, acked_sequence FROM usage_epochs WHERE host_id = %s",
                (host_id,),
            ).fetchall()
            now_s = time.monotonic()
            first_s = first_s or (now_s if found else 0.0)
            for following, acked in found:
                if following == backlog + 1:
                    drained_s = now_s - first_s if acked == backlog else 0.0
                elif acked:
                    made_s = acked / LIVE_A_SECOND
                    began_s = began_s or now_s - made_s
                    worst_s = max(worst_s, now_s - began_s - made_s)
            time.sleep(0.25)
    return drained_s, worst_s
