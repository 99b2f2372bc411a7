# SPDX-License-Identifier: Apache-2.0
"""The packages as files: what they hold, what lintian and rpmlint say, and what their scripts do.

They are installed into a copy of this machine's file system that only this test sees: an overlay
in a mount namespace of its own, without /sys, so that no agent of the machine is touched.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from tests.support.root_copy import RootCopy

ROOT = Path(__file__).parents[2]
NAMES = ("licagent", "licplane")
LOCKS = {"licagent": "agent.txt", "licplane": "run.txt"}

# Where a package may have files: the layout that units, roles and pages rely on.
LAYOUT = {
    name: (
        f"/etc/{name}/",
        f"/lib/systemd/system/{name}",
        f"/usr/bin/{name}",
        f"/usr/lib/{name}/",
        f"/usr/lib/systemd/system-preset/90-{name}.preset",
        f"/usr/lib/sysusers.d/{name}.conf",
        f"/usr/lib/tmpfiles.d/{name}.conf",
        f"/usr/share/{name}/",
        f"/usr/share/bash-completion/completions/{name}",
        f"/usr/share/doc/{name}/",
        f"/usr/share/fish/vendor_completions.d/{name}.fish",
        f"/usr/share/lintian/overrides/{name}",
        f"/usr/share/man/man1/{name}.1.gz",
        f"/usr/share/zsh/vendor-completions/_{name}",
    )
    for name in NAMES
}

pytestmark = [
    pytest.mark.timeout(900),  # the first use builds the packages, if ./dev package has not
    pytest.mark.slow,
]


def output(*command: str | Path) -> str:
    done = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="session")
def packages() -> dict[str, Path]:
    """The packages of this checkout, by "licagent.deb" and so on."""
    for tool in ("dpkg-buildpackage", "dh", "rpmbuild", "lintian", "rpmlint"):
        assert shutil.which(tool), f"{tool} is missing: run ./dev package once, as root"
    made = output(sys.executable, "packaging/builder").split()
    return {re.split("[_-]", Path(path).name)[0] + Path(path).suffix: Path(path) for path in made}


@pytest.fixture(scope="session")
def unpacked(packages: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The Debian packages' files, each below a folder of its name."""
    folder = tmp_path_factory.mktemp("unpacked")
    for name in NAMES:
        output("dpkg-deb", "-R", packages[f"{name}.deb"], folder / name)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def copy(tmp_path: Path) -> Iterator[RootCopy]:
    if os.geteuid() != 0:
        pytest.skip("only root may mount")
    made = RootCopy(tmp_path)
    yield made
    made.close()


def files(unpacked: Path, name: str) -> list[Path]:
    folder = unpacked / name
    return [
        path
        for path in folder.rglob("*")
        if "DEBIAN" not in path.relative_to(folder).parts[:1]
        and (path.is_symlink() or path.is_file())
    ]


@pytest.mark.parametrize("name", NAMES)
def test_files_are_where_the_layout_says(unpacked: Path, name: str) -> None:
    found = {f"/{path.relative_to(unpacked / name)}" for path in files(unpacked, name)}
    assert [path for path in sorted(found) if not path.startswith(LAYOUT[name])] == []
    for place in LAYOUT[name]:
        if place != "/usr/share/licplane/":  # the agent alone has BPF sources
            assert any(path.startswith(place) for path in found), place
    units = {path.name for path in (ROOT / "systemd").glob(f"{name}*.s*") if "sys" not in path.name}
    assert {Path(p).name for p in found if p.startswith("/lib/systemd/system/")} == units
    conffiles = (unpacked / name / "DEBIAN" / "conffiles").read_text().split()
    assert sorted(conffiles) == sorted(path for path in found if path.startswith("/etc/"))


def test_the_objects_are_those_of_the_sources(unpacked: Path) -> None:
    sources = {path.name.removesuffix(".c") for path in (ROOT / "bpf").glob("*.bpf.c")}
    objects = unpacked / "licagent/usr/lib/licagent/bpf"
    assert {path.name.removesuffix(".o") for path in objects.iterdir()} == sources
    kernel = unpacked / "licagent/usr/lib/licagent/site/licagent/kernel"
    assert (kernel / "bpf_objects").resolve() == objects.resolve()
    assert (kernel / "bpf_sources" / "maps.h").read_bytes() == (ROOT / "bpf/maps.h").read_bytes()


@pytest.mark.parametrize("name", NAMES)
def test_the_environment_is_the_lock_file_and_nothing_else(unpacked: Path, name: str) -> None:
    lock = (ROOT / "requirements" / LOCKS[name]).read_text()
    wanted = set(re.findall(r"^([a-z0-9._-]+)==([^ ;]+)", lock, re.MULTILINE))
    with (ROOT / "pyproject.toml").open("rb") as file:
        wanted.add(("licagent", tomllib.load(file)["project"]["version"]))
    site = unpacked / name / "usr/lib" / name / "site"
    found = set()
    for folder in site.glob("*.dist-info"):
        project, _, number = folder.name.removesuffix(".dist-info").rpartition("-")
        found.add((re.sub("[-_.]+", "-", project).lower(), number))
    assert found == wanted
    other = "licplane" if name == "licagent" else "licagent"
    assert not (site / other).exists()


@pytest.mark.parametrize("changed", ["byte code", "source", "object", "nothing"])
def test_the_agent_sees_that_what_runs_was_changed(unpacked: Path, changed: str) -> None:
    """The byte code runs, whatever the source beside it says."""
    home = unpacked / "licagent/usr/lib/licagent"
    package = home / "site/licagent"
    paths = {
        "byte code": package / "cli/__pycache__/main.cpython-311.pyc",
        "source": package / "cli/main.py",
        "object": home / "bpf/connect.bpf.o",
        "nothing": home / "bin/licagent",
    }
    path = paths[changed]
    before = path.read_bytes()
    looks = (
        "from licagent.host.integrity import *; found = Integrity(recorded(own_folders()));"
        "print(len(found) > 500, *found.check())"
    )
    try:
        path.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
        said = output(
            "python3.11",
            "-I",
            "-c",
            f"import sys; sys.path[:0] = [{str(home / 'site')!r}]; {looks}",
        )
    finally:
        path.write_bytes(before)
    assert said.split() == ["True", *([str(path)] if changed != "nothing" else [])]


def index_hosts() -> set[str]:
    """The hosts that this machine's pip asks, other than the public one."""
    told = output(sys.executable, "-m", "pip", "config", "list")
    told += " ".join(value for key, value in os.environ.items() if key.startswith("PIP_"))
    found = {urlsplit(url).hostname or "" for url in re.findall(r"https?://[^\s'\"]+", told)}
    return found - {"pypi.org", "files.pythonhosted.org", "", "127.0.0.1", "localhost"}


@pytest.mark.parametrize("name", NAMES)
def test_nothing_tells_of_the_machine_that_built_it(unpacked: Path, name: str) -> None:
    words = [str(ROOT), "licagent-package-", str(Path.home() / ".cache"), *index_hosts()]
    pattern = re.compile(b"|".join(re.escape(word.encode()) for word in words))
    found = {
        str(path): match[0]
        for path in [*files(unpacked, name), *(unpacked / name / "DEBIAN").iterdir()]
        if not path.is_symlink() and (match := pattern.search(path.read_bytes()))
    }
    assert found == {}


def test_lintian_finds_nothing(packages: dict[str, Path]) -> None:
    debs = (packages[f"{name}.deb"] for name in NAMES)
    assert output("lintian", "--allow-root", "--fail-on", "warning", *debs) == ""


def test_rpmlint_finds_nothing(packages: dict[str, Path]) -> None:
    said = output(
        "rpmlint",
        "-c",
        ROOT / "packaging/rpm/rpmlint.toml",
        *(packages[f"{name}.rpm"] for name in NAMES),
    )
    assert "2 packages and 0 specfiles checked; 0 errors, 0 warnings" in said, said


@pytest.mark.parametrize("name", NAMES)
def test_both_kinds_hold_the_same(packages: dict[str, Path], unpacked: Path, name: str) -> None:
    def plain(path: str) -> str:
        path = path.replace("/usr/share/zsh/site-functions", "/usr/share/zsh/vendor-completions")
        return path.replace("/usr/lib/systemd/system/", "/lib/systemd/system/")

    listed = output(
        "rpm", "-qp", "--qf", "[%{FILENAMES} %{FILEMODES:octal}\n]", packages[f"{name}.rpm"]
    )
    rpm = {
        plain(path)
        for path, mode in (line.rsplit(" ", 1) for line in listed.splitlines())
        if not stat.S_ISDIR(int(mode, 8)) and not path.startswith("/usr/share/licenses/")
    }
    own = {f"/usr/share/doc/{name}/copyright", f"/usr/share/doc/{name}/changelog.gz"}
    own.add(f"/usr/share/lintian/overrides/{name}")
    deb = {f"/{path.relative_to(unpacked / name)}" for path in files(unpacked, name)}
    assert rpm == deb - own
    conffiles = (unpacked / name / "DEBIAN" / "conffiles").read_text().split()
    assert output("rpm", "-qpc", packages[f"{name}.rpm"]).split() == sorted(conffiles)


def ours(copy: RootCopy) -> set[str]:
    """What is named like us where packages put files."""
    names = "-name '*licagent*' -o -name '*licplane*'"
    return set(copy.run(f"find /etc /lib/ /usr /var /run {names}").splitlines())


def test_debian_packages_install_run_and_go(packages: dict[str, Path], copy: RootCopy) -> None:
    paths = " ".join(copy.put(packages[f"{name}.deb"]) for name in NAMES)
    copy.run(f"dpkg --purge {' '.join(NAMES)}", check=False)  # of an agent that this machine has
    before = ours(copy)
    copy.run(f"dpkg --install {paths}")
    assert "/usr/bin/licplane" in ours(copy) - before

    # In a folder and with variables that hold a module of the same name, of another sort.
    copy.run(
        "mkdir -p /tmp/trap/licagent /tmp/trap/click && echo 'raise SystemExit(99)' |"
        " tee /tmp/trap/licagent/__init__.py >/tmp/trap/click/__init__.py"
    )
    run = "cd /tmp/trap && PYTHONPATH=/tmp/trap PYTHONSTARTUP=/tmp/trap/click/__init__.py"
    assert re.fullmatch(r"licagent [0-9.]+\n", copy.run(f"{run} licagent --version"))
    assert "Usage: licplane" in copy.run(f"{run} licplane --help")
    copy.run("licagent config check")
    copy.run("licplane --state /tmp/state db upgrade && test -s /tmp/state/*.db")
    assert copy.run("getent group licagent")
    assert ":/var/lib/licplane:/usr/sbin/nologin" in copy.run("getent passwd licplane")
    assert copy.run("stat -c '%U %a' /var/lib/licplane").split() == ["licplane", "700"]
    assert copy.run("ls /etc/systemd/system/multi-user.target.wants/licagent.service")
    # Nothing that ran wrote beside the package's files.
    assert copy.run("dpkg --verify licagent licplane") == ""
    assert copy.run("find /usr/lib/licagent /usr/lib/licplane -newer /var/lib/dpkg/status") == ""

    copy.run("echo changed >>/etc/licagent/agent.toml")
    copy.run("dpkg --remove licagent licplane")
    assert "changed" in copy.run("cat /etc/licagent/agent.toml")
    assert copy.run("ls -d /usr/lib/licagent /usr/lib/licplane", check=False).count("No such") == 2

    copy.run("dpkg --purge licagent licplane")
    assert ours(copy) - before == set()
    assert copy.run("getent group licagent; getent passwd licplane", check=False) == ""


def test_rpm_packages_install_into_a_root_run_and_go(
    packages: dict[str, Path], copy: RootCopy
) -> None:
    copy.run(f"dpkg --purge {' '.join(NAMES)}", check=False)
    paths = " ".join(copy.put(packages[f"{name}.rpm"]) for name in NAMES)
    rpm = f"rpm --root {copy.root} --dbpath /var/lib/rpm-test"
    # Dependencies are names of another distribution; their programs are here all the same.
    inside = " ".join(f"{copy.root}{path}" for path in paths.split())
    copy.run(f"{rpm} --install --nodeps {inside}", chroot=False)
    assert copy.run(f"{rpm} --verify --nodeps licagent licplane", chroot=False) == ""
    assert re.fullmatch(r"licagent [0-9.]+\n", copy.run("licagent --version"))
    assert "Usage: licplane" in copy.run("licplane --help")
    copy.run("licagent config check")
    assert copy.run("getent group licagent")
    copy.run("echo changed >>/etc/licagent/agent.toml")
    copy.run(f"{rpm} --install --force --nodeps {inside}", chroot=False)
    assert "changed" in copy.run("cat /etc/licagent/agent.toml")  # an administrator's file stays
    copy.run(f"{rpm} --erase licagent licplane", chroot=False)
    assert copy.run("ls -d /usr/lib/licagent /usr/bin/licplane", check=False).count("No such") == 2
    assert "changed" in copy.run("cat /etc/licagent/agent.toml.rpmsave")
