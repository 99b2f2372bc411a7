# SPDX-License-Identifier: Apache-2.0
"""The tutorial's commands work as they stand, and print what it says they print."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.kernel.harness.cgroups import CgroupTree, mount_point
from tests.support.pages import matches
from tests.system.harness.controlplane import address
from tests.system.harness.scene import STRANGER, Scene, eventually

from licagent.kernel.bpffs import PinFolder

ROOT = Path(__file__).parents[2]
TUTORIAL = ROOT / "docs" / "tutorial.md"
PATIENT = Path(__file__).parent / "pages" / "patient.sh"
FOLDER = "licagent-tutorial"
CGROUP = "tutorial-cgroup"
PORTS = ("8123", "8443", "8444")
END = "=== end of block ==="

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


def blocks() -> list[tuple[str, str]]:
    """(commands, what they print or nothing) in order; not the set-up of the clone."""
    fences = re.findall(r"^```(\w+)\n(.*?)^```$", TUTORIAL.read_text(), re.DOTALL | re.MULTILINE)
    found: list[tuple[str, str]] = []
    for kind, text in fences:
        if kind == "sh" and "./dev setup" not in text:
            found.append((text, ""))
        elif kind == "text":
            found[-1] = (found[-1][0], text)
    return found


@pytest.fixture
def home() -> Iterator[Path]:
    """A home and a cgroup name that no other run uses; whatever it left is taken away."""
    folder = Path(tempfile.mkdtemp(prefix="tutorial-"))
    yield folder
    cgroup = mount_point() / f"{CGROUP}-{folder.name}"
    PinFolder(folder / FOLDER / "bpf").remove()
    if cgroup.exists():
        CgroupTree(cgroup.parent, cgroup.name).remove()
    shutil.rmtree(folder)


def adapted(text: str, home: Path, ports: dict[str, int]) -> str:
    """Only what two runs at once would fight over: ports and the cgroup's name."""
    text = re.sub("|".join(ports), lambda found: str(ports[found[0]]), text)
    control = f"--listen 127.0.0.1:{ports['8443']} --public-listen 127.0.0.1:{ports['8444']}"
    text = text.replace("licplane serve ", f"licplane serve {control} ")
    return text.replace(CGROUP, f"{CGROUP}-{home.name}")


def test_the_tutorial_works_as_written(home: Path) -> None:
    ports = {written: int(address().rpartition(":")[2]) for written in PORTS}
    commands = blocks()
    assert len(commands) > 8
    # Nothing may be made or removed outside of the folder that the first block goes to.
    script = f"source {PATIENT}\n" + "".join(
        f"{adapted(text, home, ports)}\ncase $PWD in ~|~/{FOLDER}) ;; *) exit 1; esac\n"
        f"echo; echo '{END}'\n"
        for text, _wanted in commands
    )
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("LICAGENT_", "LICPLANE_")) and not name.endswith("_proxy")
    }
    done = subprocess.run(
        ["bash"],
        input=script,
        env=environment | {"HOME": str(home), "no_proxy": "*"},
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
        check=False,
    )
    printed = done.stdout.split(END)
    assert len(printed) == len(commands) + 1, done.stdout[-4000:]
    for (text, wanted), output in zip(commands, printed, strict=False):
        for line in wanted.splitlines():
            expected = adapted(f"{line}\n", home, ports)
            assert matches(expected, output), f"{text}\nprinted\n{output}\nwithout\n{line}"
    assert list(home.iterdir()) == [], printed[-2]
    assert not (mount_point() / f"{CGROUP}-{home.name}").exists()
    assert str(home) not in Path("/proc/mounts").read_text()


def test_every_key_of_an_event_is_in_the_reference(scene: Scene) -> None:
    page = (ROOT / "docs" / "reference" / "events.md").read_text()
    documented = set(re.findall(r"`([a-z_]+)`", page))
    with scene.program(STRANGER) as (program, _report):
        eventually(lambda: scene.cli("events", "--json", "--pid", str(program.pid)).lines)
    scene.cli("break-glass", "--for", "1m", "--reason", "test")
    scene.cli("break-glass", "--end")
    scene.cli("license", "revoke", "acme", "--reason", "test")
    records = scene.cli("events", "--json").lines
    assert {record["kind"] for record in records} >= {"decision", "policy", "break-glass"}
    for record in records:
        keys = {*record, *(record.get("process") or {}), *(record.get("network") or {})}
        assert keys <= documented, keys - documented
        assert record["kind"] in documented | {"break-glass"}


def test_the_example_of_an_event_has_the_keys_of_a_real_one(scene: Scene) -> None:
    example = json.loads((ROOT / "docs/reference/examples/events.json").read_text())
    with scene.program(STRANGER) as (program, _report):
        wanted = ("events", "--json", "--verdict", "deny", "--pid", str(program.pid))
        real = eventually(lambda: scene.cli(*wanted).lines)[0]
    assert list(real) == list(example)
    assert list(real["process"]) == list(example["process"])
    assert list(real["network"]) == list(example["network"])
