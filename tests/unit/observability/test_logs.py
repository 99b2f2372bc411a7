# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import io
import json
import logging
import os
import socket

import pytest

from licagent.observability import logs
from licagent.observability.logs import JournalHandler, journal_message, setup_logging


@pytest.fixture(autouse=True)
def restored():
    logger = logging.getLogger("licagent")
    before = (list(logger.handlers), logger.level, logger.propagate)
    yield
    for handler in logger.handlers:
        if handler not in before[0]:
            handler.close()
    logger.handlers, logger.level, logger.propagate = before[0], before[1], before[2]


log = logging.getLogger("licagent.daemon.main")


def test_text_is_one_line_with_its_fields():
    stream = io.StringIO()
    setup_logging({}, stream=stream)
    log.warning("license ended", extra={"fields": {"license": "acme", "sockets": 3}})
    line = stream.getvalue()
    assert line.endswith(" WARNING daemon.main: license ended license=acme sockets=3\n")


def test_text_of_strangers_cannot_forge_a_line_or_move_the_cursor():
    stream = io.StringIO()
    setup_logging({}, stream=stream)
    log.info("saw %s", "x\n2026 ERROR forged \x1b[2J", extra={"fields": {"name": "\x9b1m\u202e"}})
    assert stream.getvalue().count("\n") == 1
    for character in "\x1b\x9b\u202e":
        assert character not in stream.getvalue()


def test_json_is_one_object_a_line():
    stream = io.StringIO()
    setup_logging({}, form="json", stream=stream)
    log.info("a\nb", extra={"fields": {"license": "acme", "level": "forged", "path": os}})
    row = json.loads(stream.getvalue())
    assert stream.getvalue().count("\n") == 1
    assert (row["message"], row["license"], row["level"]) == ("a\nb", "acme", "info")
    assert row["at"].endswith("Z")


@pytest.mark.parametrize("form", ["text", "json"])
def test_a_traceback_is_kept(form):
    stream = io.StringIO()
    setup_logging({}, form=form, stream=stream)
    try:
        raise RuntimeError("cause")
    except RuntimeError:
        log.exception("failed")
    assert "RuntimeError: cause" in stream.getvalue()


def test_setting_up_again_does_not_double_lines():
    stream = io.StringIO()
    setup_logging({}, stream=stream)
    setup_logging({}, stream=stream)
    log.info("once")
    assert stream.getvalue().count("once") == 1


def test_the_level_holds():
    stream = io.StringIO()
    setup_logging({}, stream=stream, level=logging.WARNING)
    log.info("quiet")
    assert stream.getvalue() == ""


def fields(datagram: bytes) -> dict[bytes, bytes]:
    """A journal datagram, read as journald reads it."""
    found: dict[bytes, bytes] = {}
    while datagram:
        line, _, datagram = datagram.partition(b"\n")
        name, equals, value = line.partition(b"=")
        if not equals:
            length = int.from_bytes(datagram[:8], "little")
            value, datagram = datagram[8 : 8 + length], datagram[8 + length + 1 :]
        found[name] = value
    return found


def test_the_journal_gets_fields_of_its_own(tmp_path, monkeypatch):
    path = tmp_path / "journal"
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as journal,
        (tmp_path / "err").open("w", encoding="utf-8") as stream,
    ):
        journal.bind(str(path))
        journal.settimeout(5)
        monkeypatch.setattr(logs, "JOURNAL_SOCKET", path)
        status = os.fstat(stream.fileno())
        environment = {"JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino}"}
        setup_logging(environment, stream=stream)
        log.error("it\nLICAGENT_LICENSE=forged", extra={"fields": {"license": "acme", "a-b": 1}})
        found = fields(journal.recv(65536))
    assert found[b"MESSAGE"] == b"it\nLICAGENT_LICENSE=forged"
    assert found[b"PRIORITY"] == b"3"
    assert found[b"SYSLOG_IDENTIFIER"] == b"licagent"
    assert found[b"LICAGENT_LICENSE"] == b"acme"
    assert found[b"LICAGENT_A_B"] == b"1"


def test_a_redirected_stream_is_no_journal(tmp_path):
    stream = io.StringIO()
    setup_logging({"JOURNAL_STREAM": "1:2"}, stream=stream)
    log.info("here")
    assert "here" in stream.getvalue()


def test_a_journal_that_is_not_there_costs_no_line(tmp_path, monkeypatch):
    monkeypatch.setattr(logs, "JOURNAL_SOCKET", tmp_path / "none")
    stream = io.StringIO()
    setup_logging({}, form="journal", stream=stream)
    log.info("here")
    assert "here" in stream.getvalue()


def test_a_journal_that_takes_nothing_costs_lines_and_not_the_daemon(tmp_path):
    path = tmp_path / "journal"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as journal:
        journal.bind(str(path))
        handler = JournalHandler(path)
        record = log.makeRecord("licagent", logging.INFO, "f", 1, "m", (), None)
        for _ in range(2000):
            handler.emit(record)
        handler.close()
    assert handler.dropped > 0


def test_a_huge_value_is_cut():
    extra = {"fields": {"name": "x" * 1_000_000}}
    record = log.makeRecord("licagent", logging.DEBUG, "f", 1, "m", (), None, extra=extra)
    message = journal_message(record)
    assert len(message) < 20_000
    assert fields(message)[b"PRIORITY"] == b"7"
    assert b"(cut)" in message
