# SPDX-License-Identifier: Apache-2.0
"""A kernel with BPF among its security modules: sockets of other families, and self-protection."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

import pytest
from tests.vm.issuer import DENIED, LicensedHost, dial, put_dial, resource, said
from tests.vm.machine import Machine
from tests.vm.states import START_S

from licagent.kernel.hooks import LSM_HOOKS

PORT: Final = 7001
FAMILIES: Final = {"AF_PACKET": 17, "AF_VSOCK": 40, "AF_XDP": 44}
_MAKE: Final = (
    "import ctypes,errno,sys\n"
    "c=ctypes.CDLL(None,use_errno=True)\n"
    "fd=c.socket(int(sys.argv[1]),int(sys.argv[2]),0)\n"
    "print('made' if fd>=0 else errno.errorcode[ctypes.get_errno()])\n"
)
_ATTEMPT: Final = """
import errno, json, sys
from pathlib import Path
sys.path[:0] = ["/usr/lib/licagent/site", "/root"]
import lsm_probe
from licagent.kernel.bpffs import PinFolder

def errno_of(action):
    try:
        action()
    except OSError as error:
        return errno.errorcode.get(error.errno, str(error))
    return ""

tries = lsm_probe.attempts(PinFolder(Path("/sys/fs/bpf/licagent")), int(sys.argv[1]))
print(json.dumps({name: errno_of(action) for name, action in tries.items()}))
"""
_USER: Final = "setpriv --reuid=1000 --regid=1000 --clear-groups"
_NET_RAW: Final = f"{_USER} --inh-caps=+net_raw --ambient-caps=+net_raw"


@pytest.fixture(scope="module")
def host(installed: Machine) -> LicensedHost:
    """A host that enforces one network that nobody has a license for, and one that root has."""
    found = LicensedHost(installed)
    put_dial(installed)
    installed.write("/usr/local/bin/make-socket", _MAKE)
    installed.write("/root/attempt", _ATTEMPT)
    installed.put(Path(__file__).parent / "guest" / "lsm_probe.py", "/root/lsm_probe.py")
    found.set_up()
    found.license("acme", ["closed", "open", "frames"])
    found.policy(_policy())
    return found


def _policy(*, frames: str = "") -> str:
    """`frames`: the selector of who may make sockets of other families."""
    text = resource("closed", PORT) + _bind("closed", "unix:uid:4242")  # nobody
    text += resource("open", PORT + 1) + _bind("open", "unix:uid:0")
    if frames:
        text += '[[resource]]\nname = "frames"\nkind = "network"\nmode = "enforce"\n'
        text += 'destinations = [{ cidr = "0.0.0.0/0", protocol = "other" }]\n'
        text += _bind("frames", frames)
    return text


def _bind(name: str, selector: str) -> str:
    text = f'[[binding]]\nlicense = "acme"\nresources = ["{name}"]\n'
    return text + f'selectors = ["{selector}"]\n'


def make(host: LicensedHost, family: int, kind: int = 2, who: str = _NET_RAW) -> str:
    """What a user with CAP_NET_RAW is told who makes a socket: "made", or the error's name."""
    command = f"{who} /usr/bin/python3 /usr/local/bin/make-socket {family} {kind}"
    return said(host.machine.run(command))


def attempt(host: LicensedHost) -> dict[str, str]:
    """What another root process is told that tries to take enforcement away."""
    pid = said(host.machine.run("systemctl show -P MainPID licagent.service"))
    found: dict[str, str] = json.loads(host.machine.run(f"python3 /root/attempt {pid}").stdout)
    return found


def on_record(host: LicensedHost, word: str) -> None:
    """Wait for an event: they are written a moment after what they tell of."""
    host.machine.wait_for(f"licagent events --json --limit 50 --timeout 60 | grep -q '\"{word}\"'")


def rows(host: LicensedHost) -> dict[str, dict[str, Any]]:
    """The coverage table, by hook."""
    ran = host.machine.run("licagent doctor --json --timeout 100", check=False)
    return {row["hook"]: row for row in json.loads(ran.stdout)["coverage"] if row["hook"]}


def test_every_lsm_hook_is_at_work(host: LicensedHost) -> None:
    found = rows(host)
    assert {hook.name: found[hook.name]["state"] for hook in LSM_HOOKS} == dict.fromkeys(
        (hook.name for hook in LSM_HOOKS), "closed"
    )
    assert not host.status()["reasons"]


def test_sockets_of_other_families_need_a_license(host: LicensedHost) -> None:
    assert {name: make(host, number) for name, number in FAMILIES.items()} == dict.fromkeys(
        FAMILIES, "ENOKEY"
    )
    on_record(host, "AF_XDP")
    told = {
        event["network"]["family"]: event["resource"]
        for event in host.events()
        if event.get("hook") == "family" and event["verdict"] == "deny"
    }
    assert told == dict.fromkeys(FAMILIES, "other-families")
    # What systems need: UNIX, netlink, and the packet socket of a DHCP client.
    assert (make(host, 1), make(host, 16, 3), make(host, 17, 3, "env")) == ("made",) * 3

    host.policy(_policy(frames="unix:uid:1000"))
    try:
        assert make(host, 17) == "made"
        assert make(host, 40, 1, "setpriv --reuid=1001 --clear-groups") == "ENOKEY"
        host.set_up("observe")
        assert make(host, 40, 1, "setpriv --reuid=1001 --clear-groups") != "ENOKEY"
        on_record(host, "shadow")
        last = [event for event in host.events() if event.get("hook") == "family"][-1]
        assert (last["verdict"], last["resource"]) == ("shadow", "frames")
    finally:
        host.set_up()
        host.policy(_policy())


def test_another_root_process_cannot_take_enforcement_away(host: LicensedHost) -> None:
    found = attempt(host)
    assert {name: answer for name, answer in found.items() if answer} == dict.fromkeys(
        (name for name in found if not name.endswith(": may")), "EPERM"
    )
    assert said(host.machine.run(dial(PORT))) == DENIED
    assert said(host.machine.run(dial(PORT + 1))) == "connected"
    on_record(host, "tampering")
    told = [event for event in host.events() if event["kind"] == "tampering"]
    assert "was refused" in told[0]["message"]
    assert told[0]["by"] == "uid 0"
    assert not host.status()["reasons"]


def test_a_daemon_that_is_killed_guards_again_and_the_owner_may_detach(host: LicensedHost) -> None:
    machine = host.machine
    pid = said(machine.run("systemctl show -P MainPID licagent.service"))
    machine.run(f"kill -KILL {pid}")
    machine.wait_for(
        f"test $(systemctl show -P MainPID licagent) != {pid} && licagent status --timeout 30",
        timeout=START_S,
    )
    assert attempt(host)["remove a pin"] == "EPERM"
    machine.run("licagent detach --yes --timeout 100")
    assert said(machine.run(dial(PORT))) == "connected"
    assert machine.run("find /sys/fs/bpf/licagent -type f 2>/dev/null", check=False).stdout == ""
    machine.run("systemctl restart licagent.service", timeout=START_S)
    assert said(machine.run(dial(PORT))) == DENIED
