# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from licagent.daemon.shadow.judge import Now, Would
from licagent.daemon.shadow.report import _resources, _with_evidence
from licagent.daemon.shadow.uses import Actor, Use, Uses
from licagent.daemon.shadow.watch import Watched

AT = "2026-01-02T03:04:{:02d}.000Z"
ALLOWED = Now(Would.ALLOW, "licensed", "acme", "acme/1")


def policy(watched: Watched) -> Any:
    tables = SimpleNamespace(resources=(SimpleNamespace(name="db", enforce=True),))
    return SimpleNamespace(watched={"db": watched}, compiled=SimpleNamespace(tables=tables))


@pytest.mark.parametrize(
    ("decided", "licensed", "verdict"),
    [(4, 0, Would.ALLOW), (6, 0, Would.UNKNOWN), (6, 7, Would.ALLOW), (8, 7, Would.UNKNOWN)],
)
def test_what_was_still_counted_is_not_explained(
    decided: int, licensed: int, verdict: Would
) -> None:
    use = Use(Actor("db", *[None] * 9), count=1, decided_at=AT.format(decided))
    uses = Uses(license_changes={"acme": AT.format(licensed)})
    found = _with_evidence(use, ALLOWED, Watched("m", "r", AT.format(1), AT.format(5)), uses)
    assert found.verdict is verdict
    assert ("still counted" in found.why) == (verdict is Would.UNKNOWN)


def test_nothing_is_watched_for_longer_than_the_log_reaches() -> None:
    rules = policy(Watched("m", "r", AT.format(1), AT.format(5), 100.5))
    for is_whole, watched_s in ((True, 100), (False, 8)):
        (row,) = _resources(rules, AT.format(10), AT.format(2), is_whole=is_whole)
        assert (row["watched_s"], row["mode"]) == (watched_s, "enforce")
