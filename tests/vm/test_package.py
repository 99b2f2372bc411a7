# SPDX-License-Identifier: Apache-2.0
"""The Debian packages on a host: installed, upgraded and downgraded without a gap, removed, purged.

Three programs work without pause while a version takes another one's place: one connects and is
refused, one connects by a license, one has a connection open. None may ever see anything else.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.vm import states
from tests.vm.issuer import DENIED, LicensedHost, dial, put_dial, resource, said
from tests.vm.machine import Machine

pytestmark = pytest.mark.timeout(4 * states.START_S)  # a test has several starts

ROOT = Path(__file__).parents[2]
NEXT = "0.1.99"
PINS = "/sys/fs/bpf/licagent"

PROBE = """#!/usr/bin/python3
# probe PORT: connects without pause. probe stream PORT: sends a byte and has it back, without
# pause, on one connection. Counts outcomes; told to end, prints "OUTCOME=COUNT ..."
import errno, signal, socket, sys, threading, time
port, counts, ending = int(sys.argv[-1]), {}, []
signal.signal(signal.SIGTERM, lambda *_: ending.append(1))
def connect():
    with socket.socket() as s:
        s.settimeout(10)
        return errno.errorcode[e] if (e := s.connect_ex(("127.0.0.1", port))) else "connected"
def echo(server):
    peer = server.accept()[0]
    while data := peer.recv(1):
        peer.send(data)
def exchange():
    stream.send(b"x")
    return "echoed" if stream.recv(1) == b"x" else "closed"
attempt = connect
if sys.argv[1] == "stream":
    server = socket.create_server(("127.0.0.1", port))
    threading.Thread(target=echo, args=(server,), daemon=True).start()
    stream = socket.create_connection(("127.0.0.1", port))
    stream.settimeout(30)
    attempt = exchange
while not ending:
    try:
        outcome = attempt()
    except OSError as error:
        outcome = errno.errorcode.get(error.errno, type(error).__name__)
    if outcome not in counts:
        print(outcome, file=sys.stderr, flush=True)
    counts[outcome] = counts.get(outcome, 0) + 1
    time.sleep(0.01)
print(" ".join(f"{name}={count}" for name, count in sorted(counts.items())), flush=True)
"""

LINKS = """
import ctypes, os, sys
lib = ctypes.CDLL("libbpf.so.1", use_errno=True)
gone = []
for number in map(int, sys.argv[2:]):
    fd = getattr(lib, f"bpf_{sys.argv[1]}_get_fd_by_id")(number)
    if fd >= 0:
        os.close(fd)
        print(number)
"""


PROBES = {"refused": "7001", "let-through": "7002", "open": "stream 7011"}


@dataclass(slots=True)
class Probes:
    """The programs in the machine, by name, and what they have met."""

    machine: Machine

    def start(self) -> None:
        self.machine.write("/usr/local/bin/probe", PROBE, mode=0o755)
        for name, arguments in PROBES.items():
            self.machine.run(
                f"rm -f /root/{name}.*; systemd-run --quiet --collect --unit=probe-{name}"
                f" -p StandardOutput=file:/root/{name}.out -p StandardError=file:/root/{name}.err"
                f" /usr/bin/python3 /usr/local/bin/probe {arguments}"
            )
            self.machine.wait_for(f"test -s /root/{name}.err")

    def end(self) -> dict[str, dict[str, int]]:
        """Stop them: how often each has met what, by name."""
        found = {}
        for name in PROBES:
            self.machine.run(f"systemctl stop probe-{name}")
            words = self.machine.run(f"cat /root/{name}.out").stdout.split()
            found[name] = {what: int(count) for what, count in (w.split("=") for w in words)}
        return found


@pytest.fixture(scope="module")
def next_version() -> Path:
    """The agent's package of a later version, out of the same sources: each program differs."""
    folder = ROOT / "build" / "upgrade"
    subprocess.run(
        [sys.executable, "packaging/builder", "--deb", "--version", NEXT, "--out", str(folder)],
        cwd=ROOT,
        check=True,
    )
    return folder / f"licagent_{NEXT}_amd64.deb"


@pytest.fixture(scope="module")
def enforced(installed: Machine) -> LicensedHost:
    """Port 7001 is refused; 7002 and 7011 are licensed to a probe each."""
    host = LicensedHost(installed)
    host.set_up()
    put_dial(installed)
    host.license("probe", ["new", "open"])
    host.license("another", ["closed"])
    host.policy(
        resource("closed", 7001, "systemd:unit:nobody-here.service", jti="another")
        + resource("new", 7002, "systemd:unit:probe-let-through.service", jti="probe")
        + resource("open", 7011, "systemd:unit:probe-open.service", jti="probe")
    )
    assert said(installed.run(dial(7001))) != "connected"
    return host


@dataclass(frozen=True, slots=True)
class Attached:
    """What is pinned of ours, by name."""

    links: dict[str, int]
    programs: dict[str, int]
    on_cgroups: set[str]  # the hooks that decide about connections; the kernel replaces in place


def attached(machine: Machine) -> Attached:
    """The ids of our links and programs, as the kernel has them."""
    script = (
        "import json,sys\n"
        "sys.path.insert(0,'/usr/lib/licagent/site')\n"
        "from licagent.kernel.bpf_info import link_info\n"
        "from licagent.kernel.libbpf import open_pin\n"
        "from pathlib import Path\n"
        f"pins=sorted(Path('{PINS}/links').iterdir())\n"
        "infos={pin.name:link_info(open_pin(pin)) for pin in pins}\n"
        "print(json.dumps([[n,i.id,i.program_id,i.cgroup_id] for n,i in infos.items()]))\n"
    )
    rows = json.loads(machine.run("/usr/lib/licagent/bin/python3 -", stdin=script).stdout)
    return Attached(
        {name: link for name, link, _, _ in rows},
        {name: program for name, _, program, _ in rows},
        {name for name, _, _, cgroup in rows if cgroup},
    )


def live(machine: Machine, kind: str, ids: dict[str, int]) -> list[str]:
    """Which of these objects the kernel still has."""
    words = " ".join(map(str, ids.values()))
    return machine.run(f"python3 - {kind} {words}", stdin=LINKS).stdout.split()


def version(machine: Machine) -> str:
    return machine.run("dpkg-query -W -f '${Version}' licagent").stdout


def test_installing_starts_an_agent_that_observes(installed: Machine) -> None:
    assert installed.run("dpkg --verify licagent licplane").stdout == ""
    for unit in ("licagent.service", "licagent-load.service", "licagent-uplink.socket"):
        assert installed.run(f"systemctl is-enabled {unit}").stdout.strip() == "enabled"
    for unit in ("licagent.service", "licagent-uplink.socket"):
        assert installed.run(f"systemctl is-active {unit}").stdout.strip() == "active"
    assert installed.run("systemctl is-enabled licplane", check=False).stdout.strip() == "disabled"
    assert LicensedHost(installed).status()["mode"] == "observe"
    assert installed.run("getent group licagent").stdout
    assert installed.run("getent passwd licplane").stdout
    # Nobody but the package's own files is asked for a module.
    path = installed.run(
        "cd /tmp && PYTHONPATH=/tmp /usr/lib/licagent/bin/python3 -I -c "
        "'import sys; print(*sys.path)'"
    ).stdout
    assert "dist-packages" not in path
    assert "/tmp" not in path.split()


def test_an_upgrade_and_a_downgrade_leave_no_gap(
    installed: Machine, enforced: LicensedHost, next_version: Path
) -> None:
    first = version(installed)
    for package, wanted in ((next_version, NEXT), (states.package("licagent", first), first)):
        before, main = attached(installed), installed.run("systemctl show -P MainPID licagent")
        probes = Probes(installed)
        probes.start()
        states.install(installed, package)
        installed.wait_for(
            "licagent status --json --timeout 30 | grep -q '\"mode\"'", timeout=states.START_S
        )
        met = probes.end()
        after = attached(installed)

        assert version(installed) == wanted
        assert installed.run("licagent --version").stdout.split()[-1] == wanted
        assert installed.run("systemctl show -P MainPID licagent").stdout != main.stdout
        assert set(met["refused"]) == {DENIED}, met
        assert set(met["let-through"]) == {"connected"}, met
        assert set(met["open"]) == {"echoed"}, met
        assert min(sum(counts.values()) for counts in met.values()) > 100
        # Where connections are decided about, the attachment is the same one, with another program.
        assert before.on_cgroups == after.on_cgroups
        assert len(after.on_cgroups) > 5
        for hook in after.on_cgroups:
            assert before.links[hook] == after.links[hook], hook
            assert before.programs[hook] != after.programs[hook], hook


def test_what_root_detached_stays_so_through_an_upgrade(
    installed: Machine, enforced: LicensedHost, next_version: Path
) -> None:
    first = version(installed)
    installed.run("licagent detach --yes --timeout 100")
    installed.wait_for('test "$(systemctl is-active licagent.service)" = inactive', timeout=180)
    for step in ("upgraded", "configured again"):
        if step == "upgraded":
            states.install(installed, next_version)
        else:
            installed.run(
                "DEBIAN_FRONTEND=noninteractive dpkg-reconfigure licagent", timeout=states.START_S
            )
        assert installed.run("systemctl is-active licagent", check=False).stdout == "inactive\n"
        assert said(installed.run(dial(7001))) == "connected", step
    installed.run("systemctl start licagent.service", timeout=states.START_S)
    assert said(installed.run(dial(7001))) == DENIED
    # What runs is taken over, as ever.
    states.install(installed, states.package("licagent", first))
    installed.wait_for("systemctl is-active licagent.service", timeout=states.START_S)
    assert said(installed.run(dial(7001))) == DENIED


def test_removing_takes_enforcement_away_and_purging_all_else(
    installed: Machine, enforced: LicensedHost
) -> None:
    installed.run("licagent run --license probe --timeout 100 -- /bin/true")
    assert installed.run("find /sys/fs/cgroup -name 'licagent.run'").stdout
    ours = attached(installed)
    assert live(installed, "link", ours.links)

    installed.run(
        "DEBIAN_FRONTEND=noninteractive apt-get -q -y remove licagent", timeout=states.START_S
    )

    assert said(installed.run(dial(7001))) == "connected"
    assert live(installed, "link", ours.links) == []
    assert live(installed, "prog", ours.programs) == []
    assert installed.run(f"ls -d {PINS}", check=False).status != 0
    assert installed.run("find /sys/fs/cgroup -name '*licagent*'").stdout == ""
    assert installed.run("ls /etc/licagent/agent.toml /var/lib/licagent").stdout
    assert installed.run("ls -d /usr/lib/licagent", check=False).status != 0

    # The server runs: purging ends it before its keys, its database and its user go.
    installed.run(
        "printf 'correct horse' | systemd-creds encrypt --name=licplane.passphrase - "
        "/etc/licplane/passphrase.cred"
    )
    installed.write("/etc/licplane/licplane.env", "LICPLANE_ISSUER=tests\n")
    installed.run("systemctl start licplane.service", timeout=states.START_S)
    assert installed.run("pgrep -u licplane").stdout

    installed.run(
        "DEBIAN_FRONTEND=noninteractive apt-get -q -y purge licagent licplane",
        timeout=states.START_S,
    )

    assert installed.run("pgrep -f /usr/lib/licplane/[b]in", check=False).stdout == ""
    left = installed.run(
        "find / -xdev \\( -iname '*licagent*' -o -iname '*licplane*' \\)"
        " -not -path '/proc/*' -not -path '/var/log/*' -not -path '/var/tmp/*'"
    ).stdout.splitlines()
    assert left == []
    for where in ("/run", "/sys/fs/bpf", "/sys/fs/cgroup"):
        assert installed.run(f"find {where} -name '*licagent*' -o -name '*licplane*'").stdout == ""
    assert (
        "lic"
        not in installed.run(
            "getent passwd licplane; getent group licagent licplane", check=False
        ).stdout
    )
    units = installed.run("systemctl list-unit-files 'lic*' --no-legend", check=False)
    assert units.stdout == ""


def test_removing_works_with_settings_that_are_refused(installed: Machine) -> None:
    installed.restore("installed")
    ours = attached(installed)
    # No daemon is there to do it by the settings that it runs with.
    installed.run("systemctl stop licagent.service")
    installed.write("/etc/licagent/agent.toml", "mode = \n")
    installed.run(
        "DEBIAN_FRONTEND=noninteractive apt-get -q -y remove licagent", timeout=states.START_S
    )
    assert live(installed, "link", ours.links) == []
    assert installed.run(f"ls -d {PINS}", check=False).status != 0
