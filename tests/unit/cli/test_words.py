# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from licagent.cli.commands.explain import explain_blocks
from licagent.cli.output import Cell, Fields, Line, Table, plain
from licagent.cli.sentences import sentence, who, why
from licagent.cli.words import amount, duration, parse_duration, safe
from licagent.domain.reason import Reason, Verdict


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(None, "-"), (0, "ended"), (-5, "ended"), (59, "59 s"), (60, "1 min"), (3725, "1 h 2 min"),
     (3605, "1 h"), (90_061, "1 d 1 h"), (26323199, "304 d 15 h"), (True, "-"), ("x", "-")],
)  # fmt: skip
def test_durations(seconds, words):
    assert duration(seconds) == words


@pytest.mark.parametrize(
    ("count", "words"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (1536, "1.5 KiB"), (1 << 40, "1.0 TiB"),
     (1 << 70, "1048576.0 PiB"), (None, "-")],
)  # fmt: skip
def test_amounts(count, words):
    assert amount(count) == words


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("15m", 900), ("1h30m", 5400), ("2d", 172_800), ("15", None), ("", None),
     ("m", None), ("1h 30m", None), ("-5m", None), ("1h30", None), ("1w", None)],
)  # fmt: skip
def test_durations_of_the_command_line(text, seconds):
    assert parse_duration(text) == seconds


@given(st.text())
def test_safe_text_is_printable_and_encodable(text):
    shown = safe(text)
    assert shown
    assert shown.encode()
    assert not any(ord(character) < 32 or 127 <= ord(character) < 160 for character in shown)


def test_undecodable_file_names_are_shown():
    assert safe(b"/tmp/\xff".decode("utf-8", "surrogateescape")) == "/tmp/\\udcff"


@pytest.mark.parametrize("reason", list(Reason))
def test_every_reason_has_its_words(reason):
    assert why(reason.name) == why(reason.name.lower())
    assert (
        reason is Reason.NONE
        or why(reason.name) != reason.name.lower().replace("_", " ")
        or (reason is Reason.LICENSED)
    )


@pytest.mark.parametrize("verdict", [v for v in Verdict if v is not Verdict.NONE])
def test_every_verdict_makes_a_sentence(verdict):
    event = {"at": "T", "verdict": verdict.name.lower(), "reason": "revoked", "license": "lic",
             "resource": "db", "process": {"pid": 1, "name": "x", "uid": 5}}  # fmt: skip
    text = sentence(event)
    assert text.startswith(f"T {verdict.name:<6} x[1] (uid 5) ")
    assert text.endswith(" db: its license was revoked (license lic)")


def test_a_change_is_told_in_its_own_words():
    event = {"at": "T", "verdict": "none", "message": "root opened the host for 15 min: fire"}
    assert sentence(event) == "T NOTE   root opened the host for 15 min: fire"


def test_a_gap_is_told():
    assert sentence({"kind": "missed", "count": 12, "verdict": None}).startswith("12 events are")


def test_an_allowed_use_names_its_license_and_binding():
    event = {"at": "T", "verdict": "allow", "reason": "licensed", "license": "lic",
             "binding": "lic/1", "resource": "db", "count": 1, "process": {"name": "x"},
             "network": {"protocol": "tcp", "destination": "10.0.0.1:2"}}  # fmt: skip
    expected = "T ALLOW  x may use db at tcp 10.0.0.1:2: license lic, binding lic/1"
    assert sentence(event) == expected


def test_a_process_that_is_gone_is_still_somebody():
    assert who({}) == "a process that has ended"
    assert who({"executable": "/bin/x", "uid": 0, "container": "a" * 64}) == (
        "/bin/x (uid 0, container aaaaaaaaaaaa)"
    )


def test_plain_tables_are_aligned_and_uncut():
    long = "x" * 300
    lines = plain(
        [
            Line("head"),
            Line(""),
            Fields((("a", 1), ("longer", Cell("v", "good")), ("gone", None))),
            Table(("name", ">count"), [("a", 1), (long, 1000)], title="T"),
            Table(("name",), [], title="E", empty="nothing"),
        ]
    )
    assert lines[:4] == ["head", "", "a:       1", "longer:  v"]
    assert lines[4:6] == ["", "T"]
    assert lines[6] == "name" + " " * 296 + "  count"
    assert lines[7] == "a" + " " * 299 + "      1"
    assert lines[8] == long + "   1000"
    assert lines[9:] == ["", "E", "nothing"]


def test_explain_says_how_many_sockets_it_does_not_show():
    process = {"name": "proxy", "pid": 7}
    row = {"cookie": 1, "protocol": "tcp", "local": "10.0.0.9:1", "verdict": "none"}
    for left_out in (0, 234):
        answer = {"process": process, "sockets": [row], "sockets_left_out": left_out}
        shown = "\n".join(plain(explain_blocks(answer)))
        assert ("234 more sockets of it are not shown" in shown) is bool(left_out)


def test_explain_says_when_a_process_is_outside_of_what_is_enforced():
    def shown(**process):
        blocks = explain_blocks({"process": {"name": "curl", "pid": 7, **process}})
        return "\n".join(plain(blocks))

    assert "outside the cgroup_root" in shown(in_scope=False)
    assert "outside" not in shown(in_scope=True)
    assert "outside" not in shown()  # an older daemon does not say
