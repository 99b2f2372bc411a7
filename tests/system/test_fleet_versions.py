# SPDX-License-Identifier: Apache-2.0
"""Versions side by side: the control plane goes first, agents follow one by one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from tests.system.harness.controlplane import Host, binding
from tests.system.harness.scene import HOLDER, STRANGER, eventually
from tests.system.harness.versions import (
    OtherAgent,
    OtherPlane,
    earlier_revision,
    module_path,
    numbered,
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

SETTINGS = "report_interval_s = 1\n"


@pytest.fixture
def plane(tmp_path: Path) -> Iterator[OtherPlane]:
    """A control plane of version 0.2."""
    with OtherPlane() as made:
        made.path = str(numbered(tmp_path, "0.2.0"))
        made.make_keys()
        made.start()
        yield made


@pytest.fixture(scope="module")
def earlier(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The module path of an earlier revision."""
    return module_path(earlier_revision(tmp_path_factory.mktemp("earlier")))


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as made:
        yield made


def host_of(stack: ExitStack, plane: OtherPlane, path: str) -> Host:
    """A running host whose agent's modules come from `path`."""
    host = stack.enter_context(Host(plane, OtherAgent(path, settings=SETTINGS)))
    host.agent.start()
    return host


def restarted(plane: OtherPlane, folder: Path, version: str) -> None:
    plane.stop()
    plane.path = str(numbered(folder, version))
    plane.start()


def tries_again(host: Host) -> None:
    """It may wait long after an outage."""
    host.agent.stop()
    host.agent.start()


def test_an_agent_of_an_earlier_revision_under_a_newer_control_plane(
    stack: ExitStack, plane: OtherPlane, earlier: str, tmp_path: Path
) -> None:
    """The agent as it was before this control plane, one minor version behind it, then two."""
    host = host_of(stack, plane, earlier)
    host.enroll()
    host.licensed()
    report = eventually(lambda: plane.host(host.id)["report"], "a report")
    assert report["state"]["agent_version"] == "0.1.0"
    plane.apply(binding(uid=STRANGER))
    host.until("ok", STRANGER)
    plane.do("ca", "create")  # what it cannot know of does it no harm
    plane.do("binding", "delete", f"acme-db-{STRANGER}")
    host.until("ENOKEY", STRANGER)
    restarted(plane, tmp_path, "0.3.0")
    tries_again(host)
    eventually(
        lambda: "upgrade licagent on this host" in str(host.control["last_error"]),
        "it is told why",
    )
    assert host.connect(HOLDER) == "ok"  # leases last, and so does enforcement
    assert host.connect(STRANGER) == "ENOKEY"
    restarted(plane, tmp_path, "0.2.9")
    tries_again(host)
    eventually(lambda: host.control["state"] == "connected", "served again")
    plane.do("license", "revoke", "acme-db")
    host.until("EKEYREVOKED")


def test_an_agent_that_is_newer_than_its_control_plane(
    stack: ExitStack, plane: OtherPlane, tmp_path: Path
) -> None:
    newer = str(numbered(tmp_path, "0.3.0"))
    same = str(numbered(tmp_path, "0.2.7"))
    host = host_of(stack, plane, newer)
    refused = host.cli("enroll", plane.join())
    assert refused.status == 7
    assert "newer than this control plane's 0.2" in refused.err
    assert isinstance(host.agent, OtherAgent)
    host.agent.stop()
    host.agent.path = same  # any patch of the same minor version
    host.agent.start()
    host.enroll()
    host.licensed()
    # Upgraded before its control plane was: it goes on with what it has, and says what is wrong.
    host.agent.stop()
    host.agent.path = newer
    host.agent.start()
    eventually(lambda: host.told("version"), "it is told why")
    status = host.cli("status")
    assert status.status == 150
    assert "upgrade the control plane first" in status.out
    assert host.connect(HOLDER) == "ok"
    # The other order is the right one.
    restarted(plane, tmp_path, "0.3.0")
    tries_again(host)
    eventually(lambda: host.control["state"] == "connected", "served")
    assert host.cli("status").status == 0


def test_todays_agent_under_a_control_plane_of_an_earlier_revision(
    stack: ExitStack, earlier: str, tmp_path: Path
) -> None:
    """Not of another minor version, so it is served: what is new in it must not be in the way."""
    plane = stack.enter_context(OtherPlane())
    plane.path = earlier
    plane.make_keys()
    plane.start()
    host = host_of(stack, plane, str(numbered(tmp_path, "0.1.0")))
    host.enroll()
    host.licensed()
    plane.do("license", "revoke", "acme-db")
    host.until("EKEYREVOKED")
    # It cannot leave a control plane that knows of no such thing, and stays what it is.
    refused = host.cli("leave", "--wait", "1")
    assert refused.status == 7, refused
    assert host.control["state"] == "connected"
    # The control plane is upgraded under it, on the same database.
    plane.stop()
    plane.path = str(numbered(tmp_path, "0.2.0"))
    plane.do("db", "upgrade")
    plane.start()
    tries_again(host)
    eventually(lambda: host.control["state"] == "connected", "connected")
    assert host.ask("leave")["settled"] is True
