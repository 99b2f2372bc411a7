# SPDX-License-Identifier: Apache-2.0
"""`licplane db advance` beside a host that makes up what it holds."""

from __future__ import annotations

import json
from typing import Any

from licplane.service.requests import Progress


def test_a_host_that_makes_a_revision_up_holds_up_nobody(fleet: Any, run: Any) -> None:
    liar, honest = fleet.join("liar"), fleet.join("honest-1")
    opened = fleet.opened()
    with opened.store:
        opened.plane.refresh()
        before = opened.plane.revision
        progress = [Progress(liar, 2**62, ""), Progress(honest, before + 7, "")]
        opened.plane.record_progress(progress)
    result = run("db", "advance", "--json")
    found = json.loads(result.stdout)
    assert (found["changed"], found["revision"]) == (True, before + 8)
    assert liar in result.stderr
    assert honest not in result.stderr
    assert "No change" in run("db", "advance").stderr
