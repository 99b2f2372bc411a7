# SPDX-License-Identifier: Apache-2.0
"""`licagent top` as a process on a terminal of its own."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

COLOUR = re.compile(rb"\x1b\[(?:[0-9;]*;)?(?:3[0-8]|4[0-8]|9[0-7]|10[0-7])[;m0-9]*")


class Terminal:
    """A command on a pseudo terminal; what it wrote so far is in `output`."""

    def __init__(self, command: list[str], *, columns: int, lines: int, **more: str) -> None:
        self._ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        self.settings = termios.tcgetattr(theirs)
        self._theirs = theirs
        names = ("COLUMNS", "LINES", "NO_COLOR")
        environment = {key: text for key, text in os.environ.items() if key not in names}
        self.process = subprocess.Popen(
            command,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
            env=environment | {"TERM": "xterm-256color", "LC_ALL": "C.UTF-8"} | more,
        )
        self.output = b""

    def read(self, seconds: float) -> bytes:
        """What comes within so many seconds."""
        begin, end = len(self.output), time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            if not select.select([self._ours], [], [], left)[0]:
                break
            try:
                self.output += os.read(self._ours, 65536)
            except OSError:
                break
        return self.output[begin:]

    def wait_for(self, text: bytes) -> None:
        """Until it was written, beginning at what was not looked at yet."""
        deadline = time.monotonic() + 30
        while text not in self.output:
            assert time.monotonic() < deadline, self.output[-2000:]
            assert self.read(0.1) or self.process.poll() is None, self.output[-2000:]

    def type(self, keys: bytes) -> None:
        os.write(self._ours, keys)

    def end(self) -> int:
        """Its status, when it has ended by itself."""
        deadline = time.monotonic() + 30
        while self.process.poll() is None:
            assert time.monotonic() < deadline, self.output[-2000:]
            self.read(0.1)
        # The kernel hands on what was written in its own time, but in order.
        os.write(self._theirs, b"<the end>")
        while b"<the end>" not in self.output:
            assert time.monotonic() < deadline + 30, self.output[-2000:]
            self.read(0.1)
        return self.process.returncode

    def is_as_found(self) -> bool:
        """Whether line editing, echo and screen are what they were."""
        restored = termios.tcgetattr(self._theirs)[:4] == self.settings[:4]
        return restored and self.output.rfind(b"\x1b[?1049l") > self.output.rfind(b"\x1b[?1049h")

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(30)
        os.close(self._ours)
        os.close(self._theirs)


@contextmanager
def shown(
    command: list[str], *arguments: str, columns: int = 80, **more: str
) -> Iterator[Terminal]:
    terminal = Terminal([*command, "top", *arguments], columns=columns, lines=24, **more)
    try:
        terminal.wait_for(b"COMMAND")
        terminal.wait_for(b"orders")
        yield terminal
    finally:
        terminal.close()


@pytest.mark.parametrize("keys", [b"q", b"\x03", b"\x1b[21~"], ids=["q", "Ctrl-C", "F10"])
def test_it_ends_by_key_and_gives_the_terminal_back(daemon, command, keys):
    with shown(command) as terminal:
        terminal.type(keys)
        assert terminal.end() == 0
        assert terminal.is_as_found()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_gives_the_terminal_back(daemon, command, number):
    with shown(command) as terminal:
        terminal.process.send_signal(number)
        assert terminal.end() == 128 + number
        assert terminal.is_as_found()


def test_no_color_writes_no_colour(daemon, command):
    with shown(command, NO_COLOR="1") as terminal:
        terminal.type(b"h")
        terminal.wait_for(b"licagent explain PID")
        assert not COLOUR.findall(terminal.output)
        assert re.search(rb"\x1b\[(?:\d+;)*7[;m]", terminal.output)  # the cursor is to be seen


def test_colours_are_the_terminals_own_sixteen(daemon, command, examples):
    answer = examples("top")
    answer["rows"].append([4243, *answer["rows"][0][1:]])  # one that is not under the cursor
    daemon.answers["top"] = answer
    with shown(command) as terminal:
        terminal.read(0.5)
        assert COLOUR.findall(terminal.output)
        assert b"38;2;" not in terminal.output
        assert b"48;2;" not in terminal.output


def test_a_reading_without_news_costs_a_slow_line_next_to_nothing(daemon, command):
    with shown(command, "-d", "0.3") as terminal:

        def asked_again(times: int) -> bytes:
            begin, wanted = len(terminal.output), len(daemon.calls) + times
            deadline = time.monotonic() + 60
            while len(daemon.calls) < wanted:
                assert time.monotonic() < deadline
                terminal.read(0.2)
            return terminal.output[begin:]

        asked_again(3)  # by then the rates are there
        terminal.read(0.5)
        quiet = asked_again(5)
        assert len(quiet) < 300, quiet


def test_names_chosen_by_others_move_no_cursor(daemon, command, examples):
    answer = examples("top")
    hostile = "evil\x1b]0;owned\x07\x1b[2J\r\nDENY  \u202egnp.exe[red]bold[/red]"
    for place in (3, 4, 5, 6, 7):
        answer["rows"][0][place] = hostile
    answer["host"]["name"] = hostile
    daemon.answers["top"] = answer
    terminal = Terminal([*command, "top"], columns=300, lines=24)
    try:
        terminal.wait_for(b"[red]bold[/red]")
        terminal.type(b"\r")
        terminal.wait_for(b"parent")
        terminal.read(0.5)
        assert b"\x1b]0;" not in terminal.output
        # textual itself names the shape of the pointer by an OSC that ends so
        assert b"\x07" not in re.sub(rb"\x1b\]22;[a-z]+\x07", b"", terminal.output)
        assert "\u202e".encode() not in terminal.output
    finally:
        terminal.close()


def test_without_a_terminal_it_says_what_to_do(daemon, spawn):
    result = spawn("top", stdin=subprocess.DEVNULL)
    assert result.returncode == 2
    assert "--once" in result.stderr


def test_without_a_daemon_the_screen_is_not_taken(command):
    terminal = Terminal([*command, "top"], columns=80, lines=24)
    try:
        assert terminal.end() == 3
        assert b"systemctl start licagent" in terminal.output
        assert b"\x1b[?1049h" not in terminal.output
    finally:
        terminal.close()


def test_a_batch_ends_when_its_reader_leaves_or_by_interrupt(daemon, command):
    for leave, status in ((True, 141), (False, 130)):
        with subprocess.Popen(
            [*command, "top", "-b", "-d", "0.3"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            assert process.stdout.readline().startswith(b"licagent top")
            if leave:
                process.stdout.close()
            else:
                process.send_signal(signal.SIGINT)
            assert process.wait(30) == status
            assert process.stderr.read() == b""
