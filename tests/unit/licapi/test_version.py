# SPDX-License-Identifier: Apache-2.0
"""Which versions of agent and control plane may talk."""

from __future__ import annotations

import pytest

from licapi.version import Release, installed, release_of, why_not_served


@pytest.mark.parametrize(
    ("agent", "server", "why"),
    [
        ("0.1.0", "0.1.0", ""),
        ("0.1.9", "0.1.0", ""),
        ("0.2.0", "0.3.7", ""),
        ("1.4.0rc1", "1.4.0", ""),
        ("1.3", "1.4.0", ""),
        ("0.1.9", "0.3.0", "upgrade licagent"),
        ("0.4.0", "0.3.9", "upgrade the control plane"),
        ("0.10.0", "0.9.0", "upgrade the control plane"),
        ("0.9.0", "0.10.0", ""),
        ("1.0.0", "0.9.0", "upgrade the control plane"),
        ("0.9.0", "1.0.0", "upgrade licagent"),
        ("2.0.0", "1.9.0", "upgrade the control plane"),
        ("1.9.0", "2.0.0", "upgrade licagent"),
        ("", "0.3.0", ""),
        ("newest", "0.3.0", "cannot be read"),
        ("9" * 400, "0.3.0", "cannot be read"),
        ("0.1.0", "not installed", ""),
    ],
)
def test_an_agent_is_at_most_one_minor_version_older(agent: str, server: str, why: str) -> None:
    found = why_not_served(agent, server)
    assert (why in found) if why else not found


def test_what_runs_here_has_a_version() -> None:
    assert release_of(installed()) is not None
    assert release_of("0.1.0-simulated") == Release(0, 1)
    assert not why_not_served(installed(), installed())
