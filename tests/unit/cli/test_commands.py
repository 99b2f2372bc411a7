# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from licagent.cli.exits import EXITS
from licagent.local.errors import EXIT_STATUS, ErrorCode, LocalError
from licagent.local.methods import METHODS

EVERY_READ = [
    (["status"], "status"),
    (["explain", "4242"], "explain"),
    (["shadow"], "shadow"),
    (["usage"], "usage"),
    (["usage", "verify"], "usage-verify"),
    (["license", "list"], "license-list"),
    (["license", "show", "acme-orders-2026"], "license-show"),
    (["policy", "show"], "policy-show"),
    (["doctor"], "doctor"),
]


@pytest.mark.parametrize(("arguments", "name"), EVERY_READ)
def test_json_is_the_daemons_answer(daemon, run, examples, arguments, name):
    result = run(*arguments, "--json")
    assert json.loads(result.stdout) == examples(name)
    assert result.stderr == ""


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["status"], ["degraded", "HOOK_MISSING", "lsm=...,bpf", "acme-orders-2026", "304 d 15 h",
                      "generation 3: 1 resource, 2 bindings, 2 rules", "/usr/bin/psql",
                      'selectors = ["unix:user:alice"]', "lsm/socket_create", "6.1.0-31-amd64",
                      "1 of 1 program attached"]),
        (["status"], ["on, every 5 s, last commit 2026-03-02T12:00:00.120Z, 0.1% of CPU",
                      "2.0M of 512M, 44 records to deliver, 1 gap"]),
        (["status", "-v"], ["sum_exec_runtime", "estimated", "28870 records", "orders-data",
                            "1.0G", "usage records 1201 to 1216 are lost"]),
        (["status", "-v"], ["cgroup/connect4", "97", "no_binding", "3405", "trusted now"]),
        (["explain", "4242"], ["orders[4242]", "10.0.0.9:40312 -> 10.0.5.7:5432", "cookie:8193",
                               "allow: licensed", "acme-orders-2026/1", "2026-03-02T08:00:09Z",
                               "1.0 MiB sent, 7.0 MiB received", "ENOKEY",
                               "missing: no binding for billing-api matches this process",
                               "to get it: bind license acme-billing-2026"]),
        (["events"], [("2026-03-02T11:41:07.000Z DENY   curl[5120] (user alice, unit"
                      " session-4.scope) was refused orders-db at tcp 10.0.5.7:5432:"
                      " no binding gives it a license, 12 times")]),
        (["shadow"], ["1 deny, 0 unknown, 1 allow", "/usr/bin/psql", "alice", "session-4.scope",
                      "no binding gives it a license: binding acme-orders-2026/1 asks for",
                      "nothing: license acme-orders-2026", "10d01h"]),
        (["usage"], ["acme-orders-2026", "3405", "1.0M", "7.0M", "~4.0Gh", "12m15s",
                     "(unattributed)", "(no license)", "records 1201 to 1216"]),
        (["usage", "verify"], ["does NOT hold: 1 problem", "000004.seg", "1 to 28914",
                               "up to 28870", "3d4017c3e843895a"]),
        (["license", "list"], ["acme-orders-2026", "valid", "304 d 15 h", "orders-db",
                               "control plane", "2026-03-02T12:07:31.000Z"]),
        (["license", "show", "x"], ["revoked on this host", "contract ended", "orders-team",
 "orders-db is not granted: limit egress_bytes",
                                    "environments production", "systemd:unit:orders.service",
                                    "connect", "2026-12-31T23:59:59Z"]),
        (["license", "remove", "x"], ["acme-orders-2026 removed", "12 live sockets cut"]),
        (["license", "revoke", "x", "--reason", "y"], ["revoked", "12 live sockets cut"]),
        (["policy", "show"], ["generation 4", "tcp 10.0.5.0/24:5432; tcp 10.0.5.0/24:6432-6440",
                              "orders.toml:7", "all of the license"]),
        (["policy", "apply"], ["generation 4 in force: 1 resource, 2 bindings, 2 rules"]),
        (["policy", "check", "--live"], ["good: 1 resource, 2 bindings, 2 rules"]),
        (["doctor"], ["kernel BTF", "BAD", "start systemd-timesyncd", "AF_PACKET", "open",
                      "(kernel 5.7 with lsm=bpf)"]),
        (["break-glass", "--for", "15m", "--reason", "y"], ["open until 2026-03-02T12:15:00Z"]),
        (["detach", "--yes"], ["detached: 1 program", "cgroup/connect4"]),
        (["status"], ["control.example.org:8443", "2026-03-02T12:07:31.000Z", "revision",
                      "1042", "region=eu-1", "2026-03-02T20:00:00.000Z"]),
        (["enroll", "licjoin1.x"], ["enrolled: 3f6c2a54", "control.example.org:8443",
                                    "environment=production", "renewed by itself"]),
        (["leave"], ["left: 3f6c2a54", "settled"]),
    ],
)  # fmt: skip
def test_text_says_what_the_daemon_found(daemon, run, arguments, words):
    output = run(*arguments).stdout
    for word in words:
        assert word in output, output


def test_every_method_of_the_api_has_a_command(daemon, run, tmp_path):
    license_file = tmp_path / "x.lic"
    license_file.write_text("-----BEGIN", encoding="utf-8")
    for arguments in (
        *(arguments for arguments, _ in EVERY_READ),
        ["events"],
        ["license", "add", str(license_file)],
        ["license", "remove", "x"],
        ["license", "revoke", "x", "--reason", "y"],
        ["policy", "check", "--live"],
        ["policy", "apply"],
        ["break-glass", "--end"],
        ["config", "check", "--live"],
        ["enroll", "licjoin1.x"],
        ["leave"],
        ["top", "--once", "--delay", "0.3"],
        ["detach", "--yes"],
    ):
        run(*arguments)
    asked = {name for name, _ in daemon.calls}
    assert asked == METHODS.keys() - {"run.prepare"}  # test_run.py


@pytest.mark.parametrize(
    ("state", "status"), [("enforcing", 0), ("observing", 0), ("degraded", 150),
                          ("break-glass", 151), ("bewildered", 4)]
)  # fmt: skip
def test_status_exits_by_state(daemon, run, examples, state, status):
    daemon.answers["status"] = examples("status") | {"state": state}
    assert run("status").exit_code == status


@pytest.mark.parametrize("code", list(ErrorCode))
def test_errors_exit_by_class_and_say_what_to_do(daemon, run, code):
    daemon.answers["status"] = LocalError(code, "it went wrong", "do this", {"more": 1})
    result = run("status")
    assert result.exit_code == EXIT_STATUS[code]
    assert result.exit_code in EXITS
    assert result.stdout == ""
    assert result.stderr == "licagent: it went wrong\n  do this\n"
    as_json = run("status", "--json")
    assert as_json.exit_code == result.exit_code
    assert json.loads(as_json.stdout) == {
        "schema_version": 1,
        "error": {
            "code": code.value,
            "message": "it went wrong",
            "hint": "do this",
            "details": {"more": 1},
        },
    }


def test_no_daemon_is_exit_3(run):
    result = run("status")
    assert result.exit_code == 3
    assert "systemctl start licagent" in result.stderr


def test_a_refused_policy_lists_every_problem(daemon, run):
    problems = [
        {"file": "a.toml", "line": 3, "key": "cidr", "message": "bad", "suggestion": "good"},
        {"file": "b.toml", "line": 0, "key": "", "message": "worse", "suggestion": ""},
    ]
    daemon.answers["policy.apply"] = LocalError(
        ErrorCode.REFUSED, "the policy is refused", "", {"problems": problems}
    )
    result = run("policy", "apply")
    assert result.exit_code == 7
    assert "  a.toml:3: cidr: bad (good)\n  b.toml: worse\n" in result.stderr


def test_license_add_sends_each_file_and_standard_input(daemon, run, tmp_path):
    file = tmp_path / "one.lic"
    file.write_text("first", encoding="utf-8")
    result = run("license", "add", str(file), "-", "--json", stdin="second")
    assert [params["text"] for _, params in daemon.calls] == ["first", "second"]
    assert json.loads(result.stdout)["changed"] is True
    daemon.answers["license.add"] = {"id": "x", "changed": False}
    assert json.loads(run("license", "add", str(file), "--json").stdout)["changed"] is False


def test_license_add_reads_16_kib_and_no_more(daemon, run, tmp_path):
    file = tmp_path / "large.lic"
    with file.open("wb") as stream:
        stream.truncate(1 << 30)
    result = run("license", "add", str(file))
    assert result.exit_code == 7
    assert "larger than 16384 bytes" in result.stderr
    assert daemon.calls == []


def test_revoke_takes_an_id_or_a_statement(daemon, run, tmp_path):
    statement = tmp_path / "x.rev"
    statement.write_text("signed", encoding="utf-8")
    run("license", "revoke", "--statement", str(statement))
    assert daemon.calls[-1][1] == {"id": None, "statement": "signed", "reason": ""}
    run("license", "revoke", "lic", "--reason", "left")
    assert daemon.calls[-1][1] == {"id": "lic", "statement": None, "reason": "left"}
    for wrong in (["lic"], [], ["lic", "--statement", str(statement)]):
        assert run("license", "revoke", *wrong).exit_code == 2


def test_break_glass_wants_a_bound_and_a_reason(daemon, run):
    run("break-glass", "--for", "1h30m", "--reason", "fire")
    assert daemon.calls[-1] == ("break_glass", {"for_s": 5400, "reason": "fire", "end": None})
    run("break-glass", "--end")
    assert daemon.calls[-1][1]["end"] is True
    asked = len(daemon.calls)
    for wrong in (
        [],
        ["--for", "15m"],
        ["--for", "15m", "--reason", " "],
        ["--for", "2d", "--reason", "x"],
        ["--for", "soon", "--reason", "x"],
        ["--for", "1m", "--reason", "x", "--end"],
    ):
        assert run("break-glass", *wrong).exit_code == 2
    assert len(daemon.calls) == asked


@pytest.mark.parametrize(
    ("target", "params"),
    [
        ("4242", {"pid": 4242, "socket": None}),
        ("cookie:8193", {"pid": None, "socket": "8193"}),
        ("10.0.0.9:1 -> 10.0.5.7:2", {"pid": None, "socket": "10.0.0.9:1->10.0.5.7:2"}),
        ("[::1]:1->[::1]:2", {"pid": None, "socket": "[::1]:1->[::1]:2"}),
    ],
)
def test_explain_knows_processes_cookies_and_pairs(daemon, run, target, params):
    assert run("explain", target).exit_code == 0
    assert daemon.calls == [("explain", params)]


@pytest.mark.parametrize("target", ["0", "99999999", "cookie:x", "curl", "\u0664\u0662"])
def test_explain_refuses_what_it_does_not_know(daemon, run, target):
    assert run("explain", target).exit_code == 2
    assert daemon.calls == []


def test_detach_asks_nobody_without_yes(daemon, run):
    result = run("detach")
    assert result.exit_code == 2
    assert "--yes" in result.stderr
    assert daemon.calls == []


def test_policy_apply_sends_files_by_name(daemon, run, tmp_path):
    file = tmp_path / "orders.toml"
    file.write_text("# nothing", encoding="utf-8")
    run("policy", "apply", str(file))
    assert daemon.calls == [("policy.apply", {"files": (("orders.toml", "# nothing"),)})]


def test_policy_too_large_to_send_says_what_to_do(daemon, run, tmp_path):
    file = tmp_path / "orders.toml"
    file.write_text("#" * 70_000, encoding="utf-8")
    result = run("policy", "apply", str(file))
    assert result.exit_code == 2
    assert "run the command without them" in result.stderr


def test_config_check_live_names_what_awaits_a_restart(daemon, run, tmp_path):
    daemon.answers["config.check"] = {
        "settings": [
            {"key": "mode", "value": "enforce", "source": "default"},
            {"key": "loader", "value": "auto", "source": "default"},
        ]
    }
    found = json.loads(run("config", "check", "--live", "--json").stdout)
    assert found["pending"] == [{"key": "mode", "written": "observe", "running": "enforce"}]


def test_an_answer_without_its_fields_is_shown_and_not_a_traceback(daemon, run):
    for name in METHODS.keys() - {"events"}:
        daemon.answers[name] = {"changed": True}
    daemon.items = [{}]
    for arguments in (
        *(arguments for arguments, _ in EVERY_READ),
        ["events"],
        ["policy", "apply"],
        ["license", "remove", "x"],
        ["break-glass", "--end"],
        ["enroll", "x"],
        ["usage", "--csv"],
        ["top", "--once", "--delay", "0.3"],
        ["detach", "--yes"],
    ):
        assert run(*arguments).exit_code in (0, 4, 150), arguments


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ("waiting", ["waiting, last heard of 2026-03-02T12:00:01.880Z: connection refused"]),
        ("off", ["the settings want no link"]),
        ("stopped", ["stopped", "notice", "evicted: by alice"]),
    ],
)
def test_status_says_why_the_control_plane_is_away_and_that_is_no_error(
    daemon, run, examples, state, words
):
    answer = examples("status") | {"state": "enforcing", "reasons": []}
    answer["control"] |= {
        "state": state,
        "last_error": "connection refused",
        "notices": [{"at": "2026-03-02T12:00:00Z", "code": "evicted", "detail": "by alice"}],
    }
    daemon.answers["status"] = answer
    result = run("status")
    assert result.exit_code == 0
    for word in words:
        assert word in result.stdout, result.stdout


def test_status_says_nothing_of_a_control_plane_that_was_never_joined(daemon, run, examples):
    answer = examples("status")
    answer["control"] |= {"state": "unenrolled"}
    daemon.answers["status"] = answer
    assert "control plane" not in run("status").stdout


def test_enroll_takes_exactly_one_way(daemon, run, tmp_path):
    assert run("enroll").exit_code == 2
    assert run("enroll", "x", "--bundle", "y").exit_code == 2
    assert run("enroll", "--bundle", str(tmp_path / "none")).exit_code == 6
    assert daemon.calls == []


def test_enroll_passes_what_is_to_become_of_the_identity(daemon, run, tmp_path):
    bundle = tmp_path / "bundle"
    bundle.write_bytes(b"x")
    run("enroll", "-", "--again", stdin="licjoin1.y\n")
    run("enroll", "--bundle", str(bundle), "--new")
    given = [
        {key: value for key, value in params.items() if value is not None}
        for _, params in daemon.calls
    ]
    assert given == [
        {"join": "licjoin1.y", "identity": "again"},
        {"bundle": str(bundle), "identity": "new"},
    ]


def test_an_enrolment_request_is_a_file_for_its_owner_only(daemon, run, tmp_path):
    daemon.answers["enroll"] = {"changed": False, "request": "the request"}
    path = tmp_path / "request"
    result = run("enroll", "--request", str(path))
    assert "licplane host admit" in result.stdout
    assert path.read_text(encoding="utf-8") == "the request"
    assert path.stat().st_mode & 0o777 == 0o600


def test_events_pass_their_filters(daemon, run):
    run("events", "--since", "2026-03-02T13:00:00+02:00", "-n", "5", "--verdict", "deny",
        "--license", "a", "--resource", "b", "--pid", "7")  # fmt: skip
    assert daemon.calls == [
        ("events", {"follow": False, "since": "2026-03-02T11:00:00.000Z", "limit": 5,
                    "verdict": "deny", "license": "a", "resource": "b", "pid": 7})
    ]  # fmt: skip


def test_events_as_json_is_one_object_a_line(daemon, run, examples):
    daemon.items = [examples("events")] * 3
    lines = run("events", "--json").stdout.splitlines()
    assert [json.loads(line) for line in lines] == [examples("events")] * 3


def test_a_bad_settings_file_does_not_hide_the_daemon(daemon, run, tmp_path, monkeypatch):
    (tmp_path / "agent.toml").write_text("mod = 1\n", encoding="utf-8")
    monkeypatch.setenv("LICAGENT_RUNTIME_DIR", str(tmp_path / "runtime"))
    assert run("status").exit_code == 150
    monkeypatch.delenv("LICAGENT_RUNTIME_DIR")
    result = run("status")
    assert "unknown key" in result.stderr
    assert result.exit_code == 3  # asked at the default address, where nobody is


def test_unknown_command_suggests_the_nearest(run):
    result = run("statsu")
    assert result.exit_code == 2
    assert "Did you mean 'status'?" in result.stderr


def test_help_lists_commands_and_exit_statuses_without_loading_them():
    code = (
        "import sys\nfrom licagent.cli.main import cli\n"
        "cli.main(['--help'], standalone_mode=False)\n"
        "print([m for m in sys.modules if m.startswith('licagent.cli.commands')])\n"
    )
    output = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    assert "break-glass" in output
    assert "151" in output
    assert output.endswith("[]\n")


def test_status_loads_neither_rich_nor_asyncio_nor_the_token_format(daemon):
    code = (
        "import sys\nfrom licagent.cli.main import cli\n"
        "cli.main(['status', '--timeout', '60'], standalone_mode=False)\n"
        "print(sorted(sys.modules.keys() & {'rich', 'asyncio', 'lictoken', 'difflib', 'email'}))\n"
    )
    # A variable that is not ours is compared with ours, and that loads difflib.
    plain = {key: text for key, text in os.environ.items() if key != "LICAGENT_TEST_TALLY"}
    output = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=plain
    ).stdout
    assert "acme-orders-2026" in output
    assert output.endswith("[]\n")


def test_every_method_has_an_example():
    folder = Path(__file__).parents[3] / "docs" / "reference" / "examples"
    names = {path.stem for path in folder.glob("*.json")}
    assert names == {name.replace(".", "-").replace("_", "-") for name in METHODS}
