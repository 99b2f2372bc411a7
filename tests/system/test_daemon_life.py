# SPDX-License-Identifier: Apache-2.0
"""The daemon and its service manager: life signs, broken settings, reload, joining by itself."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.kernel.harness.agent import AgentUnderTest
from tests.system.harness.controlplane import ControlPlane, Host
from tests.system.harness.scene import HOLDER, STRANGER, Scene, eventually

MakeScene = Callable[..., Scene]
_SEIZE, _INTERRUPT, _DETACH = 0x4206, 0x4207, 17  # ptrace(2)


class Manager:
    """What systemd is to a service: a socket that takes its messages."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self._socket.setblocking(False)
        self._heard: list[dict[str, str]] = []

    def messages(self) -> list[dict[str, str]]:
        """Those that nobody has looked at yet."""
        with contextlib.suppress(BlockingIOError):
            while True:
                text = self._socket.recv(65536).decode()
                self._heard.append(dict(line.split("=", 1) for line in text.splitlines()))
        found, self._heard = self._heard, []
        return found

    def until(self, field: str, value: str = "") -> dict[str, str]:
        """The first message to come with the field, its value containing `value`."""

        def look() -> dict[str, str] | None:
            heard = self.messages()
            for place, message in enumerate(heard):
                if value in message.get(field, "\0"):
                    self._heard = heard[place + 1 :]
                    return message
            return None

        return eventually(look, f"{field} with {value!r}") or {}

    def close(self) -> None:
        """No more messages."""
        self._socket.close()


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Manager]:
    """A service manager that wants a sign of life every second."""
    made = Manager(tmp_path / "notify")
    monkeypatch.setenv("NOTIFY_SOCKET", str(made.path))
    monkeypatch.setenv("WATCHDOG_USEC", "2000000")
    yield made
    made.close()


def test_the_watchdog_is_fed_by_progress_not_by_existence(
    manager: Manager, make_scene: MakeScene
) -> None:
    """The thread that changes the kernel is stopped, the rest runs: no sign of life comes."""
    scene = make_scene()
    scene.agent.start()
    scene.ready()
    manager.until("READY", "1")
    manager.until("WATCHDOG", "1")
    process = scene.agent.process
    assert process is not None

    def is_quiet() -> bool:
        manager.messages()
        time.sleep(4.0)  # four signs are due
        return not [each for each in manager.messages() if "WATCHDOG" in each]

    with _stopped_threads(process.pid):
        time.sleep(1.0)  # what was under way; on a machine that others want it takes longer
        eventually(is_quiet, "no sign of life", within_s=30)
        assert process.poll() is None
    manager.until("WATCHDOG", "1")
    assert scene.agent.answers()


@contextlib.contextmanager
def _stopped_threads(pid: int) -> Iterator[None]:
    """Stop every thread of a process but the first, which has the event loop."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.ptrace.argtypes = (ctypes.c_long, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
    held = []
    try:
        for name in os.listdir(f"/proc/{pid}/task"):
            tid = int(name)
            if tid == pid:
                continue
            for request in (_SEIZE, _INTERRUPT):
                assert libc.ptrace(request, tid, None, None) == 0, os.strerror(ctypes.get_errno())
            os.waitpid(tid, 0x40000000)  # __WALL: until it has stopped
            held.append(tid)
        yield
    finally:
        for tid in held:
            libc.ptrace(_DETACH, tid, None, None)


def test_broken_settings_leave_the_last_good_ones_in_force(
    manager: Manager, make_scene: MakeScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A start and a reload with settings that are refused; what is enforced stays, and is said."""
    scene = make_scene()
    # Commands find the daemon without agent.toml, as they do by the default in an installation.
    monkeypatch.setenv("LICAGENT_RUNTIME_DIR", str(scene.agent.folder / "run"))
    scene.agent.start()
    scene.ready()
    good = (scene.agent.config / "agent.toml").read_text()
    broken = good.replace('mode = "enforce"', 'mode = "enfroce"')
    assert broken != good
    manager.until("READY", "1")

    def reload(text: str) -> None:
        (scene.agent.config / "agent.toml").write_text(text)
        assert scene.agent.process is not None
        manager.messages()  # a full queue takes no more
        scene.agent.process.send_signal(signal.SIGHUP)
        manager.until("RELOADING", "1")

    def codes() -> set[str]:
        return {each["code"] for each in scene.cli("status", "--json").json["reasons"]}

    reload(broken)
    assert "enfroce" in manager.until("STATUS", "settings are refused")["STATUS"]
    assert codes() == {"settings-refused"}
    assert scene.connect(STRANGER) == "ENOKEY"
    assert scene.connect(HOLDER) == "ok"

    scene.agent.stop()
    _start_as_it_stands(scene.agent)  # with the broken file
    assert codes() == {"settings-refused"}
    assert scene.cli("status").status == 150
    assert scene.connect(STRANGER) == "ENOKEY"
    assert scene.connect(HOLDER) == "ok"

    reload(good.replace('mode = "enforce"', 'mode = "observe"') + 'labels = { region = "eu" }\n')
    eventually(lambda: scene.connect(STRANGER) == "ok", "observing since the reload")
    assert codes() == {"settings-wait"}
    reload(good)
    eventually(lambda: scene.connect(STRANGER) == "ENOKEY", "enforcing since the reload")
    assert not codes()


def test_a_reload_that_fails_half_way_is_made_whole_by_the_next(
    manager: Manager, make_scene: MakeScene
) -> None:
    """The mode is another only once the kernel has it: the status says what is done."""
    scene = make_scene()
    scene.agent.start()
    scene.ready()
    manager.until("READY", "1")
    settings = scene.agent.config / "agent.toml"

    def reload() -> str:
        assert scene.agent.process is not None
        manager.messages()  # a full queue takes no more
        scene.agent.process.send_signal(signal.SIGHUP)
        manager.until("RELOADING", "1")
        return manager.until("READY", "1")["STATUS"]

    # Records of licenses cannot be written any more, as on a full disk, and there is a new one.
    in_the_way = scene.agent.folder / "state" / ".licenses-spare.json.tmp"
    in_the_way.mkdir()
    (scene.agent.config / "licenses" / "late.lic").write_text(scene.agent.token("late", ["db"]))
    settings.write_text(settings.read_text().replace('mode = "enforce"', 'mode = "observe"'))
    assert "enforcing" in reload(), scene.agent.log()
    reasons = scene.cli("status", "--json").json["reasons"]
    assert "settings-refused" in {each["code"] for each in reasons}
    assert scene.connect(STRANGER) == "ENOKEY"

    in_the_way.rmdir()
    assert "observing" in reload()
    assert scene.connect(STRANGER) == "ok"
    assert scene.cli("status").status == 0


def test_without_any_good_settings_it_ends_and_says_why(
    manager: Manager, make_scene: MakeScene
) -> None:
    """The first start ever with broken settings: the exit status and the status text say it."""
    scene = make_scene()
    scene.agent.write_config()
    with (scene.agent.config / "agent.toml").open("a") as file:
        file.write("mood = 1\n")
    process = scene.agent.spawn()
    assert process.wait(180) == 7
    assert "mood" in manager.until("STATUS")["STATUS"]


def _start_as_it_stands(agent: AgentUnderTest) -> None:
    """Start the daemon without writing agent.toml anew."""
    agent.spawn()
    agent.wait_ready()


@pytest.mark.parametrize("name", ["licagent.join-token", "licagent.join-token.encrypted"])
def test_a_host_joins_by_the_credential_of_its_service_manager(
    name: str, plane: ControlPlane, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody runs `licagent enroll`; the token stays unread once the host has joined."""
    (tmp_path / name).write_text(plane.join() + "\n")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    with Host(plane, AgentUnderTest()) as host:
        host.agent.start()
        eventually(lambda: host.control["state"] == "connected", f"joined: {host.agent.log()}")
        joined = host.id
        host.agent.stop()
        host.agent.start()
        eventually(lambda: host.control["state"] == "connected", "there again")
        assert host.id == joined
        assert list(plane.hosts()) == [joined]


def test_a_host_that_left_does_not_join_again_by_its_credential(
    plane: ControlPlane, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The image still has the token: whether the host comes back is root's to say."""
    (tmp_path / "licagent.join-token").write_text(plane.join(uses=3) + "\n")
    with Host(plane, AgentUnderTest()) as host:
        host.agent.start()
        first = host.enroll()["host_id"]
        host.ask("leave")
        host.agent.stop()
        monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
        host.agent.start()
        eventually(lambda: "this host left" in host.agent.log(), "it says why it does not join")
        assert host.control["state"] == "unenrolled"
        assert list(plane.hosts()) == [first]

        second = host.enroll()["host_id"]
        assert second != first
        # Root has said it: what was remembered of leaving is forgotten.
        assert not (host.agent.folder / "state" / "left.json").exists()
