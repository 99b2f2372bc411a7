# SPDX-License-Identifier: Apache-2.0
"""The services on a real systemd host: life signs, bounds, broken settings, all that the unit's
confinement must leave possible, and the control plane beside them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.system.harness.scene import eventually
from tests.vm.issuer import DENIED, LicensedHost, binding, dial, put_dial, resource, said
from tests.vm.machine import Machine
from tests.vm.states import START_S

pytestmark = pytest.mark.timeout(4 * START_S)  # a test has several starts

SOMEBODY_ELSE = "unix:uid:4242"
_PORT = 7001


@pytest.fixture(scope="module")
def host(installed: Machine) -> LicensedHost:
    """A host that enforces: python is licensed by its path for port 7002, nobody for 7001."""
    found = LicensedHost(installed)
    put_dial(installed)
    found.set_up()
    found.license("acme", ["open"])
    found.license("other", ["closed", "run"])
    found.policy(
        resource("closed", _PORT, SOMEBODY_ELSE, jti="other")
        + resource("open", _PORT + 1, "unix:path:/usr/bin/python3", jti="acme")
    )
    return found


@pytest.fixture
def drop_in(installed: Machine) -> Iterator[Any]:
    """Adds to licagent.service for one test."""
    path = "/etc/systemd/system/licagent.service.d/test.conf"

    def add(text: str) -> None:
        installed.write(path, f"[Service]\n{text}\n")
        installed.run("systemctl daemon-reload")

    yield add
    installed.run(
        f"rm -f {path}; systemctl daemon-reload; systemctl restart licagent.service",
        timeout=START_S,
    )


def show(machine: Machine, unit: str = "licagent.service") -> dict[str, str]:
    """A unit's properties."""
    lines = machine.run(f"systemctl show {unit}").stdout.splitlines()
    return dict(line.split("=", 1) for line in lines if "=" in line)


def codes(host: LicensedHost) -> set[str]:
    """Why the host is not well."""
    return {each["code"] for each in host.status()["reasons"]}


def journal(machine: Machine, *words: str) -> list[dict[str, Any]]:
    """Lines of this boot's journal."""
    ran = machine.run(f"journalctl -b -o json --no-pager {' '.join(words)}")
    return [json.loads(line) for line in ran.stdout.splitlines()]


def test_it_is_ready_watched_bounded_and_says_how_it_is(host: LicensedHost) -> None:
    found = show(host.machine)
    assert (found["Type"], found["ActiveState"], found["SubState"]) == (
        "notify",
        "active",
        "running",
    )
    assert found["StatusText"].startswith("enforcing, policy generation"), found["StatusText"]
    assert found["WatchdogUSec"] == "1min"
    assert int(found["MemoryCurrent"]) < int(found["MemoryHigh"]) < int(found["MemoryMax"])
    assert not codes(host), host.status()["reasons"]
    # The maps are made outside of the unit: they do not count against its bound.
    assert host.status()["kernel"]["load_notes"] == []
    assert show(host.machine, "licagent-uplink.service")["ActiveState"] == "active"


def test_the_journal_has_fields(host: LicensedHost) -> None:
    """What changes can be asked for by field, and a name from outside cannot forge one."""
    machine = host.machine
    machine.run("licagent break-glass --timeout 100 --for 1m --reason 'a\nLICAGENT_KIND=forged'")
    machine.run("licagent break-glass --timeout 100 --end")
    machine.run("journalctl --sync")
    found = journal(machine, "LICAGENT_KIND=policy")
    assert found, "a field to ask for"
    assert found[-1]["SYSLOG_IDENTIFIER"] == "licagent"
    assert found[-1]["_SYSTEMD_UNIT"] == "licagent.service"
    assert int(found[-1]["LICAGENT_GENERATION"]) >= 1
    assert found[-1]["PRIORITY"] == "6"
    assert not journal(machine, "LICAGENT_KIND=forged")
    opened = journal(machine, "LICAGENT_KIND=break-glass")
    assert opened[0]["LICAGENT_BY"] == "uid 0"


def test_a_daemon_that_hangs_is_replaced_without_a_gap(host: LicensedHost, drop_in: Any) -> None:
    machine = host.machine
    drop_in("WatchdogSec=15s\nTimeoutAbortSec=2s")
    machine.run("systemctl restart licagent.service", timeout=START_S)
    pid = show(machine)["MainPID"]
    machine.run(
        "systemd-run --quiet --unit=probe --collect sh -c "
        f"'while :; do {dial(_PORT)}; sleep 0.2; done >/run/probe.out 2>&1'"
    )
    machine.run(f"kill -STOP {pid}")
    machine.wait_for(
        f"test $(systemctl show -P MainPID licagent) != {pid} && systemctl is-active licagent",
        timeout=START_S,
    )
    assert said(machine.run(dial(_PORT + 1))) == "connected"
    machine.run("systemctl stop probe.service")
    seen = set(machine.run("cat /run/probe.out").stdout.split())
    assert seen == {DENIED}
    machine.run("journalctl --sync")
    words = [each.get("MESSAGE", "") for each in journal(machine, "-u licagent")]
    assert any("Watchdog timeout" in str(each) for each in words)


def test_broken_settings_and_policy_leave_the_last_good_ones(host: LicensedHost) -> None:
    machine = host.machine
    machine.run("cp /etc/licagent/agent.toml /root/good.toml")
    try:
        machine.write("/etc/licagent/agent.toml", 'mode = "enforce\n')
        machine.run("systemctl reload licagent.service")
        machine.wait_for("systemctl show -P StatusText licagent | grep -q 'settings are refused'")
        assert codes(host) == {"settings-refused"}
        machine.write("/etc/licagent/policy.d/zz.toml", "[[resource]\n")
        machine.run("systemctl restart licagent.service", timeout=START_S)
        assert codes(host) == {"settings-refused", "policy-refused"}
        assert machine.run("licagent status --timeout 100", check=False).status == 150
        assert said(machine.run(dial(_PORT))) == DENIED
        assert said(machine.run(dial(_PORT + 1))) == "connected"
        # At boot, too: the loader takes the last good ones.
        machine.run(
            "systemctl stop licagent.service && "
            "LICAGENT_CONFIG=/dev/null licagent detach --yes --timeout 100"
        )
        assert said(machine.run(dial(_PORT))) == "connected"
        machine.run("systemctl restart licagent-load.service", timeout=START_S)
        assert said(machine.run(dial(_PORT))) == DENIED
    finally:
        machine.run(
            "rm -f /etc/licagent/policy.d/zz.toml; cp /root/good.toml /etc/licagent/agent.toml"
        )
        machine.run("systemctl restart licagent.service", timeout=START_S)
    assert not codes(host)


def test_what_the_unit_leaves_possible(host: LicensedHost) -> None:
    """Other users' files, the host's /tmp, other network namespaces, cgroups, the clock."""
    machine = host.machine
    machine.run(
        "useradd -m -s /bin/sh worker && install -d -m 0700 -o worker /home/worker/bin && "
        "install -m 0700 -o worker /usr/bin/python3.11 /home/worker/bin/secret && "
        "install -m 0755 /usr/bin/python3.11 /tmp/prog"
    )
    digest = machine.run("sha256sum /home/worker/bin/secret").stdout.split()[0]
    # Another file than the installed one, or the digest would be python's own.
    machine.run("printf x >>/home/worker/bin/secret")
    digest = machine.run("sha256sum /home/worker/bin/secret").stdout.split()[0]
    host.license("tools", ["closed", "run"])
    host.policy(
        resource("closed", _PORT, SOMEBODY_ELSE, jti="other")
        + binding("tools", "unix:path:/tmp/prog")
        + binding("tools", f"unix:sha256:{digest}")
        + resource("open", _PORT + 1, "unix:path:/usr/bin/python3", jti="acme")
        + resource("run", _PORT + 2, SOMEBODY_ELSE, jti="other")
    )
    client = f"/usr/local/bin/dial 127.0.0.1 {_PORT}"
    assert said(machine.run(dial(_PORT))) == DENIED
    assert said(machine.run(f"/tmp/prog {client}")) == "connected", "a program in the host's /tmp"
    # A program that nobody has measured yet is measured as it runs.
    again = repr(["secret", *client.split()])
    slowly = f"import os,time; time.sleep(2); os.execv('/home/worker/bin/secret', {again})"
    machine.wait_for(
        f'runuser -u worker -- /home/worker/bin/secret -c "{slowly}" | grep -q connected',
        timeout=60,
    )
    # `licagent run`: a cgroup of its own.
    port = _PORT + 2
    assert said(machine.run(dial(port))) == DENIED
    ran = machine.run(f"licagent run --license tools --timeout 100 -- {dial(port)}")
    assert said(ran) == "connected"
    # Another network namespace: the sockets of a license that ends are ended there as well.
    machine.run("ip netns add blue && ip -n blue link set lo up")
    machine.run(
        f"systemd-run --quiet --unit=blue-server ip netns exec blue nc -lk 127.0.0.1 {_PORT + 1}"
    )
    machine.wait_for(f"ip netns exec blue ss -Hltn sport = :{_PORT + 1} | grep -q .")
    machine.run(
        "systemd-run --quiet --unit=blue-client ip netns exec blue /usr/bin/python3 -c "
        f"\"import socket,time; s=socket.create_connection(('127.0.0.1',{_PORT + 1})); s.recv(1)\""
    )
    machine.wait_for(f"ip netns exec blue ss -Htn dport = :{_PORT + 1} | grep -q ESTAB")
    machine.run("licagent license revoke acme --reason test --timeout 120", timeout=180)
    machine.wait_for("! systemctl is-active blue-client.service")
    # The clock's state comes by the way out, and is left out after a step until it was asked again;
    # the other facts come from files.
    wanted = {"clock_in_sync", "agent_integrity", "kernel"}
    eventually(lambda: wanted <= set(host.status()["host"]["facts"]), f"{wanted}", within_s=300)


def test_a_host_that_is_renamed_goes_by_its_new_name(host: LicensedHost) -> None:
    """As an image's clone is, after the daemon has started."""
    machine = host.machine
    name = said(machine.run("hostname"))
    machine.run("hostname renamed")
    try:
        machine.wait_for(
            "licagent top --once --json --timeout 60 | grep -q '\"renamed\"'", timeout=120
        )
    finally:
        machine.run(f"hostname {name}")


def test_bcc_compiles_under_the_same_confinement(host: LicensedHost) -> None:
    """With the kernel's headers for programs (linux-libc-dev), which the image does not have."""
    machine = host.machine
    for folder in ("linux", "asm-generic", "x86_64-linux-gnu/asm"):
        machine.put(Path("/usr/include") / folder, f"/usr/include/{folder}")
    machine.run("sed -i '1i loader = \"bcc\"' /etc/licagent/agent.toml")
    machine.run("systemctl restart licagent.service", timeout=START_S)
    assert host.status()["kernel"]["loader"] == "bcc"
    assert said(machine.run(dial(_PORT))) == DENIED
    machine.run(
        "sed -i 1d /etc/licagent/agent.toml; systemctl restart licagent.service", timeout=START_S
    )


def test_detached_it_stays_down_until_root_starts_it(host: LicensedHost) -> None:
    machine = host.machine
    machine.run("licagent detach --yes --timeout 100")
    machine.wait_for('test "$(systemctl is-active licagent.service)" = inactive', timeout=180)
    machine.run("sleep 5")
    found = show(machine)
    assert (found["ActiveState"], found["Result"]) == ("inactive", "success")
    assert said(machine.run(dial(_PORT))) == "connected"
    machine.run("systemctl start licagent.service", timeout=START_S)
    assert said(machine.run(dial(_PORT))) == DENIED


def test_the_control_plane_starts_with_its_passphrase_and_the_host_joins_by_itself(
    host: LicensedHost,
) -> None:
    """Both credentials are encrypted ones; nobody runs `licagent enroll`."""
    machine = host.machine
    machine.run("systemctl start licplane.service", timeout=START_S)  # and the migration
    assert show(machine, "licplane.service")["ActiveState"] == "inactive", (
        "no passphrase: passed over"
    )
    machine.run(
        "printf 'correct horse' | systemd-creds encrypt --name=licplane.passphrase - "
        "/etc/licplane/passphrase.cred"
    )
    machine.write("/etc/licplane/licplane.env", "LICPLANE_ISSUER=tests\n")
    machine.run("systemctl start licplane.service", timeout=START_S)
    assert show(machine, "licplane.service")["ActiveState"] == "active"
    assert show(machine, "licplane-migrate.service")["Result"] == "success"
    as_plane = (
        "runuser -u licplane -- env LICPLANE_STATE=/var/lib/licplane "
        "LICPLANE_PASSPHRASE='correct horse' licplane"
    )
    # A plain credential that is no token is named, and keeps nothing from starting.
    machine.run(
        "install -d -m 0700 /etc/credstore && echo junk >/etc/credstore/licagent.join-token"
    )
    machine.run("systemctl restart licagent.service", timeout=START_S)
    machine.wait_for("journalctl -b -u licagent | grep -q 'not joined by the credential'")
    machine.run("rm /etc/credstore/licagent.join-token")
    # An encrypted one that is another machine's fails its own unit, and nothing else.
    encrypted = "/etc/credstore.encrypted/licagent.join-token.encrypted"
    machine.run(
        "install -d -m 0700 /etc/credstore.encrypted && "
        f"head -c 300 /dev/urandom | base64 >{encrypted}"
    )
    machine.run("systemctl restart licagent.service", timeout=START_S)
    assert show(machine, "licagent-join.service")["ActiveState"] == "failed"
    assert show(machine)["ActiveState"] == "active"
    machine.run(
        f"{as_plane} token create --label org=tests --reason test | "
        f"systemd-creds encrypt --name=licagent.join-token.encrypted - {encrypted}"
    )
    machine.run("systemctl restart licagent.service", timeout=START_S)
    connected = 'licagent status --json --timeout 30 | grep -q \'"state": "connected"\''
    machine.wait_for(connected, timeout=300)
    assert said(machine.run("ls -A /run/credstore")) == "", "in the clear for no longer than needed"
    # Once the host has joined nothing is decrypted any more.
    machine.write(encrypted, "junk\n")
    machine.run("systemctl restart licagent.service", timeout=START_S)
    assert show(machine, "licagent-join.service")["ActiveState"] == "inactive"
    machine.wait_for(connected, timeout=300)
    # The daemon has no network of its own: its way out has the connection.
    pid = show(machine, "licagent-uplink.service")["MainPID"]
    assert f"pid={pid}," in machine.run("ss -Htnp dport = :8443").stdout


def test_the_control_plane_waits_for_its_database_and_runs_by_a_kept_schema(
    host: LicensedHost,
) -> None:
    machine = host.machine
    as_plane = "runuser -u licplane -- env LICPLANE_STATE=/var/lib/licplane licplane"
    newest = said(machine.run(f"{as_plane} db current"))
    machine.run("systemctl mask licplane-migrate.service")
    try:
        machine.run("systemctl restart licplane.service", timeout=START_S)
        # An older schema is refused, and stays for the licplane that can read it.
        machine.run("systemctl stop licplane.service")
        machine.run(f"{as_plane} db downgrade 0002 --yes")
        machine.run("systemctl start --no-block licplane.service")
        machine.wait_for("journalctl -b -u licplane | grep -q 'licplane db upgrade'", timeout=120)
        assert said(machine.run(f"{as_plane} db current")) == "0002"
    finally:
        machine.run("systemctl unmask licplane-migrate.service")
    machine.run("systemctl restart licplane.service", timeout=START_S)
    assert said(machine.run(f"{as_plane} db current")) == newest
    # A database that is away for a while is waited for.
    away = "LICPLANE_ISSUER=tests\nLICPLANE_DATABASE=postgresql://licplane@127.0.0.1:9/none\n"
    machine.write("/etc/licplane/licplane.env", away)
    machine.run("systemctl restart licplane.service", check=False, timeout=START_S)
    machine.wait_for("test $(systemctl show -P NRestarts licplane.service) -gt 0", timeout=120)
    machine.write("/etc/licplane/licplane.env", "LICPLANE_ISSUER=tests\n")
    machine.wait_for("systemctl is-active licplane.service", timeout=START_S)


def test_the_boot_waits_for_nothing_of_ours_but_the_network(host: LicensedHost) -> None:
    machine = host.machine
    machine.reboot()
    machine.wait_for("systemctl is-active licagent.service", timeout=START_S)
    machine.run("systemctl is-system-running --wait", check=False, timeout=START_S)

    def since(unit: str, event: str = "ActiveEnterTimestampMonotonic") -> int:
        return int(show(machine, unit)[event])

    assert 0 < since("licagent-load.service") <= since("network-pre.target")
    assert said(machine.run(dial(_PORT))) == DENIED
    chain = machine.run("systemd-analyze critical-chain --no-pager basic.target").stdout
    # The socket and the folder of a credential are there at once; a service would take its time.
    assert not re.search(r"\blicagent(-load)?\.service [@+]", chain), chain
    failed = machine.run("systemctl --failed --no-legend --plain").stdout
    assert "lic" not in failed, failed
