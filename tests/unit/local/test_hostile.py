# SPDX-License-Identifier: Apache-2.0
"""Clients that mean harm: after each of them the server still answers the next one."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import socket
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from licagent.local.client import LocalClient
from licagent.local.errors import ErrorCode, LocalError
from licagent.local.methods import METHODS, check_params
from licagent.local.wire import MAX_REQUEST_BYTES, decode_request, encode


def test_a_client_that_says_nothing_is_cut(serve):
    service = serve(request_timeout_s=2)  # the good client has no more either
    with service.connect() as raw:
        assert raw.line() is None
    assert service.server.refused["request_timeout"] == 1
    assert service.ask("status")["result"]["ok"] is True


def test_a_slow_loris_is_cut_though_it_keeps_talking(serve):
    service = serve(request_timeout_s=2)
    with service.connect() as raw, contextlib.suppress(BrokenPipeError, ConnectionResetError):
        for byte in b'{"id":1,"method":"status","params":{' + b" " * 10_000:
            raw.send(bytes([byte]))
            time.sleep(0.02)
        pytest.fail("never cut")
    assert service.ask("status")["result"]["ok"] is True


def test_a_flood_of_10_000_requests_keeps_nobody_waiting(serve):
    service = serve()
    with service.connect() as flood:
        line = b'{"id":1,"method":"status"}\n'
        sender = threading.Thread(target=flood.send, args=(line * 10_000,))
        sender.start()
        # Others are answered while the flood is.
        for _ in range(20):
            assert service.ask("explain", pid=1)["result"]["ok"] is True
        answered = 0
        while answered < 10_000:
            assert flood.line()["result"]["ok"] is True
            answered += 1
        sender.join()
    assert [name for name, _, _ in service.calls].count("status") == 10_000


def test_a_flood_of_somebody_not_root_is_paced(serve, as_child):
    service = serve(readers_gid=65534, mode=0o666, burst=10, requests_per_s=20.0)
    service.path.parent.chmod(0o755)

    def flood() -> int:
        with service.connect() as raw:
            raw.send(b'{"id":1,"method":"status"}\n' * 100)
            for _ in range(10):
                assert raw.line()["result"]["ok"] is True
            time.sleep(1)
        return 0

    _open_the_way(service.path)
    began_s = time.monotonic()
    assert as_child(flood, uid=65534, gid=65534, groups=[]) == 0
    # 10 at once and 20 in each second; root has no such bound.
    assert 10 <= len(service.calls) <= 30 + 20 * (time.monotonic() - began_s)
    with service.connect() as raw:
        raw.send(b'{"id":1,"method":"status"}\n' * 100)
        for _ in range(100):
            assert raw.line()["result"]["ok"] is True


def test_a_line_of_1_gib_ends_after_64_kib_of_it(serve):
    service = serve()
    before_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    chunk = b"x" * (1 << 20)
    sent = 0
    with service.connect() as raw:
        try:
            while sent < 1 << 30:
                raw.send(chunk)
                sent += len(chunk)
        except (BrokenPipeError, ConnectionResetError):
            pass
        assert raw.code() == "PROTOCOL"
        assert raw.line() is None
    assert sent < 8 << 20
    grown_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kib
    assert grown_kib < 32 * 1024
    assert service.ask("status")["result"]["ok"] is True


def test_the_longest_line_is_taken_and_one_more_byte_is_not(serve):
    service = serve()

    def padded(length: int) -> bytes:
        line = b'{"id":1,"method":"status"}'
        return line + b" " * (length - len(line) - 1) + b"\n"

    with service.connect() as raw:
        raw.send(padded(MAX_REQUEST_BYTES))
        assert raw.line()["result"]["ok"] is True
    with service.connect() as raw:
        raw.send(padded(MAX_REQUEST_BYTES + 2))
        assert raw.code() == "PROTOCOL"


MALFORMED = {
    "empty": b"",
    "no JSON": b"hello",
    "half": b'{"id":1,',
    "array": b"[]",
    "text": b'"status"',
    "number": b"1e999999999",
    "null": b"null",
    "no method": b'{"id":1}',
    "method of wrong type": b'{"id":1,"method":5}',
    "params of wrong type": b'{"id":1,"method":"status","params":[1]}',
    "id of wrong type": b'{"id":[],"method":"status"}',
    "boolean id": b'{"id":true,"method":"status"}',
    "long id": b'{"id":"' + b"x" * 65 + b'","method":"status"}',
    "large id": b'{"id":99999999999999999999,"method":"status"}',
    "unknown member": b'{"id":1,"method":"status","sudo":true}',
    "duplicate member": b'{"id":1,"method":"status","method":"license.add"}',
    "NaN": b'{"id":NaN,"method":"status"}',
    "infinity": b'{"id":1,"method":"explain","params":{"pid":-Infinity}}',
    "5,000 digits": b'{"id":' + b"9" * 5000 + b',"method":"status"}',
    "bad UTF-8": b'{"id":1,"method":"st\xff\xfe"}',
    "NUL": b'{"id":1,"method":"status"}\0',
    "two documents": b'{"id":1,"method":"status"}{"id":2,"method":"status"}',
    "control characters": b'{"id":1,"method":"a\x01b"}',
    "deep arrays": b"[" * 60_000,
    "deep objects": b'{"a":' * 12_000,
    "deep parameters": b'{"id":1,"method":"status","params":' + b"[" * 17 + b"]" * 17 + b"}",
    "open string of quotes": b'{"' + b'\\"' * 30_000,
}


@pytest.mark.parametrize("name", MALFORMED)
def test_what_is_no_request_is_answered_and_ends_the_connection(serve, name):
    service = serve()
    with service.connect() as raw:
        raw.send(MALFORMED[name] + b"\n")
        assert raw.code() == "PROTOCOL"
        assert raw.line() is None
    assert service.calls == []
    assert service.ask("status")["result"]["ok"] is True


@pytest.mark.parametrize(
    ("method", "params"),
    [
        ("explain", {"pid": "1"}),
        ("explain", {"pid": 1.5}),
        ("explain", {"pid": True}),
        ("explain", {"pid": 0}),
        ("explain", {"pid": 2**40}),
        ("explain", {"pid": [1]}),
        ("explain", {}),
        ("explain", {"pid": 1, "socket": "2"}),
        ("explain", {"socket": {"a": 1}}),
        ("license.show", {}),
        ("license.show", {"id": 5}),
        ("license.show", {"id": "a\0b"}),
        ("license.show", {"id": "x" * 50_000}),
        ("license.show", {"id": "x", "more": 1}),
        ("policy.check", {"files": "x"}),
        ("policy.check", {"files": [{"name": "x"}]}),
        ("policy.check", {"files": [{"name": "x", "text": 1}]}),
        ("policy.check", {"files": [{"name": "x", "text": "y", "mode": 7}]}),
        ("break_glass", {"for_s": 86_401, "reason": "x"}),
        ("break_glass", {"for_s": -1, "reason": "x"}),
        ("break_glass", {"end": "yes"}),
        ("break_glass", {"end": False}),
        ("events", {"follow": 1}),
        ("events", {"verdict": "maybe"}),
        ("events", {"limit": 1_000_001}),
    ],
)
def test_wrong_parameters_are_named_and_the_connection_goes_on(serve, method, params):
    service = serve()
    with service.connect() as raw:
        reply = raw.ask(method, **params)
        assert reply["error"]["code"] == "INVALID_PARAMS"
        assert method in reply["error"]["message"]
        assert raw.ask("status")["result"]["ok"] is True
    assert [name for name, _, _ in service.calls] == ["status"]


def test_an_unknown_method_is_named_and_the_connection_goes_on(serve):
    with serve().connect() as raw:
        assert raw.ask("rm -rf")["error"]["code"] == "UNKNOWN_METHOD"
        assert raw.ask("x" * 60_000)["error"]["code"] == "UNKNOWN_METHOD"
        assert raw.ask("status")["result"]["ok"] is True


def test_a_client_that_never_reads_is_cut_and_holds_little(serve):
    service = serve(write_timeout_s=2, write_buffer_bytes=64 * 1024)
    with service.connect() as raw:
        raw.send(b'{"id":1,"method":"license.show","params":{"id":"large"}}\n' * 50)
        _until(lambda: service.server.refused["write_timeout"] == 1)
        _until(lambda: service.clients() == 0)
    assert len(service.calls) < 5  # what is not read is not computed either
    assert service.ask("status")["result"]["ok"] is True


def test_a_stream_nobody_reads_is_cut_and_its_source_closed(serve):
    service = serve(write_timeout_s=2, write_buffer_bytes=64 * 1024)
    with service.connect() as raw:
        raw.send(b'{"id":1,"method":"events","params":{"limit":1000000}}\n')
        assert service.streams_ended.wait(20)
        _until(lambda: service.clients() == 0)
    assert service.server.refused["write_timeout"] == 1


def test_1000_connections_leave_room_for_nobody_else_for_as_long_as_they_last(serve, many_files):
    service = serve(request_timeout_s=60)
    crowd = []
    try:
        crowd += [service.connect() for _ in range(1000)]
        _until(lambda: sum(service.server.refused.values()) == 1000 - 64)
        assert service.clients() == 64
        with service.connect() as late:
            assert late.code() == "BUSY"
        with pytest.raises(LocalError) as caught:
            LocalClient(service.path, 6).call("status")
        assert caught.value.code is ErrorCode.BUSY
        # Who waits a moment gets in when somebody leaves.
        crowd[0].socket.close()
        assert LocalClient(service.path, 20).call("status")["ok"] is True
    finally:
        for raw in crowd:
            raw.socket.close()
    _until(lambda: service.clients() == 0)
    assert service.ask("status")["result"]["ok"] is True


def test_connecting_and_leaving_10_000_times_leaks_nothing(serve):
    service = serve()
    service.ask("status")
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(10_000):
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(str(service.path))
        connection.close()
    _until(lambda: service.clients() == 0)
    assert LocalClient(service.path, 20).call("status")["ok"] is True
    _until(lambda: len(os.listdir("/proc/self/fd")) <= before + 1)


# ------------------------------------------------------------------------------ credentials


def _open_the_way(path) -> None:
    """Let another user reach `path`: pytest's folders are closed to all but their owner."""
    for folder in path.parents:
        if folder.stat().st_uid == os.geteuid() and folder != folder.parent:
            folder.chmod(folder.stat().st_mode | 0o011)


NOBODY = 65534
READERS = 54321


def _asks(service, method: str, **params):
    def ask() -> int:
        try:
            LocalClient(service.path, 20).call(method, params)
        except LocalError as error:
            if error.code is not ErrorCode.PERMISSION:
                return 50
            return 1 if error.message.startswith("uid") else 2
        return 0

    return ask


@pytest.fixture
def root_only() -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root to become somebody else")


@pytest.mark.usefixtures("root_only")
@pytest.mark.parametrize(
    ("groups", "mode", "status"),  # the first of the groups is the primary one
    [
        ([NOBODY], 0o660, 2),  # the socket's mode: cannot even connect
        ([NOBODY], 0o666, 1),  # the credentials: refused though the mode would allow it
        ([NOBODY, 1, 2, 3], 0o666, 1),
        ([READERS], 0o660, 0),  # primary group
        ([NOBODY, 1, READERS, 3], 0o660, 0),  # supplementary group
        ([0, 0], 0o666, 1),  # group root is not user root
    ],
)
def test_reads_are_for_root_and_the_group(serve, as_child, groups, mode, status):
    service = serve(readers_gid=READERS, mode=mode)
    _open_the_way(service.path)
    assert (
        as_child(_asks(service, "status"), uid=NOBODY, gid=groups[0], groups=groups[1:]) == status
    )
    assert len(service.calls) == (1 if status == 0 else 0)


@pytest.mark.usefixtures("root_only")
@pytest.mark.parametrize(
    ("method", "params"),
    [("license.add", {"text": "x"}), ("break_glass", {"for_s": 5, "reason": "x"})],
)
def test_writes_are_for_root_alone(serve, as_child, method, params):
    service = serve(readers_gid=READERS)
    _open_the_way(service.path)
    ask = _asks(service, method, **params)
    assert as_child(ask, uid=NOBODY, gid=READERS, groups=[READERS]) == 1
    assert service.calls == []
    assert as_child(ask, uid=0, gid=0, groups=[]) == 0


@pytest.mark.usefixtures("root_only")
def test_the_refused_are_told_why_however_early_the_server_hangs_up(serve, as_child):
    service = serve(mode=0o666)
    _open_the_way(service.path)
    ask = _asks(service, "license.show", id="x" * 30_000)

    def often() -> int:
        return max(ask() != 1 for _ in range(300))

    assert as_child(often, uid=NOBODY, gid=NOBODY, groups=[]) == 0


@pytest.mark.usefixtures("root_only")
def test_credentials_are_those_of_connecting_not_of_asking(serve):
    """A connection opened by root and handed down is root's; one by nobody stays nobody's."""
    service = serve(readers_gid=READERS, mode=0o666)
    _open_the_way(service.path)
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        os.setgroups([READERS])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(str(service.path))
        socket.send_fds(theirs, [b"x"], [connection.fileno()])
        os._exit(0)
    _, descriptors, _, _ = socket.recv_fds(ours, 1, 1)
    os.waitpid(pid, 0)
    with ours, theirs, socket.socket(fileno=descriptors[0]) as passed:
        passed.sendall(b'{"id":1,"method":"license.add","params":{"text":"x"}}\n')
        assert json.loads(passed.recv(4096))["error"]["code"] == "PERMISSION"


@pytest.mark.usefixtures("root_only")
def test_members_of_the_group_cannot_keep_root_out(serve, as_child):
    service = serve(
        readers_gid=READERS, max_clients=12, max_clients_per_uid=5, clients_kept_for_root=4
    )
    _open_the_way(service.path)
    results = []
    ready, go = os.pipe()

    def crowd() -> int:
        connections = [service.connect() for _ in range(8)]
        refused = 0
        for raw in connections[5:]:
            refused += raw.code() == "BUSY"
        os.write(go, b"x")
        time.sleep(30)
        return refused

    children = []
    for uid in (NOBODY, NOBODY - 1):
        pid = os.fork()
        if pid == 0:
            os.setgroups([READERS])
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(uid, uid, uid)
            with contextlib.suppress(BaseException):
                crowd()
            os._exit(1)
        children.append(pid)
        os.read(ready, 1)
        results.append(service.clients())
    try:
        # Five of the first; of the second what is not kept for root.
        assert results == [5, 8]
        assert service.ask("status")["result"]["ok"] is True
    finally:
        for pid in children:
            os.kill(pid, 9)
            os.waitpid(pid, 0)
        os.close(ready)
        os.close(go)


def _until(condition) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end, "never came"
        time.sleep(0.01)


# ------------------------------------------------------------------------------ any bytes


def _outcome(attempt):
    try:
        return attempt()
    except LocalError as error:
        return error


@given(st.binary(max_size=400))
def test_any_bytes_are_a_request_or_a_named_refusal(data):
    found = _outcome(lambda: decode_request(data))
    if isinstance(found, LocalError):
        assert found.code == "PROTOCOL"
    else:
        assert isinstance(found.method, str)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(st.sampled_from(sorted(METHODS)), st.data())
def test_any_parameters_are_checked_values_or_a_named_refusal(name, data):
    method = METHODS[name]
    names = st.sampled_from([*(param.name for param in method.params), "other"])
    given_params = data.draw(st.dictionaries(names, JSON, max_size=4))
    found = _outcome(lambda: check_params(method, given_params))
    if isinstance(found, LocalError):
        assert found.code == "INVALID_PARAMS"
        assert name in found.message
    else:
        assert found.keys() == {param.name for param in method.params}


@given(st.dictionaries(st.text(), JSON, max_size=4))
def test_a_message_is_one_line_of_ascii(message):
    line = encode(message)
    assert line.endswith(b"\n")
    assert b"\n" not in line[:-1]
    assert line.isascii()
    assert json.loads(line) == message
