# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import asyncio
import errno
import os
import socket
import stat
import subprocess
import sys
import threading

import pytest

from licagent.local.client import LocalClient
from licagent.local.errors import ErrorCode, LocalError
from licagent.local.server import LocalServer


def test_a_result_comes_back_with_its_id_and_version(serve):
    reply = serve().ask("status")
    assert reply == {
        "id": 7,
        "result": {"schema_version": 1, "ok": True, "pid": os.getpid(), "uid": os.geteuid()},
    }


def test_one_connection_takes_many_requests(serve):
    service = serve()
    with service.connect() as raw:
        assert [raw.ask("status")["result"]["ok"] for _ in range(3)] == [True] * 3


def test_client_and_server_speak_to_each_other(serve):
    client = LocalClient(serve().path, 10)
    assert client.call("status")["ok"] is True
    assert [item["number"] for item in client.stream("events", {"limit": 3})] == [0, 1, 2]
    with pytest.raises(LocalError) as caught:
        client.call("license.show", {"id": "missing"})
    assert caught.value.code is ErrorCode.NOT_FOUND
    assert (caught.value.message, caught.value.hint) == ("no such license", "list them")


def test_a_failing_handler_is_answered_without_its_secrets(serve, caplog):
    service = serve()
    reply = service.ask("license.show", id="broken")
    assert reply["error"]["code"] == "INTERNAL"
    assert "secret" not in str(reply)
    assert "a secret of the daemon" in caplog.text  # the log has it
    assert service.ask("license.show", id="nan")["error"]["code"] == "INTERNAL"
    assert service.ask("status")["result"]["ok"] is True


def test_handlers_get_checked_parameters_with_defaults(serve):
    service = serve()
    service.ask("explain", pid=5)
    assert service.calls[-1][1] == {"pid": 5, "socket": None}


def test_a_method_must_be_registered_as_the_table_says(tmp_path):
    server = LocalServer(tmp_path / "s", readers_gid=None)

    async def handler(params, peer):
        return {}

    with pytest.raises(ValueError, match="write=True"):
        server.method("license.add", handler, write=False)
    with pytest.raises(ValueError, match="stream=True"):
        server.method("events", handler)
    with pytest.raises(KeyError):
        server.method("no.such", handler)


def test_closing_a_stream_ends_its_source(serve):
    service = serve()
    with service.connect() as raw:
        raw.send(b'{"id":1,"method":"events","params":{"follow":true,"limit":1}}\n')
        assert raw.line() == {"id": 1, "item": {"number": 0}}
        assert not service.streams_ended.is_set()
    assert service.streams_ended.wait(10)


def test_half_closing_still_gets_the_answer(serve):
    with serve().connect() as raw:
        raw.send(b'{"id":1,"method":"status"}\n')
        raw.socket.shutdown(socket.SHUT_WR)
        assert raw.line()["result"]["ok"] is True
        assert raw.line() is None


def test_the_socket_is_roots_and_the_groups(serve):
    status = serve(readers_gid=65534).path.lstat()
    assert stat.S_IMODE(status.st_mode) == 0o660
    assert status.st_gid == 65534
    # The folder has nothing else left in it.
    assert stat.S_ISSOCK(status.st_mode)


def test_without_a_group_the_socket_is_roots_alone(serve):
    path = serve().path
    assert stat.S_IMODE(path.lstat().st_mode) == 0o600
    assert [entry.name for entry in path.parent.iterdir()] == ["licagent.sock"]


def test_a_second_server_is_told_and_the_first_stays(serve):
    service = serve()

    async def second():
        await LocalServer(service.path, readers_gid=None).start()

    with pytest.raises(OSError, match="another daemon") as caught:
        asyncio.run(second())
    assert caught.value.errno == errno.EADDRINUSE
    assert service.ask("status")["result"]["ok"] is True


def test_a_dead_daemons_socket_is_replaced(serve, tmp_path):
    path = tmp_path / "run" / "licagent.sock"
    path.parent.mkdir()
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    assert serve().ask("status")["result"]["ok"] is True


def test_a_file_in_the_way_is_left_alone(tmp_path):
    path = tmp_path / "licagent.sock"
    path.write_text("precious", encoding="utf-8")

    async def start():
        await LocalServer(path, readers_gid=None).start()

    with pytest.raises(OSError, match="no socket"):
        asyncio.run(start())
    assert path.read_text(encoding="utf-8") == "precious"


def test_close_ends_clients_and_removes_the_socket(serve):
    service = serve()
    with service.connect() as raw:
        raw.ask("status")
        service.stop()
        assert raw.line() is None
    assert not service.path.exists()


def test_close_leaves_a_successors_socket(serve):
    service = serve()
    service.path.unlink()
    with socket.socket(socket.AF_UNIX) as successor:
        successor.bind(str(service.path))
        service.stop()
        assert service.path.exists()


def test_the_client_tells_apart_what_keeps_it_from_an_answer(tmp_path):
    with pytest.raises(LocalError) as caught:
        LocalClient(tmp_path / "nothing.sock").call("status")
    assert caught.value.code is ErrorCode.NOT_RUNNING
    with pytest.raises(LocalError) as caught:
        LocalClient(tmp_path / ("x" * 200)).call("status")
    assert caught.value.code is ErrorCode.NOT_RUNNING
    assert "107 bytes" in caught.value.hint


@pytest.mark.parametrize(
    ("reply", "code"),
    [
        (b"", ErrorCode.NOT_RUNNING),
        (b'{"id":1,"res', ErrorCode.NOT_RUNNING),
        (b"nonsense\n", ErrorCode.PROTOCOL),
        (b'{"id":1}\n', ErrorCode.PROTOCOL),
        (b'{"id":1,"result":{"schema_version":2}}\n', ErrorCode.PROTOCOL),
        (b'{"id":1,"error":"text"}\n', ErrorCode.INTERNAL),
        (b'{"id":1,"error":{"code":"NEW_CODE","message":"m"}}\n', ErrorCode.INTERNAL),
    ],
)
def test_the_client_survives_a_daemon_that_talks_nonsense(tmp_path, reply, code):
    path = tmp_path / "s.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def answer() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(reply)

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(LocalError) as caught:
            LocalClient(path, 10).call("status")
        thread.join()
    assert caught.value.code is code


def test_a_client_that_was_refused_for_the_crowd_says_so_when_its_time_is_over(tmp_path):
    path = tmp_path / "s.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def refuse_once() -> None:
            connection, _ = listener.accept()  # the next one is never taken
            with connection:
                connection.recv(4096)
                connection.sendall(b'{"id":null,"error":{"code":"BUSY","message":"m"}}\n')

        thread = threading.Thread(target=refuse_once)
        thread.start()
        with pytest.raises(LocalError) as caught:
            LocalClient(path, 3).call("status")
        thread.join()
    assert caught.value.code is ErrorCode.BUSY


def test_the_server_brings_in_no_command_line():
    code = (
        "import sys, licagent.local.server, licagent.local.fanout\n"
        "print(sorted(sys.modules.keys() & {'click', 'rich', 'cryptography', 'psutil'}))"
    )
    output = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    assert output == "[]\n"
