# SPDX-License-Identifier: Apache-2.0
"""The cgroups of `licagent run` go when their commands have ended, and all of them on detach."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from tests.system.harness.scene import Scene

from licagent.daemon.policy_keeper import RUN_FOLDER


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
