# SPDX-License-Identifier: Apache-2.0
"""`licagent run`: its cgroups go when their commands have ended, and it waits if it is told to."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tests.system.harness.scene import Scene

from licagent.daemon.policy.run_scopes import RUN_FOLDER


def scopes(scene: Scene) -> list[Path]:
    return sorted((scene.agent.cgroup / RUN_FOLDER).glob("*/*/"))


@pytest.mark.parametrize("with_daemon", [True, False])
def test_scopes_do_not_pile_up(make_scene: Callable[..., Scene], with_daemon: bool) -> None:
    scene = make_scene()
    scene.agent.start()
    scene.ready()
    for _ in range(3):
        assert scene.cli("run", "--license", "acme", "--", "true").status == 0
    assert len(scopes(scene)) == 1  # the last one, until the next command or the end
    if not with_daemon:
        scene.agent.kill()
    assert scene.cli("detach", "--yes").status == 0
    assert not (scene.agent.cgroup / RUN_FOLDER).exists()


def test_a_command_waits_for_its_license(make_scene: Callable[..., Scene]) -> None:
    scene = make_scene()
    scene.agent.start()
    scene.ready()
    words = ("--wait", "60s", "--", "sh", "-c", "echo started")
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(scene.cli, "run", "--license", "late", *words)
        time.sleep(0.5)
        assert not running.done()
        scene.agent.issue("late", ["db"])
        result = running.result()
    assert (result.status, result.out) == (0, "started\n"), result

    absent = scene.cli("run", "--license", "nobodys", "--wait", "1s", "--", "echo", "started")
    assert (absent.status, absent.out) == (6, "")
    scene.agent.revoke("acme")
    revoked = scene.cli("run", "--license", "acme", *words)  # not in a minute, but at once
    assert (revoked.status, revoked.out) == (7, "")
    assert "'acme' does not hold here" in revoked.err
    # Without it a command starts in any case, and is refused where it connects.
    assert scene.cli("run", "--license", "acme", "--", "true").status == 0
