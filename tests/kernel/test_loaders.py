# SPDX-License-Identifier: Apache-2.0
"""Both loaders: prebuilt objects by libbpf, and the same sources compiled on the host by bcc."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest
from tests.kernel.harness.agent import AgentUnderTest
from tests.kernel.harness.cgroups import CgroupTree
from tests.kernel.harness.dial import answer_of, dialer
from tests.kernel.harness.subjects import NO_LICENSE, Rules

from licagent.kernel import bpf_info, libbpf
from licagent.kernel.bpffs import PinFolder
from licagent.kernel.build import object_folder, source_folder
from licagent.kernel.hooks import BTF_OBJECTS, CORE_OBJECTS, HOOKS
from licagent.kernel.layout import MAP_SIZES
from licagent.kernel.libbpf import BpfError
from licagent.kernel.maps import check_layout

pytest_plugins = ["tests.kernel.harness.fixtures"]

MakeAgent = Callable[..., AgentUnderTest]

HAS_BCC: Final = Path("/usr/lib/python3/dist-packages/bcc").is_dir() or any(
    Path("/usr/lib").glob("python3*/site-packages/bcc")
)
needs_bcc: Final = pytest.mark.skipif(not HAS_BCC, reason="bcc is not installed (python3-bpfcc)")
LOADERS: Final = ["prebuilt", pytest.param("bcc", marks=needs_bcc)]


def kernel_version() -> tuple[int, ...]:
    return tuple(int(part) for part in os.uname().release.split("-")[0].split(".")[:2])


def hook_rows(agent: AgentUnderTest) -> dict[str, dict[str, Any]]:
    return {row["hook"]: row for row in agent.coverage() if row["hook"] is not None}


def map_ids(agent: AgentUnderTest) -> dict[str, int]:
    ids = {}
    for pin in (PinFolder(agent.bpffs).maps).iterdir():
        fd = libbpf.open_pin(pin)
        try:
            ids[pin.name] = bpf_info.map_info(fd).id
        finally:
            os.close(fd)
    return ids


@pytest.mark.parametrize("loader", LOADERS)
def test_every_hook_is_attached_and_names_its_loader(loader: str, make_agent: MakeAgent) -> None:
    agent = make_agent(loader=loader)
    agent.start()
    rows = hook_rows(agent)

    assert rows.keys() == {hook.name for hook in HOOKS}
    for hook in HOOKS:
        row = rows[hook.name]
        needed = tuple(int(part) for part in hook.kernel.split(",")[0].split(" ")[0].split("."))
        if kernel_version() < needed:
            assert row["state"] == "closed" or (row["detail"] and row["kernel_needed"]), row
            continue
        assert row["state"] == "closed", row
        assert row["loader"] == (loader if hook.object in CORE_OBJECTS else "prebuilt"), row


@pytest.mark.parametrize("loader", LOADERS)
def test_the_daemon_holds_no_compiler(loader: str, make_agent: MakeAgent) -> None:
    agent = make_agent(loader=loader)
    agent.start()
    agent.policy("")
    mapped = Path(f"/proc/{agent.pid}/maps").read_text()

    assert "libbpf" in mapped, "it does not even load libbpf: this test looks at the wrong process"
    for library in ("libbcc", "libLLVM", "libclang", "/bcc/"):
        assert library not in mapped, library


@needs_bcc
def test_changing_the_loader_changes_the_programs_and_keeps_the_maps(
    make_agent: MakeAgent, dial: Path
) -> None:
    agent = make_agent(loader="prebuilt")
    agent.start()
    with CgroupTree(agent.cgroup, "yes") as inside, CgroupTree(agent.cgroup, "no") as outside:
        rules = Rules(agent, inside.root)
        rules.allow(f"cgroup:path:{rules.path(inside.root)}")
        ids, programs = [map_ids(agent)], []
        for loader in ("prebuilt", "bcc", "prebuilt"):
            if loader != agent.loader:
                agent.stop()
                agent.loader = loader
                agent.start()
                ids.append(map_ids(agent))
            hooks = agent.call("status")["kernel"]["programs"]
            programs.append({row["hook"]: row["program_id"] for row in hooks})
            loaders = {row["hook"]: row["loader"] for row in hook_rows(agent).values()}
            assert loaders["cgroup_connect4"] == loader
            assert answer_of(inside.root, dial, rules.to) == "OK"
            assert answer_of(outside.root, dial, rules.to) == NO_LICENSE

        assert ids[0] == ids[1] == ids[2]
        assert programs[0]["cgroup_connect4"] != programs[1]["cgroup_connect4"]
        assert agent.count(verdict="allow") == agent.count(verdict="deny") == 3


@needs_bcc
def test_a_process_that_runs_while_the_loader_changes_is_never_let_through_or_refused(
    make_agent: MakeAgent, dial: Path
) -> None:
    agent = make_agent(loader="prebuilt")
    agent.start()
    with CgroupTree(agent.cgroup, "yes") as inside, CgroupTree(agent.cgroup, "no") as outside:
        rules = Rules(agent, inside.root)
        rules.allow(f"cgroup:path:{rules.path(inside.root)}", f"unix:path:{dial}")
        with (
            dialer(inside.root, dial, rules.to) as good,
            dialer(outside.root, dial, rules.to) as bad,
        ):
            good.until("OK")
            agent.kill()
            agent.loader = "bcc"
            agent.start(wait=False)
            assert agent.process is not None
            said = set()
            while agent.process.poll() is None and not agent.answers():
                said.add((good.ask(), bad.ask()))
            said.add((good.ask(), bad.ask()))

            assert said == {("OK", NO_LICENSE)}
            assert hook_rows(agent)["cgroup_connect4"]["loader"] == "bcc"


@pytest.fixture
def objects(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the built objects that the test may break."""
    copy = folder / "objects"
    shutil.copytree(object_folder(), copy)
    monkeypatch.setenv("LICAGENT_BPF_OBJECTS", str(copy))
    return copy


def objects_of(name: str, folder: Path) -> list[Path]:
    """The files of one object; some have a plain form beside them."""
    names = {f"{name}.bpf.o", f"{name}_plain.bpf.o"}
    return [path for path in folder.iterdir() if path.name in names]


@needs_bcc
def test_auto_takes_bcc_where_the_objects_of_the_core_are_missing(
    make_agent: MakeAgent, objects: Path, dial: Path
) -> None:
    for name in CORE_OBJECTS:
        for path in objects_of(name, objects):
            path.unlink()
    agent = make_agent(loader="auto")
    agent.start()

    loaders = {row["hook"]: row["loader"] for row in hook_rows(agent).values()}
    assert loaders["cgroup_connect4"] == loaders["cgroup_egress"] == "bcc"
    assert loaders["sched_process_exec"] == "prebuilt"
    with CgroupTree(agent.cgroup, "yes") as inside, CgroupTree(agent.cgroup, "no") as outside:
        rules = Rules(agent, inside.root)
        rules.allow(f"cgroup:path:{rules.path(inside.root)}")
        assert answer_of(inside.root, dial, rules.to) == "OK"
        assert answer_of(outside.root, dial, rules.to) == NO_LICENSE


@needs_bcc
def test_auto_takes_bcc_where_an_object_of_the_core_is_broken(
    make_agent: MakeAgent, objects: Path
) -> None:
    for path in objects_of("connect", objects):
        path.write_bytes(path.read_bytes()[:5000])
    agent = make_agent(loader="auto")
    agent.start()

    rows = hook_rows(agent)
    assert {row["state"] for row in rows.values()} == {"closed"}, rows
    assert rows["cgroup_connect4"]["loader"] == "bcc"


def test_auto_takes_the_prebuilt_objects_where_they_load(make_agent: MakeAgent) -> None:
    agent = make_agent(loader="auto")
    agent.start()

    assert {row["loader"] for row in hook_rows(agent).values()} == {"prebuilt"}


@pytest.mark.parametrize("name", [*CORE_OBJECTS, *BTF_OBJECTS])
@pytest.mark.parametrize("how", ["missing", "cut", "no object"])
def test_an_object_that_does_not_load_is_told(
    how: str, name: str, make_agent: MakeAgent, objects: Path
) -> None:
    for path in objects_of(name, objects):
        if how == "missing":
            path.unlink()
        else:
            path.write_bytes(path.read_bytes()[:5000] if how == "cut" else b"nothing of the kind")
    agent = make_agent(loader="prebuilt")
    agent.start()

    rows, status = hook_rows(agent), agent.call("status")
    for hook in HOOKS:
        row = rows[hook.name]
        if hook.object == name:
            assert row["state"] == "open", row
            assert hook.without in row["detail"], row
            assert len(row["detail"]) > len(hook.without) + 5, "why is not said"
        else:
            assert row["state"] == "closed", row
    lost = {hook.name for hook in HOOKS if hook.object == name}
    assert {row["hook"] for row in status["kernel"]["missing"]} == lost
    assert status["state"] == "degraded", status["state"]


@pytest.fixture
def refused_program(folder: Path, objects: Path) -> str:
    """One program of one object does not pass the verifier; answers its hook's name."""
    sources = folder / "bpf"
    shutil.copytree(source_folder(), sources)
    source = sources / "connect.bpf.c"
    text = source.read_text()
    head, tail = text.split("int licagent_sendmsg6(struct bpf_sock_addr *ctx)\n{\n", 1)
    broken = "int licagent_sendmsg6(struct bpf_sock_addr *ctx)\n{\n\t*(volatile int *)7 = 1;\n"
    source.write_text(head + broken + tail)
    made = folder / "made"
    subprocess.run(["make", "-s", "-C", sources, f"OUTPUT={made}"], check=True, capture_output=True)
    for path in objects_of("connect", made):
        shutil.copy2(path, objects)
    return "cgroup_sendmsg6"


def test_one_program_that_the_verifier_refuses_takes_no_other_with_it(
    make_agent: MakeAgent, refused_program: str
) -> None:
    agent = make_agent(loader="prebuilt")
    agent.start()

    rows = hook_rows(agent)
    assert [name for name, row in rows.items() if row["state"] != "closed"] == [refused_program]
    assert rows[refused_program]["detail"]


def test_a_program_that_does_not_load_in_an_upgrade_leaves_the_old_one_and_is_told(
    make_agent: MakeAgent, request: pytest.FixtureRequest, dial: Path
) -> None:
    agent = make_agent(loader="prebuilt")
    agent.start()
    with CgroupTree(agent.cgroup, "no") as outside:
        rules = Rules(agent, outside.root)
        rules.allow("cgroup:path:/yes")
        agent.stop()
        refused = request.getfixturevalue("refused_program")
        agent.start()

        row = hook_rows(agent)[refused]
        assert row["state"] == "partial", row
        assert row["detail"]
        assert agent.call("status")["state"] == "degraded"
        assert answer_of(outside.root, dial, rules.to) == NO_LICENSE


@pytest.mark.parametrize("loader", ["prebuilt", "auto"])
def test_without_any_object_the_daemon_says_so_and_ends(
    loader: str, make_agent: MakeAgent, objects: Path
) -> None:
    for path in objects.iterdir():
        path.unlink()
    agent = make_agent(loader=loader)
    agent.start(wait=False)
    assert agent.process is not None

    assert agent.process.wait(60) == 1
    assert "make -C bpf" in agent.log()


@needs_bcc
def test_bcc_needs_no_kernel_headers(folder: Path) -> None:
    """The loader sees neither /lib/modules nor /usr/src; its mounts and pins end with it."""
    bpffs = folder / "bpf"
    hide = (
        "for place in /lib/modules /usr/src; do "
        '[ ! -d "$place" ] || mount -t tmpfs hidden "$place"; done'
    )
    with CgroupTree() as tree:
        command = [sys.executable, "-m", "licagent.kernel.loader", "--loader", "bcc"]
        command += ["--bpffs", str(bpffs), "--cgroup", str(tree.root)]
        done = subprocess.run(
            ["unshare", "--mount", "sh", "-c", f'set -e; {hide}; exec "$@"', "sh", *command],
            capture_output=True,
            check=False,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        report = json.loads(done.stdout.splitlines()[-1])

    states = {state["name"]: state for state in report["hooks"]}
    for hook in HOOKS:
        if hook.required:
            assert states[hook.name]["attached"], states[hook.name]
            assert states[hook.name]["loader"] == "bcc"


def test_maps_of_another_shape_are_refused_before_anything_is_written(
    make_agent: Callable[..., AgentUnderTest], monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = make_agent()
    agent.start()
    maps = PinFolder(agent.bpffs).maps
    check_layout(maps)
    monkeypatch.setitem(MAP_SIZES, "tags", (4, 8))
    with pytest.raises(BpfError, match="licagent detach"):
        check_layout(maps)
