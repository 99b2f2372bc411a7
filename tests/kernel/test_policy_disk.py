# SPDX-License-Identifier: Apache-2.0
"""A disk that refuses leaves the policy in force that is on it; what failed is done again."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
from tests.kernel.harness.catalogs import ManagedHost, managed_host
from tests.kernel.harness.dial import Destination, Dialer, dialer

from licagent.daemon.policy import changes, run_scopes
from licagent.kernel.libbpf import BpfError
from licagent.local.errors import ErrorCode, LocalError
from licagent.store.errors import StateWriteFailed

pytest_plugins = ["tests.kernel.harness.fixtures"]

OPEN: Final = "OK"
NO_LICENSE: Final = "ENOKEY"


@pytest.fixture(scope="module")
def host() -> Iterator[ManagedHost]:
    with managed_host() as made:
        made.push(made.trust())
        made.under_test.issue("acme", ["db"])
        yield made


@pytest.fixture
def to() -> Destination:
    return Destination()


@pytest.fixture
def who(host: ManagedHost, dial: Path, to: Destination) -> Iterator[Dialer]:
    with dialer(host.agent.tree.root, dial, to) as running:
        yield running


def closing(to: Destination) -> str:
    """A policy in which nobody who is here may go there."""
    return (
        '[[resource]]\nname = "db"\nkind = "network"\nmode = "enforce"\n'
        f'destinations = [{{ cidr = "{to.address}/32", ports = ["{to.port}"] }}]\n'
        '[[binding]]\nlicense = "acme"\nselectors = ["unix:uid:54321"]\n'
    )


def apply(host: ManagedHost, *files: tuple[str, str]) -> None:
    changes.apply(host.agent, {"files": files})


def installed(host: ManagedHost) -> dict[str, str]:
    return dict(host.agent.keeper.installed())


def is_full(*_arguments: Any) -> None:
    raise StateWriteFailed(os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("part", ["state", "policy"])
def test_a_policy_that_cannot_be_kept_is_not_in_force(
    part: str, host: ManagedHost, who: Dialer, to: Destination, monkeypatch: pytest.MonkeyPatch
) -> None:
    apply(host, ("a.toml", closing(to)))
    assert who.ask() == NO_LICENSE
    before = installed(host)
    in_the_way = host.under_test.config / "policy.d/.c.toml.new"
    with monkeypatch.context() as patch:
        if part == "state":
            patch.setattr(host.agent.keeper.last_good, "remember", is_full)
        else:
            in_the_way.mkdir()  # the last of the files cannot be written
        with pytest.raises(LocalError, match="cannot be kept") as caught:
            apply(host, ("a.toml", ""), ("b.toml", ""), ("c.toml", ""))
        assert caught.value.code is ErrorCode.REFUSED
    assert installed(host) == before
    assert who.ask() == NO_LICENSE
    assert host.agent.policy.own_texts() == tuple(before.items())
    if in_the_way.exists():
        in_the_way.rmdir()
    apply(host, ("a.toml", ""))
    assert who.ask() == OPEN


def test_a_scope_has_its_rule_also_after_a_failure(
    host: ManagedHost, dial: Path, to: Destination, monkeypatch: pytest.MonkeyPatch
) -> None:
    apply(host, ("a.toml", closing(to)))
    asked = {"license": "acme", "pid": os.getpid(), "valid": False}

    def full(*_arguments: object, **_options: object) -> int:
        raise BpfError(errno.E2BIG, "write to rules")

    with monkeypatch.context() as patch:
        patch.setattr(host.agent.kernel.tables, "switch", full)
        with pytest.raises(LocalError, match="no rule for license 'acme'"):
            run_scopes.prepare(host.agent, asked)
    scope = Path(str(run_scopes.prepare(host.agent, asked)["cgroup"]))
    with dialer(scope, dial, to) as running:
        assert running.ask() == OPEN


def test_licenses_that_ended_leave_nothing(host: ManagedHost, to: Destination) -> None:
    apply(host, ("a.toml", closing(to)))
    for build in range(3):
        host.under_test.issue(f"build-{build}", ["db"])
        host.agent.licensing.load()
        pid = 2**22 + build  # beyond any process: it has ended
        run_scopes.prepare(host.agent, {"license": f"build-{build}", "pid": pid, "valid": True})
        host.agent.licensing.revoke_here(f"build-{build}", "it is done", "the test")
    asked = {"license": "build-2", "pid": os.getpid(), "valid": False}
    run_scopes.prepare(host.agent, asked)
    folder = host.agent.tree.root / run_scopes.RUN_FOLDER
    assert [each.name for each in folder.glob("build-*/")] == ["build-2"]
    assert {each for each in host.agent.keeper.runs.ids if "build" in each} == {"build-2"}
