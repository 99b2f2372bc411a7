# SPDX-License-Identifier: Apache-2.0
"""The state folder with real processes, real locks and real crashes."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from licagent.store import statedir as module
from licagent.store.errors import (
    DocumentDamaged,
    DocumentSchemaUnknown,
    StateDirBusy,
    StateDirUnsafe,
    StateWriteFailed,
)
from licagent.store.statedir import StateDir

ORPHANED = """
import os, sys, time
from licagent.store.statedir import StateDir
folder = StateDir(sys.argv[1])
if os.fork() == 0:  # on its way to an exec that never comes; the lock is in its hands as well
    os.close(1)
    sys.stdin.read()
    os._exit(0)
print("locked", flush=True)
os._exit(9)
"""

SCHEMA = "test/1"
OLD = {"value": "old", "filler": "o" * 5000}
NEW = {"value": "new", "filler": "n" * 9000}

HOLDER = """
import sys
from licagent.store.statedir import StateDir
with StateDir(sys.argv[1]):
    print("locked", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state"


def in_child(action: Callable[[], None]) -> int:
    """Run `action` in a forked child; its exit status, 0 when it came to the end."""
    pid = os.fork()
    if pid == 0:
        status = 99
        try:
            action()
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_folder_is_private_and_made_with_its_parents(tmp_path: Path) -> None:
    path = tmp_path / "var" / "lib" / "licagent"
    with StateDir(path):
        assert path.stat().st_mode & 0o7777 == 0o700


def test_a_folder_that_others_can_enter_is_closed_to_them(path: Path) -> None:
    path.mkdir(mode=0o755)
    path.chmod(0o755)
    with StateDir(path):
        assert path.stat().st_mode & 0o777 == 0o700


@pytest.mark.skipif(os.geteuid() != 0, reason="chown needs root")
def test_a_folder_of_somebody_else_is_refused(path: Path) -> None:
    path.mkdir()
    os.chown(path, 65534, 65534)
    with pytest.raises(StateDirUnsafe, match="65534"):
        StateDir(path)


def test_a_second_process_is_refused_with_the_pid_of_the_first(path: Path) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "locked\n"
        with pytest.raises(StateDirBusy) as caught:
            StateDir(path)
        assert caught.value.pid == holder.pid
        assert str(path) in str(caught.value)
        # The lock ends with its holder, however it ends.
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        with StateDir(path) as state:
            assert state.names() == ()
    finally:
        holder.kill()
        holder.communicate()


def test_the_lock_is_given_back(path: Path) -> None:
    for _ in range(3):
        StateDir(path).close()
    with StateDir(path), pytest.raises(StateDirBusy):
        StateDir(path)


def test_a_document_comes_back(path: Path) -> None:
    body = {"numbers": [1, 2**63, -1], "text": "µ\n\0", "nested": {"none": None}}
    with StateDir(path) as state:
        assert state.read_document("a", SCHEMA) is None
        state.write_document("a", SCHEMA, body)
        assert state.read_document("a", SCHEMA) == body
    with StateDir(path) as state:
        assert state.read_document("a", SCHEMA) == body
        assert state.names() == ("a",)
        assert state.delete_document("a")
        assert not state.delete_document("a")
        assert state.read_document("a", SCHEMA) is None
    assert (path / "lock").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("name", ["", "../x", "a/b", "A", ".a", "a.b", "-a", "a" * 65])
def test_names_that_could_leave_the_folder_are_refused(path: Path, name: str) -> None:
    with StateDir(path) as state:
        with pytest.raises(ValueError, match="no document name"):
            state.write_document(name, SCHEMA, {})
        with pytest.raises(ValueError, match="no document name"):
            state.read_document(name, SCHEMA)


def test_another_schema_is_refused_and_left_alone(path: Path) -> None:
    with StateDir(path) as state:
        state.write_document("a", "test/2", NEW)
        with pytest.raises(DocumentSchemaUnknown, match="test/2"):
            state.read_document("a", SCHEMA)
        assert state.read_document("a", "test/2") == NEW


@given(data=st.data())
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_change_of_the_file_is_found(tmp_path: Path, data: st.DataObject) -> None:
    path = tmp_path / "state"
    with StateDir(path) as state:
        state.write_document("a", SCHEMA, {"value": "x" * 50})
        file = path / "a.json"
        content = file.read_bytes()
        kind = data.draw(st.sampled_from(["cut", "flip", "append", "zeros"]))
        if kind == "cut":
            changed = content[: data.draw(st.integers(0, len(content) - 1))]
        elif kind == "flip":
            at = data.draw(st.integers(0, len(content) - 1))
            bit = 1 << data.draw(st.integers(0, 7))
            changed = content[:at] + bytes([content[at] ^ bit]) + content[at + 1 :]
        elif kind == "append":
            changed = content + data.draw(st.binary(min_size=1, max_size=20))
        else:
            changed = bytes(len(content))
        file.write_bytes(changed)
        try:
            # A flipped bit in the schema's name is seen as another schema; all else is damage.
            body = state.read_document("a", SCHEMA)
        except DocumentDamaged:
            (kept_as,) = state.damaged()
            assert kept_as.read_bytes() == changed
            assert state.read_document("a", SCHEMA) is None
        except DocumentSchemaUnknown:
            assert kind == "flip"
        else:
            # Only a blank of the header may change without changing what it says.
            assert body == {"value": "x" * 50}
            assert kind == "flip"
        for kept in state.damaged():
            kept.unlink()


def test_each_damaged_file_is_kept(path: Path) -> None:
    with StateDir(path) as state:
        for number in (1, 2, 3):
            (path / "a.json").write_text(f"garbage {number}")
            with pytest.raises(DocumentDamaged):
                state.read_document("a", SCHEMA)
        kept = [(file.name, file.read_text()) for file in state.damaged()]
    assert kept == [(f"a.damaged-{number}", f"garbage {number}") for number in (1, 2, 3)]


def test_a_symbolic_link_is_not_followed(path: Path, tmp_path: Path) -> None:
    with StateDir(path) as state:
        (tmp_path / "elsewhere").write_text("x")
        (path / "a.json").symlink_to(tmp_path / "elsewhere")
        with pytest.raises(OSError, match="symbolic"):
            state.read_document("a", SCHEMA)


CALLS = ("open", "write", "fsync", "close", "rename", "unlink", "listdir")


def crash_before(call_number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make this process die, without any clean-up, at its nth call of the system."""
    count = 0

    def wrap(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal count
            count += 1
            if count == call_number:
                if real is os_write and len(args[1]) > 1:
                    real(args[0], args[1][: len(args[1]) // 2])  # half of it is there
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **kwargs)

        return call

    os_write = os.write
    for name in CALLS:
        monkeypatch.setattr(module.os, name, wrap(getattr(os, name)))


def test_a_crash_at_any_moment_leaves_the_old_or_the_new(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    for call_number in range(1, 100):
        with StateDir(path) as state:
            state.write_document("a", SCHEMA, OLD)

        def write_and_die(at: int = call_number) -> None:
            with StateDir(path) as state:
                crash_before(at, monkeypatch)
                state.write_document("a", SCHEMA, NEW)
                os._exit(0)

        status = in_child(write_and_die)
        with StateDir(path) as state:  # a clean start: lock free, no temporary file
            body = state.read_document("a", SCHEMA)
            assert body in (OLD, NEW)
            assert sorted(os.listdir(path)) == ["a.json", "lock"]
            seen.append(body)
        if status == 0:
            break
        assert status == -signal.SIGKILL
    else:
        pytest.fail("the write never came to its end")
    # Each step was met: old until the rename, new from then on.
    assert len(seen) == 7  # before open, write, fsync, close, rename, fsync; and all of it
    assert seen[:5] == [OLD] * 5
    assert seen[5:] == [NEW] * 2


@pytest.mark.parametrize("failing", ["open", "write", "fsync", "rename"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EROFS])
def test_a_refusing_disk_leaves_the_old(
    path: Path, monkeypatch: pytest.MonkeyPatch, failing: str, number: int
) -> None:
    def refuse(*_args: Any, **_kwargs: Any) -> Any:
        raise OSError(number, os.strerror(number))

    with StateDir(path) as state:
        state.write_document("a", SCHEMA, OLD)
        with monkeypatch.context() as patch:
            patch.setattr(module.os, failing, refuse)
            with pytest.raises(StateWriteFailed, match="stands") as caught:
                state.write_document("a", SCHEMA, NEW)
        assert isinstance(caught.value.__cause__, OSError)
        assert state.read_document("a", SCHEMA) == OLD
        assert sorted(os.listdir(path)) == ["a.json", "lock"]


def test_the_content_is_synced_before_the_name_and_the_folder_after(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []

    def note(name: str) -> Callable[..., Any]:
        real = getattr(os, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            if name == "fsync":
                order.append("fsync " + os.readlink(f"/proc/self/fd/{args[0]}"))
            else:
                order.append(name)
            return real(*args, **kwargs)

        return call

    with StateDir(path) as state, monkeypatch.context() as patch:
        for name in ("write", "fsync", "rename"):
            patch.setattr(module.os, name, note(name))
        state.write_document("a", SCHEMA, OLD)
    temporary = f"fsync {path / '.a.json.tmp'}"
    assert order == ["write", temporary, "rename", f"fsync {path}"]


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_a_really_full_disk(tmp_path: Path) -> None:
    mounted = tmp_path / "small"
    mounted.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", mounted], check=True)
    try:
        with StateDir(mounted / "state") as state:
            state.write_document("a", SCHEMA, OLD)
            with pytest.raises(StateWriteFailed, match="No space left"):
                state.write_document("a", SCHEMA, {"value": "x" * 100_000})
            assert state.read_document("a", SCHEMA) == OLD
            state.write_document("a", SCHEMA, NEW)
            assert state.read_document("a", SCHEMA) == NEW
    finally:
        subprocess.run(["umount", mounted], check=True)


def test_the_lock_of_a_dead_daemon_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """kill -9 in the middle of starting a program: its child has the lock until it execs."""
    monkeypatch.setattr(module, "_DEAD_HOLDER_LIMIT_S", 60.0)
    path = tmp_path / "state"
    with subprocess.Popen(
        [sys.executable, "-c", ORPHANED, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdin is not None
        assert holder.stdout.readline() == "locked\n"
        holder.wait()
        threading.Timer(0.2, holder.stdin.close).start()
        with StateDir(path) as folder:
            assert folder.names() == ()
