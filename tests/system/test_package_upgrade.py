# SPDX-License-Identifier: Apache-2.0
"""The agent's package takes another version's place on this kernel while a program is refused.

In a copy of the file system and a cgroup of its own; tests/vm/test_package.py has systemd too.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.root_copy import RootCopy

from lictoken.claims import AUDIENCE, Entitlement, License, LicenseScope
from lictoken.keys import SigningKey
from lictoken.sign import sign_license
from lictoken.trust import TrustedKey, TrustStore

ROOT = Path(__file__).parents[2]
NEXT = "0.1.99"

POLICY = """
[[resource]]
name = "closed"
kind = "network"
mode = "enforce"
destinations = [{ cidr = "127.0.0.1/32", ports = ["7801"], protocol = "tcp" }]
[[binding]]
license = "another"
selectors = ["systemd:unit:nobody-here.service"]
"""

PROBE = """
import errno, os, signal, socket, sys, time
open(sys.argv[1] + "/cgroup.procs", "w").write(str(os.getpid()))
# The server may be another's: what counts is whether connecting is refused by the policy.
counts, ending = {}, []
signal.signal(signal.SIGTERM, lambda *_: ending.append(1))
while not ending:
    with socket.socket() as s:
        error = s.connect_ex(("127.0.0.1", 7801))
    outcome = "ENOKEY" if error == errno.ENOKEY else "let through"
    counts[outcome] = counts.get(outcome, 0) + 1
    if sum(counts.values()) == 1:
        print("begun", flush=True)
    time.sleep(0.002)
print(counts, flush=True)
"""

LINKS = """
from pathlib import Path
from licagent.kernel import bpf_info, libbpf
for pin in sorted(Path("/mnt/licagent/links").iterdir()):
    info = bpf_info.link_info(libbpf.open_pin(pin))
    if info.cgroup_id:
        print(pin.name, info.id, info.program_id)
"""

pytestmark = [
    pytest.mark.timeout(900),
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount and load programs"),
]


@pytest.fixture(scope="module")
def versions(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The agent's package of this checkout, and the same with another version in each object."""
    made = subprocess.run(
        [sys.executable, "packaging/builder", "--deb"], cwd=ROOT, capture_output=True, check=True
    ).stdout.decode()
    first = next(Path(line) for line in made.splitlines() if "/licagent_" in line)
    folder = tmp_path_factory.mktemp("next")
    second = folder / f"licagent_{NEXT}_amd64.deb"
    files = folder / "files"
    subprocess.run(["dpkg-deb", "-R", first, files], check=True)
    control = files / "DEBIAN" / "control"
    number = first.name.split("_")[1]
    control.write_text(control.read_text().replace(f"Version: {number}\n", f"Version: {NEXT}\n"))
    (folder / "version").write_text(f"{NEXT}\n")
    for path in (files / "usr/lib/licagent/bpf").glob("*.bpf.o"):
        stamp = f".licagent.version={folder}/version"
        subprocess.run(["llvm-objcopy", "--update-section", stamp, path], check=True)
    subprocess.run(["dpkg-deb", "-Zgzip", "-z1", "-b", files, second], check=True)
    shutil.rmtree(files)
    return first, second


@pytest.fixture
def copy(tmp_path: Path) -> Iterator[RootCopy]:
    made = RootCopy(tmp_path, kernel=True)
    made.run("dpkg --purge licagent", check=False)
    yield made
    made.close()


@pytest.fixture
def cgroup() -> Iterator[Path]:
    with Path("/proc/mounts").open() as mounts:
        mount = next(line.split()[1] for line in mounts if line.split()[2] == "cgroup2")
    folder = Path(mount, f"licagent-test-package-{os.getpid()}")
    folder.mkdir()
    yield folder
    folder.rmdir()


def set_up(copy: RootCopy, cgroup: Path) -> None:
    """Settings for this cgroup, and a license that somebody else has."""
    key, now = SigningKey.create("tests"), int(time.time())
    token = sign_license(
        License(
            jti="another",
            issuer="tests",
            subject="tests",
            audience=AUDIENCE,
            number=1,
            generation=1,
            issued_at_s=now - 60,
            not_before_s=now - 60,
            expires_at_s=now + 3600,
            scope=LicenseScope(org="tests"),
            entitlements=(Entitlement("closed", ("connect",)),),
        ),
        key,
    )
    trust = TrustStore([TrustedKey.of(key.public_key, "tests")]).to_bytes().decode()
    settings = f'mode = "enforce"\nbpffs_dir = "/mnt/licagent"\ncgroup_root = "{cgroup}"\n'
    for name, text in (
        ("agent.toml", settings),
        ("trust.jwks", trust),
        ("licenses/another.lic", token),
        ("policy.d/closed.toml", POLICY),
    ):
        copy.run(f"cat >/etc/licagent/{name} <<'END'\n{text.rstrip()}\nEND")


def list_of(copy: RootCopy, folder: str) -> list[str]:
    return copy.run(f"ls {folder}").split()


def links(copy: RootCopy) -> dict[str, tuple[str, str]]:
    """Our links on cgroups: id, and the program's id, by the hook's name."""
    told = copy.run(f"/usr/lib/licagent/bin/python3 - <<'END'\n{LINKS}\nEND")
    return {name: (link, program) for name, link, program in map(str.split, told.splitlines())}


def test_versions_take_turns_without_a_gap(
    versions: tuple[Path, Path], copy: RootCopy, cgroup: Path
) -> None:
    first, second = (copy.put(path) for path in versions)
    copy.run(f"dpkg --install {first}")
    set_up(copy, cgroup)
    assert "is in force" in copy.run("licagent daemon --load-only")
    probe = subprocess.Popen(
        [sys.executable, "-c", PROBE, str(cgroup)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert probe.stdout is not None
        assert probe.stdout.readline() == "begun\n"
        for package in (second, first):  # an upgrade, and a downgrade
            before = links(copy)
            copy.run(f"dpkg --install {package}")
            copy.run("licagent daemon --load-only")
            after = links(copy)
            assert len(after) > 5
            assert before.keys() == after.keys()
            for hook in after:
                assert after[hook][0] == before[hook][0], hook  # the attachment is the same one
                assert after[hook][1] != before[hook][1], hook  # and another program is in it
    finally:
        probe.terminate()
        told = probe.communicate()[0]
    assert "let through" not in told
    assert "ENOKEY" in told

    # In a chroot the kernel is another system's: nothing is detached.
    copy.run("dpkg --remove licagent")
    assert len(list_of(copy, "/mnt/licagent/links")) > 5
    copy.run(f"dpkg --install {first}")
    copy.run("dpkg --purge licagent", as_host=True)
    assert "licagent" not in copy.run("ls /mnt")
    assert copy.run("ls -d /etc/licagent /var/lib/licagent", check=False).count("No such") == 2
