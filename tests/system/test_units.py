# SPDX-License-Identifier: Apache-2.0
"""The units as systemd itself reads and judges them, without a running systemd."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "systemd"
UNITS = sorted(path.name for path in FOLDER.iterdir() if path.suffix in {".service", ".socket"})
EXPOSURE_MOST = {
    "licagent.service": 25,
    "licagent-load.service": 25,
    "licagent-uplink.service": 15,
    "licagent-join.service": 15,
    "licplane.service": 15,
    "licplane-migrate.service": 15,
}
"""Tenths, as `systemd-analyze security --threshold` takes them."""


@pytest.fixture(scope="module", autouse=True)
def _has_systemd() -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")


def run(*words: str | Path) -> subprocess.CompletedProcess[str]:
    """A command, to its end."""
    return subprocess.run(
        [str(word) for word in words], capture_output=True, text=True, check=False, timeout=60
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The units, with a program that exists in place of the installed one."""
    made = tmp_path_factory.mktemp("units")
    for name in UNITS:
        text = (FOLDER / name).read_text()
        (made / name).write_text(re.sub(r"/usr/bin/lic(agent|plane)\b", "/bin/true", text))
    return made


def test_every_service_has_a_bound() -> None:
    assert {name for name in UNITS if name.endswith(".service")} == set(EXPOSURE_MOST)


def test_systemd_finds_nothing_wrong_with_them(folder: Path) -> None:
    done = run("systemd-analyze", "verify", "--man=no", *sorted(folder.iterdir()))
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


@pytest.mark.parametrize(("name", "most"), EXPOSURE_MOST.items())
def test_exposure(name: str, most: int) -> None:
    """`--threshold` alone would pass a unit that systemd-analyze cannot read."""
    done = run(
        *("systemd-analyze", "security", "--offline=yes", "--no-pager"),
        *(f"--threshold={most}", FOLDER / name),
    )
    found = re.search(r"Overall exposure level for \S+: (\d+\.\d)", done.stdout)
    assert found, done.stdout + done.stderr
    assert float(found[1]) * 10 <= most, done.stdout
    assert done.returncode == 0, done.stdout


def _settings(name: str) -> Iterator[tuple[str, str]]:
    section = ""
    for line in (FOLDER / name).read_text().splitlines():
        if line.startswith("["):
            section = line.strip("[]")
        elif "=" in line and not line.startswith(("#", ";")):
            key, _, value = line.partition("=")
            yield f"{section}.{key}", value


def _all(name: str, key: str) -> list[str]:
    return [word for found, value in _settings(name) if found == key for word in value.split()]


@pytest.mark.parametrize(
    "name", [name for name in EXPOSURE_MOST if name != "licagent-load.service"]
)
def test_each_capability_has_its_reason_written_beside_it(name: str) -> None:
    """Whoever adds a right says in the unit what it is for."""
    text = (FOLDER / name).read_text()
    for capability in _all(name, "Service.CapabilityBoundingSet"):
        short = capability.removeprefix("CAP_")
        assert re.search(rf"^#   .*\b{short}\b.*\w{{4,}}", text, re.MULTILINE), (
            f"{name}: why {capability}?"
        )


def test_the_loader_has_no_right_that_the_daemon_lacks() -> None:
    loader, daemon = (
        set(_all(name, "Service.CapabilityBoundingSet"))
        for name in ("licagent-load.service", "licagent.service")
    )
    assert loader <= daemon


def test_nothing_of_the_boot_waits_for_the_loader_but_the_network() -> None:
    """And nothing at all waits for the network on our account, of the agent's."""
    before = set(_all("licagent-load.service", "Unit.Before"))
    assert before == {"network-pre.target", "licagent.service", "shutdown.target"}
    for name in ("licagent.service", "licagent-load.service", "licagent-uplink.service"):
        waits = _all(name, "Unit.After") + _all(name, "Unit.Requires") + _all(name, "Unit.Wants")
        assert "network-online.target" not in waits


def test_users_folders_and_presets_are_as_systemd_reads_them(tmp_path: Path) -> None:
    """sysusers and tmpfiles make what the units name, in a root of their own."""
    (tmp_path / "etc").mkdir()
    for name in ("licagent", "licplane"):
        done = run("systemd-sysusers", f"--root={tmp_path}", FOLDER / f"{name}.sysusers")
        assert done.returncode == 0, done.stderr
        done = run(
            *("systemd-tmpfiles", "--create", f"--root={tmp_path}"), FOLDER / f"{name}.tmpfiles"
        )
        assert done.returncode == 0, done.stderr
    groups = (tmp_path / "etc/group").read_text()
    assert all(f"\n{name}:" in f"\n{groups}" for name in ("licagent", "licplane"))
    assert "licplane:" in (tmp_path / "etc/passwd").read_text()
    assert (tmp_path / "var/lib/licagent").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "var/lib/licplane").stat().st_mode & 0o777 == 0o700
    for name in ("90-licagent.preset", "90-licplane.preset"):
        for line in (FOLDER / name).read_text().splitlines():
            if not line.startswith("#"):
                verb, unit = line.split()
                assert verb in {"enable", "disable"}
                assert unit in UNITS


def test_what_cannot_be_decrypted_keeps_no_daemon_from_starting() -> None:
    """systemd ends the start of a service whose credential it cannot decrypt, each time."""
    for name in ("licagent.service", "licagent-load.service", "licagent-uplink.service"):
        assert not _all(name, "Service.LoadCredentialEncrypted")
    assert "licagent-join.service" in _all("licagent.service", "Unit.Wants")
    assert "licagent-join.service" in _all("licagent.service", "Unit.After")
    (source, target) = _all("licagent-join.service", "Service.ExecStart")[-2:]
    assert source.removeprefix("%d/") in _all(
        "licagent-join.service", "Service.LoadCredentialEncrypted"
    )
    assert Path(target).name in _all("licagent.service", "Service.LoadCredential")


def test_systemd_waits_longer_than_the_daemon_takes_to_end() -> None:
    """What is killed at its end is started again, and `licagent detach` would be undone."""
    from licagent.daemon.ending import WITHIN_S

    (stop_s,) = _all("licagent.service", "Service.TimeoutStopSec")
    assert float(stop_s.removesuffix("s")) >= 1.5 * WITHIN_S


def test_the_status_of_a_detached_daemon_ends_the_service() -> None:
    """What root has taken away is not started again (licagent.cli.exits)."""
    from licagent.cli.exits import DETACHED

    assert _all("licagent.service", "Service.RestartPreventExitStatus") == [str(DETACHED)]
    assert _all("licagent.service", "Service.SuccessExitStatus") == [str(DETACHED)]
