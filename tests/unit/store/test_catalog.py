# SPDX-License-Identifier: Apache-2.0
"""The stored catalog: old or new after any crash, and never something in between."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from licagent.domain.catalog import CatalogObject, Kind, Refused, SignedBytes
from licagent.domain.lease import StoredLeases
from licagent.store.catalog import CatalogStore
from licagent.store.errors import DocumentDamaged

HEAD = SignedBytes(b"manifest", "kid", b"signature")


def entry(name, revision=1, payload=b"x"):
    return CatalogObject(Kind.RESOURCE, name, revision, payload)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "catalog.db"


@pytest.fixture
def store(path):
    found = CatalogStore(path)
    yield found
    found.close()


def test_nothing_then_what_was_committed(store, path):
    assert store.load() is None
    write = store.begin("host", HEAD, [entry("a"), entry("b")], [], reset=True)
    write.commit()
    store.close()
    found = CatalogStore(path).load()
    assert (found.host_id, found.manifest) == ("host", HEAD)
    assert found.objects == (entry("a"), entry("b"))
    assert path.stat().st_mode & 0o777 == 0o600
    later = SignedBytes(b"later", "kid", b"other")
    store.begin("host", later, [entry("a", 2, b"y")], [(Kind.RESOURCE, "b")], reset=False).commit()
    assert store.load().objects == (entry("a", 2, b"y"),)
    assert store.load().manifest == later


def test_what_is_rolled_back_never_was(store):
    store.begin("host", HEAD, [entry("a")], [], reset=True).commit()
    write = store.begin("host", HEAD, [entry("c")], [], reset=True)
    write.rollback()
    assert [each.name for each in store.load().objects] == ["a"]
    with pytest.raises(RuntimeError):
        write.commit()


def test_a_crash_before_the_commit_leaves_the_old_one(store, path, tmp_path):
    store.begin("host", HEAD, [entry(f"n{at}") for at in range(3000)], [], reset=True).commit()
    # Enough to have SQLite spill pages into the file itself before the commit.
    big = [entry(f"m{at}", 2, os.urandom(2000)) for at in range(3000)]
    write = store.begin("host", HEAD, big, [], reset=True)
    left = tmp_path / "after-the-crash"
    left.mkdir()
    for each in path.parent.glob("catalog.db*"):
        shutil.copy(each, left / each.name)
    write.rollback()
    found = CatalogStore(left / "catalog.db")
    assert {each.name[0] for each in found.load().objects} == {"n"}
    found.close()


def test_leases_are_kept_apart_and_replaced(store):
    first = StoredLeases(HEAD, b"n1", "boot", 5)
    store.save_leases(first)
    assert store.load() is None
    assert store.load_leases() == first
    second = StoredLeases(HEAD, b"n2", "boot", 9)
    store.save_leases(second)
    assert store.load_leases() == second
    store.clear()
    assert store.load_leases() is None


@pytest.mark.parametrize("damage", ["garbage", "cut", "flipped"])
def test_a_damaged_file_is_set_aside_and_the_store_goes_on(store, path, damage):
    store.begin("host", HEAD, [entry(f"n{at}") for at in range(3000)], [], reset=True).commit()
    store.close()
    data = bytearray(path.read_bytes())
    if damage == "garbage":
        data[:] = b"this is no database" * 100
    elif damage == "cut":
        del data[len(data) // 2 :]
    else:
        data[4096:12288] = bytes(byte ^ 0x5A for byte in data[4096:12288])
    path.write_bytes(data)
    with pytest.raises(DocumentDamaged) as found:
        store.load()
    assert found.value.kept_as.exists()
    assert store.load() is None
    store.begin("host", HEAD, [entry("a")], [], reset=True).commit()
    assert len(store.load().objects) == 1


def test_a_file_of_a_later_version_is_not_read(store, path):
    store.begin("host", HEAD, [entry("a")], [], reset=True).commit()
    store.close()
    import sqlite3

    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(DocumentDamaged, match="form 99"):
        store.load()


def test_a_place_that_cannot_be_written_is_told_before_anything_changed(tmp_path):
    store = CatalogStore(tmp_path / "missing" / "catalog.db")
    with pytest.raises(Refused, match="Free space"):
        store.begin("host", HEAD, [entry("a")], [], reset=True)
    with pytest.raises(Refused):
        store.save_leases(StoredLeases(HEAD, b"", "", 0))
    # And others are not kept waiting by that:
    with pytest.raises(Refused):
        store.begin("host", HEAD, [entry("a")], [], reset=True)


def test_killed_at_any_moment_it_is_old_or_new(path):
    """A process that writes one revision after the other, killed again and again."""
    program = textwrap.dedent(
        """
        import sys
        from pathlib import Path
        from licagent.domain.catalog import CatalogObject, Kind, SignedBytes
        from licagent.store.catalog import CatalogStore
        store = CatalogStore(Path(sys.argv[1]))
        found = store.load()
        at = int(found.manifest.payload) if found else 0
        while True:
            at += 1
            put = [CatalogObject(Kind.BINDING, f"n{i}", at, b"%d" % at) for i in range(300)]
            head = SignedBytes(b"%d" % at, "k", b"s")
            store.begin("h", head, put, [], reset=at % 2 == 0).commit()
            print(at, flush=True)
        """
    )
    told = 0
    for rounds in range(1, 7):
        with subprocess.Popen(
            [sys.executable, "-c", program, str(path)], stdout=subprocess.PIPE, text=True
        ) as process:
            for _ in range(rounds):
                told = int(process.stdout.readline())
            process.send_signal(signal.SIGKILL)
            rest = process.stdout.read().split()
            told = int(rest[-1]) if rest and rest[-1].isdigit() else told
        store = CatalogStore(path)
        found = store.load()
        store.close()
        revision = int(found.manifest.payload)
        assert revision in (told, told + 1)
        assert len(found.objects) == 300
        assert {each.revision for each in found.objects} == {revision}
    assert not list(Path(path.parent).glob("*.damaged-*"))


def test_a_reset_leaves_nothing_of_before(store):
    store.begin("host", HEAD, [entry("a"), entry("b")], [], reset=True).commit()
    store.begin("host", HEAD, [entry("b", 2)], [], reset=True).commit()
    assert store.load().objects == (entry("b", 2),)


def test_readers_do_not_wait_for_a_change_that_waits_for_the_kernel(store):
    store.begin("host", HEAD, [entry("a")], [], reset=True).commit()
    big = [entry(f"m{at}", 2, os.urandom(2000)) for at in range(3000)]
    write = store.begin("host", HEAD, big, [], reset=True)
    assert [each.name for each in store.load().objects] == ["a"]
    assert store.load_leases() is None
    write.commit()
    assert len(store.load().objects) == 3000


def test_writers_do_not_wait_for_ever(store, monkeypatch):
    monkeypatch.setattr("licagent.store.catalog._TURN_S", 0.05)
    write = store.begin("host", HEAD, [entry("a")], [], reset=True)
    with pytest.raises(Refused, match="try again"):
        store.clear()
    write.commit()
    store.clear()
    assert store.load() is None
