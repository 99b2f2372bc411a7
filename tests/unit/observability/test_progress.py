# SPDX-License-Identifier: Apache-2.0
"""Who is overdue: what the watchdog is fed by."""

from __future__ import annotations

import pytest

from licagent.observability.progress import Progress


def test_a_job_is_overdue_after_its_own_time_and_well_again_by_a_sign() -> None:
    now_s = [100.0]
    progress = Progress(lambda: now_s[0])
    made = progress.expect("events", 5.0)
    progress.expect("clock", 60.0)
    now_s[0] += 5.0
    assert progress.stalled() == ()
    now_s[0] += 0.5
    assert progress.stalled() == (("events", 5.5),)
    made()
    assert progress.stalled() == ()
    now_s[0] += 60.0
    assert dict(progress.stalled()) == {"events": 60.0, "clock": 65.5}


def test_a_sign_of_a_job_that_nobody_expects_is_a_mistake() -> None:
    with pytest.raises(KeyError):
        Progress().made("nothing")
