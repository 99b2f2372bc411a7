# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import ctypes
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from licagent.domain.tables import Scope, ScopeKind
from licagent.host import cgroups as module
from licagent.host.cgroup_names import container_id
from licagent.host.cgroups import (
    CgroupError,
    CgroupNames,
    CgroupTree,
    cgroup_of_process,
    find_mount,
    matches,
    names_of,
)

ID = "0123456789abcdef" * 4
OTHER = "fedcba9876543210" * 4
Start = Callable[..., subprocess.Popen[bytes]]


def test_the_mount_is_found_wherever_it_is(tmp_path: Path) -> None:
    mounts = tmp_path / "mounts"
    mounts.write_text(
        "cgroup /sys/fs/cgroup/cpu cgroup rw 0 0\n"
        "cgroup2 /sys/fs/my\\040cgroups cgroup2 rw,nsdelegate 0 0\n"
        "cgroup2 /somewhere/else cgroup2 rw 0 0\n"
    )
    assert find_mount(mounts) == Path("/sys/fs/my cgroups")
    mounts.write_text("cgroup /sys/fs/cgroup/cpu cgroup rw 0 0\n")
    with pytest.raises(CgroupError, match="mount -t cgroup2"):
        find_mount(mounts)


def test_a_root_outside_the_tree_is_refused(tmp_path: Path) -> None:
    for root in (tmp_path, "/", "/nonexistent"):
        with pytest.raises(CgroupError, match="cgroup_root"):
            CgroupTree.open(root)


def test_ids_are_the_kernels(tree: CgroupTree) -> None:
    made = tree.create("/a/b")
    assert made.path == "/a/b"
    assert tree.id_of("/a/b") == made.id
    assert tree.path_of(made.id) == "/a/b"
    assert tree.path_of(tree.id_of()) == "/"

    # name_to_handle_at(2) gives the id that the kernel itself uses.
    class Handle(ctypes.Structure):
        _fields_ = (("bytes", ctypes.c_uint), ("type", ctypes.c_int), ("id", ctypes.c_uint64))

    handle = Handle(8, 0, 0)
    mount_id = ctypes.c_int()
    libc = ctypes.CDLL(None, use_errno=True)
    path = bytes(tree.directory("/a/b"))
    assert (
        libc.name_to_handle_at(-100, path, ctypes.byref(handle), ctypes.byref(mount_id), 0) == 0
    ), os.strerror(ctypes.get_errno())
    assert handle.id == made.id


@pytest.mark.parametrize("by_handle", [True, False])
def test_an_id_that_is_gone_or_outside_has_no_path(
    tree: CgroupTree, by_handle: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not by_handle:

        def refuse(_mount: Path, _id: int) -> str:
            raise PermissionError(1, "not permitted")

        monkeypatch.setattr(module, "_path_by_handle", refuse)
    made = tree.create("/a")
    assert tree.path_of(made.id) == "/a"
    tree.remove("/a")
    assert tree.path_of(made.id) is None
    assert tree.path_of(CgroupTree.open().id_of()) is None  # the whole tree's root
    assert tree.path_of(2**40) is None


def test_walk_meets_parents_first_and_everything_once(tree: CgroupTree) -> None:
    paths = ["/a", "/a/b", "/a/b/c", "/a/d", "/e"]
    for path in paths:
        tree.create(path)
    walked = [cgroup.path for cgroup in tree.walk()]
    assert sorted(walked) == ["/", *paths]
    for path in walked[1:]:
        parent = str(Path(path).parent)
        assert walked.index(parent) < walked.index(path)
    assert [(c.id, c.path) for c in tree.walk("/a/b")] == [
        (tree.id_of("/a/b"), "/a/b"),
        (tree.id_of("/a/b/c"), "/a/b/c"),
    ]
    assert list(tree.walk("/nothing")) == []


def test_walk_survives_folders_that_go_away(tree: CgroupTree) -> None:
    for path in ("/a/b", "/c/d"):
        tree.create(path)
    walked = []
    for cgroup in tree.walk():
        walked.append(cgroup.path)
        if len(walked) == 2:
            tree.remove("/c" if cgroup.path == "/a" else "/a")
    assert walked[0] == "/"


def test_processes_and_their_cgroup(tree: CgroupTree, start: Start) -> None:
    tree.create("/a/b")
    process = start("sleep", "60")
    assert tree.of_process(process.pid) is None  # outside the subtree
    tree.enter("/a/b", process.pid)
    assert tree.of_process(process.pid) == "/a/b"
    assert tree.processes("/a/b") == (process.pid,)
    assert tree.processes("/a") == ()
    whole = CgroupTree.open()
    assert whole.of_process(process.pid) == cgroup_of_process(process.pid)
    assert cgroup_of_process(process.pid) == f"/{tree.root.name}/a/b"
    with pytest.raises(CgroupError, match=str(process.pid)):
        tree.remove("/a")
    tree.enter("/", process.pid)
    assert tree.of_process(process.pid) == "/"
    tree.remove("/a")
    process.kill()
    process.wait()
    assert tree.of_process(process.pid) is None


def test_a_sibling_whose_name_begins_alike_is_outside(tree: CgroupTree, start: Start) -> None:
    tree.create("/a")
    tree.create("/ab")
    inner = CgroupTree.open(tree.directory("/a"))
    process = start("sleep", "60")
    tree.enter("/ab", process.pid)
    assert inner.of_process(process.pid) is None
    assert inner.path_of(tree.id_of("/ab")) is None


def test_create_and_remove_are_idempotent(tree: CgroupTree) -> None:
    assert tree.create("/a/b") == tree.create("a/b/")
    tree.remove("/a")
    tree.remove("/a")
    with pytest.raises(CgroupError, match="root"):
        tree.remove("/")


@pytest.mark.parametrize("path", ["/..", "/a/../../b", "/./a"])
def test_paths_cannot_leave_the_tree(path: str) -> None:
    with pytest.raises(CgroupError, match=r"may not hold"):
        CgroupTree.open().directory(path)


@pytest.mark.parametrize(
    ("base", "expected"),
    [
        (f"docker-{ID}.scope", ID),
        (f"libpod-{ID}.scope", ID),
        (f"crio-{ID}.scope", ID),
        (f"cri-containerd-{ID}.scope", ID),
        (f"kubepods-besteffort-pod1.slice:cri-containerd:{ID}", ID),
        (ID, ID),
        (ID[:12], ID[:12]),
        (f"docker-{ID[:12]}.scope", ID[:12]),
        (ID[:11], None),
        (ID + "0", None),
        (ID.upper(), None),
        (f"libpod-conmon-{ID}.scope", None),
        (f"crio-conmon-{ID}.scope", None),
        ("pod8d3f1b2c-1111-2222-3333-0123456789ab", None),
        ("kubepods-pod8d3f1b2c_1111_2222_3333_0123456789ab.slice", None),
        (f"docker-{ID}.service", None),
        ("session-3.scope", None),
        ("", None),
    ],
)
def test_container_ids(base: str, expected: str | None) -> None:
    assert container_id(base) == expected


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/", CgroupNames()),
        ("/system.slice/etl.service", CgroupNames("etl.service", "system.slice")),
        ("/system.slice/etl.service/x.service", CgroupNames("etl.service", "system.slice")),
        ("/a.slice/a-b.slice/etl.service", CgroupNames("etl.service", "a-b.slice")),
        ("/init.scope", CgroupNames("init.scope")),
        ("/system.slice/_cpu.service", CgroupNames("cpu.service", "system.slice")),
        (
            "/user.slice/user-1000.slice/user@1000.service/app.slice/x.service",
            CgroupNames("user@1000.service", "user-1000.slice"),
        ),
        (
            f"/user.slice/user-1000.slice/user@1000.service/user.slice/docker-{ID}.scope",
            CgroupNames("user@1000.service", "user-1000.slice"),
        ),
        (
            f"/system.slice/docker-{ID}.scope/init",
            CgroupNames(f"docker-{ID}.scope", "system.slice", ID),
        ),
        (f"/docker/{ID}", CgroupNames(container=ID)),
        (f"/docker/{ID}/docker/{OTHER}", CgroupNames(container=ID)),
        (f"/kubepods/burstable/pod8d3f-0123456789ab/{ID}", CgroupNames(container=ID)),
        ("/batch/etl.service", CgroupNames()),
    ],
)
def test_names_of_a_path(path: str, expected: CgroupNames) -> None:
    assert names_of(path) == expected


@pytest.mark.parametrize(
    ("kind", "name", "path", "expected"),
    [
        (ScopeKind.UNIT, "etl.service", "/system.slice/etl.service", True),
        (ScopeKind.UNIT, "etl.service", "/etl.service", True),
        (ScopeKind.UNIT, "system.slice", "/system.slice", True),
        (ScopeKind.UNIT, "a-b.slice", "/a.slice/a-b.slice", True),
        (ScopeKind.UNIT, "cpu.service", "/system.slice/_cpu.service", True),
        (ScopeKind.UNIT, "etl.service", "/system.slice/etl.service/child", False),
        (ScopeKind.UNIT, "etl.service", "/system.slice/my-etl.service", False),
        # What a user or a delegated unit can make is no system unit.
        (ScopeKind.UNIT, "etl.service", "/user.slice/user@1.service/etl.service", False),
        (ScopeKind.UNIT, "etl.service", "/system.slice/x.service/etl.service", False),
        (ScopeKind.UNIT, "etl.service", "/batch/etl.service", False),
        (ScopeKind.UNIT, "etl.service", "/", False),
        (ScopeKind.PATH, "/batch/etl", "/batch/etl", True),
        (ScopeKind.PATH, "/batch/etl/", "/batch/etl", True),
        (ScopeKind.PATH, "/", "/", True),
        (ScopeKind.PATH, "/batch", "/batch/etl", False),
        (ScopeKind.PATH, "/batch/etl", "/batch/etl2", False),
        (ScopeKind.CONTAINER, ID, f"/system.slice/docker-{ID}.scope", True),
        (ScopeKind.CONTAINER, ID[:12], f"/docker/{ID}", True),
        (ScopeKind.CONTAINER, ID[:11], f"/docker/{ID}", False),
        (ScopeKind.CONTAINER, ID, f"/docker/{ID[:12]}", False),
        (ScopeKind.CONTAINER, OTHER, f"/docker/{ID}", False),
        (ScopeKind.CONTAINER, ID, f"/docker/{ID}/init", False),
        (ScopeKind.CONTAINER, ID, f"/machine.slice/libpod-conmon-{ID}.scope", False),
        (ScopeKind.CONTAINER, ID, f"/user.slice/user@1000.service/docker-{ID}.scope", False),
        (ScopeKind.CONTAINER, OTHER, f"/docker/{ID}/docker/{OTHER}", False),
    ],
)
def test_scopes(kind: ScopeKind, name: str, path: str, expected: bool) -> None:
    assert matches(Scope(1, kind, name), path) is expected


PART = st.sampled_from(
    ["a.slice", "etl.service", "user@1000.service", f"docker-{ID}.scope", ID, "x", "_cpu.service"]
)


@given(parts=st.lists(PART, max_size=5), below=st.lists(PART, min_size=1, max_size=3))
def test_a_workload_cannot_become_a_unit_by_making_cgroups(
    parts: list[str], below: list[str]
) -> None:
    """Whatever a unit makes below itself, it stays the unit it is."""
    path = "/" + "/".join([*parts, "etl.service", *below])
    names = names_of(path)
    assert names.unit == names_of("/" + "/".join([*parts, "etl.service"])).unit
    for unit in ("etl.service", "user@1000.service", "cpu.service", "a.slice"):
        assert not matches(Scope(1, ScopeKind.UNIT, unit), path)


@given(st.text(max_size=80))
def test_any_path_has_names(path: str) -> None:
    names_of(path)
    container_id(path)
    for kind in ScopeKind:
        matches(Scope(1, kind, "etl.service"), path)
