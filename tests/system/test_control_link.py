# SPDX-License-Identifier: Apache-2.0
"""The link is down: what is leased goes on until the lease ends, then the license's own mode."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable

import pytest
from tests.system.harness.controlplane import ControlPlane, Host, binding, license
from tests.system.harness.scene import HOLDER, STRANGER, eventually

MakePlane = Callable[..., ControlPlane]
MakeHost = Callable[..., Host]
BRIEF_S = 15


@pytest.fixture
def brief(make_plane: MakePlane, make_host: MakeHost) -> Host:
    """A host whose leases last a few seconds, with a license for each failure mode."""
    return leased_for(BRIEF_S, make_plane, make_host)


def leased_for(ttl_s: int, make_plane: MakePlane, make_host: MakeHost) -> Host:
    plane = make_plane("--lease-ttl", f"{ttl_s}s")
    found = make_host(of=plane)
    found.enroll()
    plane.apply(
        found.resource(),
        license("closed"),
        license("open", failure_mode="open"),
        binding("closed", HOLDER),
        binding("open", STRANGER),
    )
    found.closed()
    found.until("ok", HOLDER)
    found.until("ok", STRANGER)
    return found


def try_now(host: Host) -> None:
    """After an outage it may wait for long until it tries again."""
    assert host.agent.process is not None
    host.agent.process.send_signal(signal.SIGHUP)


def test_enforcement_goes_on_without_the_control_plane(host: Host) -> None:
    with host.program() as (program, report):
        assert report["outcome"] == "ok"
        host.plane.kill()
        eventually(lambda: host.control["state"] != "connected", "the link is down")
        assert (host.connect(HOLDER), host.connect(STRANGER)) == ("ok", "ENOKEY")
        assert program.process.poll() is None
        # Nor does a restart of the daemon need it: tables, licenses and leases are on the disk.
        host.agent.kill()
        host.agent.start()
        assert (host.connect(HOLDER), host.connect(STRANGER)) == ("ok", "ENOKEY")
    host.plane.start()
    try_now(host)
    eventually(lambda: host.control["state"] == "connected", "it found back")
    host.plane.do("license", "revoke", "acme-db")
    host.until("EKEYREVOKED")


def test_after_the_lease_the_license_s_own_mode(brief: Host) -> None:
    with brief.program() as (program, report):
        assert report["outcome"] == "ok"
        brief.plane.kill()
        brief.until("EKEYEXPIRED", HOLDER)
        assert brief.connect(STRANGER) == "ok"
        assert program.process.stdin is not None
        program.process.stdin.write(b"x\n")
        program.process.stdin.flush()
        assert program.line() != {"outcome": "ok"}
    eventually(
        lambda: any(e.get("reason") == "lease_lost" for e in brief.agent.events(verdict="deny")),
        "the refusal on record",
    )
    brief.plane.start()
    try_now(brief)
    brief.until("ok", HOLDER)


def test_the_lease_ends_with_the_daemon_dead(brief: Host) -> None:
    brief.agent.kill()
    brief.until("EKEYEXPIRED", HOLDER)
    assert brief.connect(STRANGER) == "ok"


def test_leases_are_renewed_while_the_link_is_up(
    make_plane: MakePlane, make_host: MakeHost
) -> None:
    # Asked for again at half of it: what is left is for a machine that others want, too.
    host = leased_for(2 * BRIEF_S, make_plane, make_host)
    end = time.monotonic() + 2.5 * BRIEF_S
    while time.monotonic() < end:
        assert host.connect(HOLDER) == "ok"
        time.sleep(0.25)


def test_grace_begins_where_the_lease_ends(make_plane: MakePlane, make_host: MakeHost) -> None:
    plane = make_plane("--lease-ttl", "10s")
    found = make_host(of=plane)
    found.enroll()
    plane.apply(
        found.resource(),
        license("graced", grace=600),
        license("plain"),
        binding("graced", HOLDER),
        binding("plain", STRANGER),
    )
    found.closed()
    found.until("ok", HOLDER)
    found.until("ok", STRANGER)
    plane.kill()
    found.until("EKEYEXPIRED", STRANGER)
    assert found.connect(HOLDER) == "ok"


def test_leases_of_another_boot_do_not_count(host: Host) -> None:
    """As after a reboot with the control plane away: what was leased to that boot is over."""
    host.plane.kill()
    host.agent.stop()
    other = host.file("boot_id", "11111111-2222-4333-8444-555555555555\n")
    host.agent.write_config()
    # A namespace in which the kernel seems to have been booted anew.
    script = (
        'mount --make-private /proc && mount --bind "$1" /proc/sys/kernel/random/boot_id'
        ' && exec "$2" -m licagent.daemon.main'
    )
    unshare = ("unshare", "--mount", "--propagation", "unchanged", "sh", "-c", script, "sh")
    with (host.agent.folder / "daemon.log").open("ab") as log:
        host.agent.process = subprocess.Popen(
            [*unshare, str(other), sys.executable],
            env=host.agent.environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    host.agent.wait_ready()
    assert host.connect(HOLDER) == "EKEYEXPIRED"
    assert host.connect(STRANGER) == "ENOKEY"
    (found,) = eventually(
        lambda: [
            row
            for row in host.cli("status", "--json").json["reasons"]
            if row["code"] == "lease-lost"
        ],
        "it is said",
    )
    assert "since this host booted" in found["message"]
    host.plane.start()
    try_now(host)
    host.until("ok", HOLDER)
    eventually(lambda: not host.cli("status", "--json").json["reasons"], "nothing is wrong")


def test_the_host_boots_without_the_network(host: Host) -> None:
    """Programs and tables are back from the disk alone, before any link."""
    host.plane.kill()
    host.cli("detach", "--yes")
    assert host.agent.process is not None
    host.agent.process.wait(30)
    assert host.connect(STRANGER) == "ok"  # nothing is attached
    host.agent.start()
    assert (host.connect(HOLDER), host.connect(STRANGER)) == ("ok", "ENOKEY")
    assert host.control["state"] != "connected"


def test_a_drained_host_keeps_what_it_has_and_gets_nothing_new(brief: Host) -> None:
    plane = brief.plane
    plane.do("host", "drain", brief.id)
    plane.apply(binding("closed", 62_500))
    brief.until("EKEYEXPIRED", HOLDER)  # its lease was not renewed
    assert brief.connect(62_500) == "ENOKEY"
    plane.do("host", "activate", brief.id)
    brief.until("ok", HOLDER)
    brief.until("ok", 62_500)


@pytest.mark.slow
def test_certificates_renew_themselves(make_plane: MakePlane, make_host: MakeHost) -> None:
    """At half of a life of a minute, without the link or the licenses noticing."""
    plane = make_plane("--certificate-ttl", "60s")
    host = make_host(of=plane)
    host.enroll()
    host.licensed()
    first = host.control["certificate_end"]
    before = plane.host(host.id)["certificate_not_after"]
    limit = time.monotonic() + 60
    while host.control["certificate_end"] == first:
        assert time.monotonic() < limit, host.state()
        assert host.connect(HOLDER) == "ok"
        time.sleep(0.5)
    eventually(lambda: plane.host(host.id)["certificate_not_after"] > before, "a new one")
    eventually(lambda: host.control["state"] == "connected", "with the new one")
