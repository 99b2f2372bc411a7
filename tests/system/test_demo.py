# SPDX-License-Identifier: Apache-2.0
"""`./dev demo`: its claims hold, a claim that does not ends it, and nothing is left of it."""

from __future__ import annotations

import html
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "demo" / "run.sh"
LIMIT_S = 300.0

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
    pytest.mark.skipif(
        not all(map(shutil.which, ("curl", "nc", "setpriv"))), reason="needs curl, nc, setpriv"
    ),
]


class Demo:
    """A run of the demo whose traces can be told from everything else on this machine."""

    def __init__(self, folder: Path, path: str) -> None:
        self.folder = folder
        self.mark = f"DEMO_TEST={uuid.uuid4()}"
        name, _, value = self.mark.partition("=")
        self.text = ""
        self.process = subprocess.Popen(
            [SCRIPT, "--fast"],
            env={**os.environ, name: value, "TMPDIR": str(folder), "PATH": path},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # a Ctrl-C reaches it and its children, not us
        )

    def read(self, until: str = "") -> str:
        """Its output up to its end, or until a line has this text."""
        stream = self.process.stdout
        assert stream is not None
        end = time.monotonic() + LIMIT_S
        while not (until and until in self.text):
            ready, _, _ = select.select([stream], [], [], max(0.0, end - time.monotonic()))
            assert ready, f"the demo hangs: {self.text[-2000:]}"
            data = os.read(stream.fileno(), 65536)
            if not data:
                break
            self.text += data.decode()
        return self.text

    def ended(self) -> int:
        """Its exit status, once all of its output is read."""
        self.read()
        assert self.process.stdout is not None
        self.process.stdout.close()
        return self.process.wait(LIMIT_S)

    def left(self) -> list[str]:
        """What of it is still on this machine."""
        found = [str(path) for path in self.folder.iterdir()]
        mounts = Path("/proc/mounts").read_text().splitlines()
        found += [line for line in mounts if str(self.folder) in line]
        for line in mounts:
            _, where, kind, *_ = line.split()
            if kind == "cgroup2":
                found += map(str, Path(where).rglob(f"licagent-demo-{self.process.pid}"))
        return found + [f"process {pid}" for pid in self.processes()]

    def processes(self) -> list[int]:
        """Processes that have its environment, besides itself."""
        found = []
        for environment in Path("/proc").glob("[0-9]*/environ"):
            try:
                if self.mark.encode() in environment.read_bytes():
                    found.append(int(environment.parent.name))
            except OSError:  # it ended meanwhile
                continue
        return found


@pytest.fixture
def folder() -> Iterator[Path]:
    """A short one: the path of a socket may have 107 bytes."""
    path = Path(tempfile.mkdtemp(prefix="demo-"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def demo(folder: Path) -> Iterator[Demo]:
    started = Demo(folder, os.environ["PATH"])
    yield started
    end(started)


def end(demo: Demo) -> None:
    """After a failed test: it cleans up by itself when it is told to end."""
    if demo.process.returncode is None:
        demo.process.send_signal(signal.SIGTERM)
        demo.ended()


@pytest.mark.slow
@pytest.mark.timeout(LIMIT_S + 60)
def test_everything_it_claims_holds_and_nothing_stays(demo: Demo) -> None:
    status = demo.ended()
    assert status == 0, demo.text[-6000:]
    assert "✘" not in demo.text
    for words in (
        "Required key not available",
        "Key has been revoked",
        "Key has expired",
        "would cut 1 live socket",
        "[[binding]]",
        "The audit log is intact",
        "break-glass",
        "contract ended",
        "Everything held",
    ):
        assert words in demo.text
    assert demo.left() == []
    picture = shape("\n".join(drawn()))
    assert len(picture) > 20
    missing = [line for line in picture if line not in shape(demo.text)]
    assert not missing, "the README's picture is out of date: run docs/pictures/render.py"


def drawn() -> list[str]:
    """The lines of the README's picture."""
    picture = (ROOT / "docs" / "pictures" / "demo.svg").read_text()
    lines = re.findall(r"<text[^>]*>(.*?)</text>", picture)
    return [html.unescape(re.sub(r"<[^>]+>", "", line)) for line in lines]


def shape(text: str) -> list[str]:
    """Its lines without what differs from run to run: times, ports, process ids, folders."""
    text = re.sub(r"licagent-demo\.\w+", "licagent-demo", text)
    text = re.sub(r"(?<= )/\S*/licagent-demo", "licagent-demo", text)
    text = re.sub(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", "ID", text)
    return re.sub(r"\d+", "0", text).splitlines()


@pytest.mark.slow
@pytest.mark.parametrize(
    "moment",
    [
        "licplane serve",
        "licagent daemon",
        "A license is revoked",
        "control plane is killed",
        "nothing arrives",
        "break-glass --for",
    ],
)
def test_ctrl_c_leaves_nothing(demo: Demo, moment: str) -> None:
    demo.read(until=moment)
    assert demo.process.poll() is None, demo.text[-2000:]
    os.killpg(demo.process.pid, signal.SIGINT)
    assert demo.ended() == 130, demo.text[-2000:]
    assert demo.left() == []


def test_a_claim_that_does_not_hold_ends_it(folder: Path) -> None:
    programs, temporary = folder / "bin", folder / "tmp"
    for path in (programs, temporary):
        path.mkdir()
    connected = programs / "nc"  # as if the kernel had let it through
    connected.write_text("#!/bin/sh\necho Connection succeeded\n")
    for path in (folder, programs, connected):
        path.chmod(0o755)
    demo = Demo(temporary, f"{programs}:{os.environ['PATH']}")
    try:
        status = demo.ended()
    finally:
        end(demo)
    assert status == 1, demo.text[-2000:]
    assert "Connection succeeded" in demo.text
    assert "this does not hold: so it is with nc" in demo.text
    assert demo.left() == []


def test_it_refuses_arguments_it_does_not_know() -> None:
    found = subprocess.run([SCRIPT, "--slow"], capture_output=True, text=True, check=False)
    assert found.returncode == 2
    assert "usage" in found.stderr


def test_the_server_says_when_each_line_was_sent(tmp_path: Path) -> None:
    """The demo's proof rests on it: a line's time is read before the line is sent."""
    port = tmp_path / "port"
    server = subprocess.Popen([sys.executable, ROOT / "demo" / "server.py", port])
    try:
        end = time.monotonic() + 30
        while not port.exists():
            assert time.monotonic() < end
            time.sleep(0.02)
        url = f"http://127.0.0.1:{port.read_text().strip()}/stream"
        client = subprocess.Popen(["curl", "-sSN", url], stdout=subprocess.PIPE, text=True)
        assert client.stdout is not None
        times = [client.stdout.readline().split()[0] for _ in range(5)]
        client.kill()
        client.communicate()
        assert times == sorted(times)
        assert len(set(times)) == len(times)
    finally:
        server.kill()
        server.wait()
