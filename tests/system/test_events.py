# SPDX-License-Identifier: Apache-2.0
"""`licagent events`: every field, filters, following."""

from __future__ import annotations

import json
import pwd
import re
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tests.system.harness.scene import COMMAND, HOLDER, STRANGER, Scene, eventually


def decisions(scene: Scene, *words: str) -> list[dict[str, Any]]:
    found = scene.cli("events", "--json", "--limit", "100000", *words)
    assert found.status == 0, found
    return [row for row in found.lines if row.get("kind") == "decision"]


def about(scene: Scene, pid: int) -> list[dict[str, Any]]:
    return eventually(lambda: decisions(scene, "--pid", str(pid)), f"an event of {pid}")


def test_every_field_of_an_allowed_connection(scene: Scene) -> None:
    with scene.program() as (program, report):
        [event] = about(scene, program.pid)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", event["at"])
    assert (event["verdict"], event["reason"], event["errno"]) == ("allow", "licensed", None)
    assert (event["license"], event["resource"]) == ("acme", "db")
    assert (event["binding"], event["selectors"]) == ("acme/1", [f"unix:uid:{HOLDER}"])
    assert event["rule"] >= 1
    assert event["source"].startswith("test.toml:")
    assert event["hook"] == "connect"
    assert event["cookie"] == report["cookie"]
    assert event["count"] == 1
    process = event["process"]
    assert (process["pid"], process["uid"], process["gid"]) == (program.pid, HOLDER, HOLDER)
    assert process["name"].startswith("python")
    assert process["executable"].startswith("/")
    assert "cgroup" in process
    assert event["network"]["family"] == "ipv4"
    assert event["network"]["protocol"] == "tcp"
    assert event["network"]["destination"] == report["remote"]


def test_every_field_of_a_denied_connection(scene: Scene) -> None:
    with scene.program(STRANGER) as (program, report):
        [event] = about(scene, program.pid)
    assert (event["verdict"], event["reason"], event["errno"]) == ("deny", "no_binding", "ENOKEY")
    assert (event["license"], event["rule"], event["binding"]) == (None, None, None)
    assert (event["resource"], event["selectors"]) == ("db", [])
    assert event["process"]["uid"] == STRANGER
    assert event["network"]["destination"] == f"127.0.0.1:{scene.server.port}"
    text = scene.cli("events", "--pid", str(report["pid"])).out
    assert f"[{program.pid}] (uid {STRANGER}) was refused db at tcp 127.0.0.1" in text
    assert "no binding gives it a license" in text


def test_users_and_units_have_their_names(scene: Scene) -> None:
    nobody = pwd.getpwnam("nobody").pw_uid
    unit = scene.agent.cgroup / "system.slice" / "etl.service"
    unit.mkdir(parents=True)
    program = scene.program(nobody, cgroup=unit)
    with program as (started, _report):
        [event] = about(scene, started.pid)
    process = event["process"]
    assert (process["user"], process["unit"]) == ("nobody", "etl.service")
    assert process["slice"] == "system.slice"
    assert process["cgroup"].endswith("system.slice/etl.service")


def test_filters_choose_before_the_limit_counts(scene: Scene) -> None:
    with scene.program(STRANGER) as (program, _report):
        about(scene, program.pid)
    for _time in range(3):
        scene.connect()
    eventually(lambda: len(decisions(scene, "--verdict", "allow")) >= 3)
    newest = decisions(scene, "--verdict", "deny")[-1]
    found = scene.cli("events", "--json", "--verdict", "deny", "--limit", "1")
    assert found.lines == [newest]
    assert decisions(scene, "--license", "acme", "--verdict", "deny") == []
    assert decisions(scene, "--resource", "nothing") == []
    assert all(row["license"] == "acme" for row in decisions(scene, "--license", "acme"))
    assert {row["resource"] for row in decisions(scene, "--resource", "db")} == {"db"}
    assert scene.cli("events", "--limit", "0").out == ""
    assert scene.cli("events", "--since", "yesterday").status == 2
    since = decisions(scene)[-1]["at"]
    later = scene.cli("events", "--json", "--since", since).lines
    assert later[0]["at"] >= since


@contextmanager
def follower(scene: Scene, *words: str) -> Iterator[list[dict[str, Any]]]:
    process = subprocess.Popen(
        [str(COMMAND), "events", "--follow", "--json", *words],
        env=scene.agent.environment,
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    seen: list[dict[str, Any]] = []
    reader = threading.Thread(
        target=lambda stream: seen.extend(map(json.loads, stream)), args=(process.stdout,)
    )
    reader.start()
    try:
        yield seen
    finally:
        process.terminate()
        process.wait()
        reader.join()
        process.stdout.close()


def test_followers_see_the_past_and_then_what_comes_once_each(scene: Scene) -> None:
    scene.connect(STRANGER)
    eventually(lambda: decisions(scene))
    past = len(scene.cli("events", "--json", "--limit", "100000").lines)
    # Denials go on all the time while the followers come.
    stop = threading.Event()

    def deny() -> None:
        while not stop.is_set():
            scene.connect(STRANGER)

    noise = threading.Thread(target=deny)
    noise.start()
    try:
        with follower(scene, "--limit", "100000") as seen:
            eventually(lambda: len(seen) > past + 20, "followed events")
    finally:
        stop.set()
        noise.join()
    numbers = [row["seq"] for row in seen]
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
    assert numbers[0] == 1


def test_followers_are_filtered_too(scene: Scene) -> None:
    with follower(scene, "--limit", "0", "--verdict", "deny", "--resource", "db") as seen:
        eventually(lambda: scene.connect(STRANGER) and scene.connect() and len(seen) >= 2)
    assert {row["verdict"] for row in seen} == {"deny"}


def test_a_follower_ends_with_the_daemons_end(scene: Scene) -> None:
    process = subprocess.Popen(
        [str(COMMAND), "events", "--follow"],
        env=scene.agent.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    time.sleep(1)
    scene.agent.stop()
    _out, err = process.communicate(timeout=30)
    assert process.returncode == 3
    assert b"daemon" in err
    scene.agent.start()


def test_events_survive_a_restart(scene: Scene) -> None:
    before = scene.cli("events", "--json", "--limit", "100000").lines
    scene.agent.kill()
    scene.agent.start()
    after = scene.cli("events", "--json", "--limit", "100000").lines
    assert after[: len(before)] == before


def test_repeats_are_folded_into_one_line_with_a_count(scene: Scene) -> None:
    with scene.program(STRANGER) as (program, _report):
        assert program.process.stdin is not None
        for _time in range(50):
            program.process.stdin.write(b"again\n")
        program.process.stdin.flush()
        for _time in range(50):
            assert program.line() is not None
        rows = eventually(
            lambda: (
                sum(row["count"] for row in about(scene, program.pid)) == 51
                and about(scene, program.pid)
            )
        )
    assert len(rows) < 51
    folded = [row for row in rows if row.get("folded")]
    assert folded
    assert all(row["network"] is None for row in folded)  # they may have gone to several places
    assert rows[-1]["resource"] == "db"
    assert rows[-1]["process"]["uid"] == STRANGER
