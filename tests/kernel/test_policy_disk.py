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
from licagent.store.numbers import PersistentNumbering
from licagent.store.statedir import StateDir
from lictoken.claims import Condition, Entitlement

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


def test_names_that_cannot_be_numbered_change_nothing(
    host: ManagedHost, who: Dialer, to: Destination, monkeypatch: pytest.MonkeyPatch
) -> None:
    apply(host, ("a.toml", closing(to)))
    named = closing(to).replace("unix:uid:54321", "unix:path:/nobody/has/had/this")
    with monkeypatch.context() as patch:
        patch.setattr(StateDir, "write_document", is_full)
        for action in (changes.check, changes.apply):
            with pytest.raises(LocalError, match="cannot be kept") as caught:
                action(host.agent, {"files": (("a.toml", named),)})
            assert "the last policy stays in force" in caught.value.hint
    assert who.ask() == NO_LICENSE
    assert "54321" in installed(host)["a.toml"]


def test_the_last_good_policy_is_kept_as_soon_as_there_is_room(
    host: ManagedHost, to: Destination, monkeypatch: pytest.MonkeyPatch
) -> None:
    apply(host, ("a.toml", closing(to)))
    keeper, text = host.agent.keeper, closing(to) + "# another\n"
    with monkeypatch.context() as patch:
        patch.setattr(StateDir, "write_document", is_full)
        with pytest.raises(LocalError, match="cannot be kept"):
            apply(host, ("a.toml", text))
    assert keeper.last_good.texts() == (("a.toml", closing(to)),)
    apply(host, ("a.toml", text))
    assert keeper.last_good.texts() == (("a.toml", text),)


def test_what_conditions_take_is_gone_also_with_a_full_disk(
    host: ManagedHost, who: Dialer, to: Destination, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A license that keeps one right and loses another, where no new tables can be made."""
    agent = host.agent
    fact = Condition("posture:pending_reboot", ("false",))
    entitlements = (Entitlement("db", ("connect",), conditions=(fact,)), Entitlement("other"))
    host.under_test.issue("partly", [], entitlements=entitlements)
    bound = closing(to).replace("acme", "partly").replace("unix:uid:54321", "host")
    apply(host, ("a.toml", bound))
    agent.licensing.set_facts(agent.licensing.host.facts | {"pending_reboot": "false"})
    agent.conditions.judge()
    assert who.ask() == OPEN
    with monkeypatch.context() as patch:
        patch.setattr(PersistentNumbering, "save", is_full)
        agent.licensing.set_facts(agent.licensing.host.facts | {"pending_reboot": "true"})
        agent.conditions.judge()
        assert who.ask() != OPEN
    monkeypatch.setattr(agent.conditions._reader, "read", lambda: agent.licensing.host.facts)
    agent.conditions.refresh()
    assert who.ask() == "EKEYREJECTED"
    assert not agent.licensing.all_or_nothing


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
