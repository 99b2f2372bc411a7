# SPDX-License-Identifier: Apache-2.0
"""The command as its users meet it: a process with a terminal, a pipe, a hung daemon."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import select
import signal
import socket
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest


def on_terminal(command: list[str], *, columns: int = 80) -> tuple[int, str]:
    """Exit status and output of a command whose standard output is a terminal."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
    environment = {key: value for key, value in os.environ.items() if key != "COLUMNS"}
    process = subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment | {"TERM": "xterm"}
    )
    os.close(theirs)
    output = b""
    while True:
        readable, _, _ = select.select([ours], [], [], 30)
        assert readable, "no end of output"
        try:
            chunk = os.read(ours, 65536)
        except OSError:  # EIO: the last writer closed the terminal
            break
        if not chunk:
            break
        output += chunk
    os.close(ours)
    return process.wait(30), output.decode()


def bare(text: str) -> str:
    """Text without the colours rich and click write; anything else of ESC stays."""
    import re

    return re.sub(r"\x1b\[[0-9;]*m", "", text)


COMMANDS = [
    ["status", "-v"],
    ["explain", "4242"],
    ["events"],
    ["usage"],
    ["usage", "verify"],
    ["license", "list"],
    ["license", "show", "x"],
    ["policy", "show"],
    ["doctor"],
    ["config", "check"],
]


@pytest.mark.parametrize("arguments", COMMANDS)
def test_a_terminal_of_80_columns_is_enough(daemon, command, arguments):
    _, output = on_terminal([*command, *arguments])
    assert "\x1b[" in output  # a terminal gets colour
    lines = bare(output).replace("\r", "").splitlines()
    if arguments != ["events"]:  # an event is one line, however long
        assert max(len(line) for line in lines) <= 80
    assert "internal error" not in output


@pytest.mark.parametrize("arguments", COMMANDS)
def test_a_pipe_gets_no_escape_and_one_row_a_line(daemon, spawn, arguments):
    output = spawn(*arguments).stdout
    assert output
    assert "\x1b" not in output


HOSTILE = "evil\x1b]0;owned\x07\x1b[2J\r\nDENY  \u202egnp.exe[red]bold[/red]"


@pytest.mark.parametrize("arguments", [["events"], ["explain", "4242"], ["status"]])
def test_names_chosen_by_others_reach_the_terminal_as_text(daemon, command, examples, arguments):
    event = examples("events")
    event["process"] |= {"name": HOSTILE, "user": HOSTILE, "unit": HOSTILE}
    daemon.items = [event]
    explained = examples("explain")
    explained["process"] |= {"name": HOSTILE, "executable": HOSTILE}
    status = examples("status")
    status["shadow"][0] |= {"executable": HOSTILE, "user": HOSTILE, "suggestion": HOSTILE}
    daemon.answers |= {"explain": explained, "status": status}
    _, output = on_terminal([*command, *arguments], columns=300)
    text = bare(output)
    for character in "\x1b\x07\u202e":
        assert character not in text
    assert "[red]bold[/red]" in text  # nor is it taken for markup
    assert "\nDENY" not in text
    assert "\\x1b]0;owned" in text


def test_a_hung_daemon_costs_the_timeout_and_is_exit_4(tmp_path, spawn):
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(tmp_path / "runtime" / "licagent.sock"))
        silent.listen(8)
        result = spawn("status", "--timeout", "0.3")
        assert result.returncode == 4
        assert "did not answer within 0.3 s" in result.stderr
        assert spawn("events", "--timeout", "0.3").returncode == 4


def test_a_daemon_whose_queue_is_full_is_exit_4(tmp_path, spawn):
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(tmp_path / "runtime" / "licagent.sock"))
        silent.listen(0)
        others = []
        try:
            while True:
                other = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
                others.append(other)
                other.connect(str(tmp_path / "runtime" / "licagent.sock"))
        except BlockingIOError:
            pass
        result = spawn("status", "--timeout", "0.3")
        for other in others:
            other.close()
    assert result.returncode == 4


def test_a_stopped_daemon_is_exit_4(tmp_path, spawn):
    code = (
        "import asyncio, pathlib, sys\n"
        "from licagent.local.server import LocalServer\n"
        "async def main():\n"
        "    server = LocalServer(pathlib.Path(sys.argv[1]), readers_gid=None)\n"
        "    await server.start()\n"
        "    print('up', flush=True)\n"
        "    await asyncio.Event().wait()\n"
        "asyncio.run(main())\n"
    )
    path = str(tmp_path / "runtime" / "licagent.sock")
    with subprocess.Popen([sys.executable, "-c", code, path], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        process.send_signal(signal.SIGSTOP)
        try:
            result = spawn("status", "--timeout", "0.3", "--json")
        finally:
            process.kill()
    assert result.returncode == 4
    assert json.loads(result.stdout)["error"]["code"] == "TIMEOUT"


def test_a_reader_that_leaves_ends_the_command_without_a_word(daemon, command, examples):
    daemon.items = [examples("events")] * 20_000
    with subprocess.Popen(
        [*command, "events", "--timeout", "30"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(30) == 141


def test_follow_prints_each_event_at_once_and_ends_by_interrupt(daemon, command):
    with subprocess.Popen([*command, "events", "-f"], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert "curl[5120]" in process.stdout.readline()
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130


def test_follow_waits_longer_than_the_timeout(daemon, command):
    arguments = [*command, "events", "-f", "--timeout", "5"]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(6)
        assert process.poll() is None
        process.terminate()


def test_follow_says_when_the_daemon_goes(daemon, command):
    arguments = [*command, "events", "-f"]
    with subprocess.Popen(
        arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        daemon.stop()
        assert process.wait(30) == 3
        assert "closed the connection" in process.stderr.read()


def test_internal_errors_are_one_line_unless_debug(tmp_path, spawn):
    code = (
        "import sys, licagent.cli.main as m\n"
        "m.COMMANDS['status'] = ('status:nothing', '')\n"
        "sys.argv[1:] = sys.argv[1:]\n"
        "m.main()\n"
    )

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        line = [sys.executable, "-c", code, *arguments]
        return subprocess.run(line, capture_output=True, text=True, check=False)

    assert run("status").returncode == 1
    assert "Traceback" not in run("status").stderr
    assert "Traceback" in run("--debug", "status").stderr


# ------------------------------------------------------------------------------------ run


@pytest.fixture
def scope():
    """A cgroup of this test's own."""
    lines = Path("/proc/self/mounts").read_text(encoding="utf-8").splitlines()
    roots = [line.split()[1] for line in lines if line.split()[2] == "cgroup2"]
    if os.geteuid() != 0 or not roots:
        pytest.skip("needs root and a cgroup v2 mount")
    directory = Path(roots[0], f"licagent-test-run-{os.getpid()}")
    directory.mkdir()
    yield str(directory)
    for _ in range(100):
        try:
            directory.rmdir()
            break
        except OSError:  # the last process is still being reaped
            time.sleep(0.05)


def test_run_puts_the_command_into_the_scope_in_its_own_place(daemon, command, scope):
    daemon.answers["run.prepare"] = {"cgroup": scope}
    script = "echo $$ $LICAGENT_PROBE; grep ^0:: /proc/self/cgroup; exit 42"
    environment = os.environ | {"LICAGENT_PROBE": "kept"}
    with subprocess.Popen(
        [*command, "run", "--license", "acme", "--", "sh", "-c", script],
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    ) as process:
        output, _ = process.communicate(timeout=30)
    assert process.returncode == 42
    assert output.splitlines()[0] == f"{process.pid} kept"
    assert output.splitlines()[1].endswith("/" + Path(scope).name)
    given = {"license": "acme", "pid": process.pid, "valid": False}
    assert daemon.calls == [("run.prepare", given)]


def test_run_starts_nothing_outside_its_scope(daemon, spawn, tmp_path):
    daemon.answers["run.prepare"] = {"cgroup": str(tmp_path / "gone")}
    result = spawn("run", "--license", "acme", "--", "echo", "started")
    assert result.returncode == 1
    assert "was not started" in result.stderr
    assert "started\n" not in result.stdout


def test_run_answers_as_a_shell_does_when_the_command_cannot_start(daemon, spawn, scope, tmp_path):
    daemon.answers["run.prepare"] = {"cgroup": scope}
    assert spawn("run", "--license", "a", "--", "no-such-command-here").returncode == 127
    plain = tmp_path / "plain"
    plain.write_text("", encoding="utf-8")
    assert spawn("run", "--license", "a", "--", str(plain)).returncode == 126


def test_run_leaves_the_commands_options_alone(daemon, spawn, scope):
    daemon.answers["run.prepare"] = {"cgroup": scope}
    result = spawn("run", "--license", "a", "echo", "--json", "-v", "--license", "b")
    assert result.stdout == "--json -v --license b\n"
