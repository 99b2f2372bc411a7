# SPDX-License-Identifier: Apache-2.0
"""A FUSE filesystem whose owner never answers is not asked: a real one."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest

Start = Callable[..., subprocess.Popen[bytes]]
pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or not Path("/dev/fuse").exists(), reason="needs root and FUSE"
)

SERVER: Final = r"""
import ctypes, errno, os, stat, struct, sys

INIT, LOOKUP, GETATTR, FORGET, DESTROY = 26, 1, 3, 2, 38  # enum fuse_opcode, linux/fuse.h
HEAD = struct.Struct("=IIQQIIII")

def attr(inode, mode):
    return struct.pack("=6Q10I", inode, 4096, 8, 1, 1, 1, 0, 0, 0, mode, 1, 0, 0, 0, 4096, 0)

FOLDER, FILE = attr(1, stat.S_IFDIR | 0o755), attr(2, stat.S_IFREG | 0o755)
fuse = os.open("/dev/fuse", os.O_RDWR)
options = f"fd={fuse},rootmode=40000,user_id=0,group_id=0,allow_other".encode()
libc = ctypes.CDLL(None, use_errno=True)
if libc.mount(b"hangs", sys.argv[1].encode(), b"fuse.hangs", 0, options):
    sys.exit(f"mount: {os.strerror(ctypes.get_errno())}")
print("mounted", flush=True)
while True:
    request = os.read(fuse, 1 << 20)
    _length, opcode, unique, node, *_ = HEAD.unpack_from(request)
    if opcode == INIT:
        body = struct.pack("=IIIIHHIIHHI7I", 7, 31, 65536, 0, 1, 1, 65536, 1, 1, 0, 0, *[0] * 7)
    elif opcode == LOOKUP and request[HEAD.size:].rstrip(b"\0") == b"program":
        body = struct.pack("=QQQQII", 2, 0, 3600, 0, 0, 0) + FILE
    elif opcode == GETATTR and node == 1:
        body = struct.pack("=QII", 3600, 0, 0) + FOLDER
    else:
        continue  # whoever asked waits for ever
    os.write(fuse, struct.pack("=IiQ", 16 + len(body), 0, unique) + body)
"""

FIND: Final = """
import sys
from pathlib import Path
from licagent.host.digests import DigestCache
from licagent.host.hashing import NotMeasured
try:
    DigestCache(Path(sys.argv[2]), "boot").files.find(sys.argv[1])
    print("found")
except NotMeasured as error:
    print(error.retry, error)
"""

LIST: Final = """
import sys
from licagent.host.exec_paths import installed, search_directories
folder = sys.argv[1]
failed = []
found = list(installed([folder, folder + "/below"], lambda each, error: failed.append(str(error))))
print(found, folder in search_directories([folder, folder + "/below"]), failed)
"""


@pytest.fixture
def hanging(tmp_path: Path) -> Iterator[Path]:
    """A program on a filesystem that tells its name and nothing else."""
    point = tmp_path / "point"
    point.mkdir()
    server = subprocess.Popen([sys.executable, "-c", SERVER, point], stdout=subprocess.PIPE)
    try:
        assert server.stdout is not None
        if server.stdout.readline() != b"mounted\n":
            pytest.skip("FUSE cannot be mounted here")
        yield point / "program"
    finally:
        server.kill()  # whoever waits gets an error then
        server.communicate()
        subprocess.run(["umount", "-l", point], check=False, capture_output=True)


def test_it_is_refused_without_being_asked(start: Start, hanging: Path, tmp_path: Path) -> None:
    asking = start("stat", str(hanging), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    with pytest.raises(subprocess.TimeoutExpired):
        asking.wait(1)  # not even a signal ends it before its server ends

    done = subprocess.run(
        [sys.executable, "-c", FIND, hanging, tmp_path / "digests"],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )

    assert done.stdout.startswith("False ")
    assert "fuse.hangs" in done.stdout


def said(start: Start, script: str, *arguments: Path) -> str:
    """What a script says; where it hangs, its end is waited for when the server has ended."""
    process = start(sys.executable, "-c", script, *map(str, arguments), stdout=subprocess.PIPE)
    text, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    return text.decode()


def test_not_even_for_what_lies_below(start: Start, hanging: Path, tmp_path: Path) -> None:
    """A look-up of a name there waits for ever; so does a link that leads there."""
    (tmp_path / "link").symlink_to(hanging.parent / "below" / "program")
    for path in (hanging.parent / "below" / "program", tmp_path / "link"):
        assert said(start, FIND, path, tmp_path / "digests").startswith("False ")


def test_its_folders_are_not_listed(start: Start, hanging: Path) -> None:
    text = said(start, LIST, hanging.parent)
    assert text.startswith("[None, None] False ")
    assert text.count("fuse.hangs") == 2
