# SPDX-License-Identifier: Apache-2.0
"""The commands of the how-to pages work as they stand, in scratch installations.

Every ```sh block is run, in order and in one shell, and every command in it must succeed; blocks
that cannot be run say so in the page (tests/support/pages.py). Paths of an installation are
replaced by folders of the test, nothing else. tests/system/pages/stage.sh is the installation.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.kernel.harness.cgroups import CgroupTree, mount_point
from tests.support.pages import ROOT, Block, blocks, matches

from licagent.kernel.bpffs import PinFolder

STAGE = Path(__file__).parent / "pages" / "stage.sh"
END = "=== end of block ==="
FAILED = "=== failed"
LIMIT_S = 400
PLACES = {
    "/etc/licagent": "etc/licagent",
    "/etc/licplane": "etc/licplane",
    "/var/lib/licagent": "var/licagent",
    "/var/lib/licplane": "var/licplane",
    "/var/backups": "var/backups",
    "/run/licagent": "run",
    "/root/": "home/",
}

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@dataclass(frozen=True, slots=True)
class Scenario:
    """Pages that are read one after the other, and what they take for granted."""

    pages: tuple[str, ...]
    before: str  # commands of stage.sh


SCENARIOS = (
    Scenario(("how-to/issue-licenses.md",), "echo words of a test >$HOME/licplane.passphrase"),
    Scenario(("how-to/license-a-service.md",), "issuer; host"),
    Scenario(("how-to/observe-then-enforce.md",), "issuer; host observe; licensed"),
    Scenario(
        (
            "how-to/run-a-command.md",
            "how-to/watch-usage.md",
            "how-to/protect-the-agent.md",
            "how-to/monitor.md",
            "operations/runbooks.md",
            "operations/troubleshooting.md",
            "how-to/locked-out.md",
        ),
        "issuer; host; licensed; orders; licagent policy apply orders.toml >/dev/null",
    ),
    Scenario(("how-to/revoke.md",), "issuer; fleet; licensed"),
    Scenario(("how-to/link-down.md",), "fleet; stop_serving; within 30 waiting"),
    Scenario(("how-to/enroll-hosts.md",), "serving; host"),
    Scenario(
        ("how-to/run-a-control-plane.md",),
        "policy; export LICPLANE_PASSPHRASE='a long passphrase of your own'",
    ),
    Scenario(
        (
            "how-to/usage.md",
            "how-to/billing.md",
            "how-to/license-a-pipeline.md",
            "how-to/back-up-and-restore.md",
            "how-to/decommission-a-host.md",
        ),
        "fleet; mkdir -p $STAGE/etc/licplane $STAGE/var/backups; "
        "openssl rand -base64 32 >$STAGE/etc/licplane/hook.key; "
        "echo 'words of a test' >$HOME/licplane.passphrase; "
        "printf '#!/bin/sh\\nnc -z -w 5 10.0.5.7 5433\\n' >deploy.sh; chmod +x deploy.sh",
    ),
)


@pytest.fixture
def stage() -> Iterator[Path]:
    """A folder of the page's own; whatever it left is taken away."""
    folder = Path(tempfile.mkdtemp(prefix="licagent-page-"))
    cgroup = mount_point() / folder.name
    cgroup.mkdir()
    yield folder
    PinFolder(folder / "bpf").remove()
    if cgroup.exists():
        CgroupTree(cgroup.parent, cgroup.name).remove()
    shutil.rmtree(folder)


def placed(text: str, stage: Path) -> str:
    """With the paths and the one name of this installation."""
    for installed, here in PLACES.items():
        text = text.replace(installed, f"{stage}/{here}")
    return text.replace("plane.example.net", "127.0.0.1")


@dataclass(slots=True)
class Step:
    """A block to be run, and the lines that it has to print."""

    page: str
    block: Block
    wanted: list[str]


def steps(page: str) -> list[Step]:
    """What a page has one do."""
    found: list[Step] = []
    for block in blocks(ROOT / "docs" / page):
        if block.not_run or block.kind == "sh" or block.file:
            found.append(Step(page, block, []))
        elif block.kind == "text" and found:
            found[-1].wanted.extend(line for line in block.text.splitlines() if line.strip())
    return [step for step in found if not step.block.not_run]


def shell(block: Block, stage: Path) -> str:
    """A block as commands: data becomes the file of its name."""
    if not block.file:
        return placed(block.text, stage)
    return f"cat >{block.file} <<'=== FILE'\n{placed(block.text, stage)}=== FILE\n"


@needs_root
@pytest.mark.slow
@pytest.mark.timeout(LIMIT_S + 60)
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.pages[0])
def test_the_commands_of_pages_work_as_written(scenario: Scenario, stage: Path) -> None:
    todo = [step for page in scenario.pages for step in steps(page)]
    assert {step.page for step in todo if step.block.kind == "sh"} == set(scenario.pages)
    script = [f"source {STAGE}", scenario.before, "set +eu -E"]
    script += [f"trap 'echo \"{FAILED} ($?): $BASH_COMMAND\"' ERR", f"echo; echo '{END}'"]
    script += [f"{shell(step.block, stage)}\necho; echo '{END}'" for step in todo]
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("LICAGENT_", "LICPLANE_")) and not name.endswith("_proxy")
    }
    done = subprocess.run(
        ["unshare", "--net", "--uts", "bash"],
        input="\n".join(script) + "\n",
        env=environment
        | {"STAGE": str(stage), "CGROUP": str(mount_point() / stage.name), "ROOT": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    printed = done.stdout.split(END)
    assert len(printed) == len(todo) + 2, done.stdout[-6000:]
    for step, output in zip(todo, printed[1:], strict=False):
        where = f"{step.page}:{step.block.line}:\n{step.block.text}\nprinted\n{output}"
        assert step.block.may_fail or FAILED not in output, where
        for line in step.wanted:
            assert matches(placed(line, stage), output), f"{where}\nwithout\n{line}"
