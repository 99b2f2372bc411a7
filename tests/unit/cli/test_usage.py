# SPDX-License-Identifier: Apache-2.0
"""`licagent usage`: what is asked of the daemon, and how its answer is shown."""

from __future__ import annotations

import csv
import io
import json
from typing import Any

import pytest

from licagent.domain.usage import Meter
from licagent.local.usage_shapes import USAGE_BY


def row(
    name: str, *, estimated: tuple[str, ...] = (), unsupported: tuple[str, ...] = (), **used: int
) -> dict[str, Any]:
    keys = ("license", "resource", "unit", "user", "executable", "pid", "process_start")
    return dict.fromkeys(keys) | {
        "name": name, "quantities": used, "estimated": list(estimated),
        "unsupported": list(unsupported),
    }  # fmt: skip


def answer(*rows: dict[str, Any], by: str = "user", **more: Any) -> dict[str, Any]:
    total: dict[str, int] = {}
    for each in rows:
        for meter, amount in each["quantities"].items():
            total[meter] = total.get(meter, 0) + amount
    return {
        "by": by, "metering": "on", "since": "2026-03-02T08:00:00.000Z",
        "until": "2026-03-02T12:00:00.000Z", "rows": list(rows), "total": total,
        "rest": {"rows": 0, "quantities": {}}, "unattributed": {"quantities": {}, "details": []},
        "records": 3, "pending": False, "counted_from": None, "gaps": [],
    } | more  # fmt: skip


def test_everything_asked_for_reaches_the_daemon(daemon, run):
    run("usage", "--by", "process", "--since", "2026-03-02T13:00:00+02:00", "--until",
        "2026-03-02T12:00:00Z", "--license", "", "--resource", "a", "--unit", "b", "--user", "c",
        "-n", "7")  # fmt: skip
    assert daemon.calls == [
        ("usage", {"by": "process", "since": "2026-03-02T11:00:00.000Z",
                   "until": "2026-03-02T12:00:00.000Z", "license": "", "resource": "a",
                   "unit": "b", "user": "c", "limit": 7})
    ]  # fmt: skip


@pytest.mark.parametrize("by", USAGE_BY)
def test_each_way_to_add_up_has_a_word_for_nobody(daemon, run, by):
    daemon.answers["usage"] = answer(row("", cpu_ns=10**9), by=by)
    output = run("usage", "--by", by).stdout
    assert "(" in output.splitlines()[2]
    assert "1.00s" in output


def test_estimates_and_what_was_not_measured_are_marked(daemon, run):
    daemon.answers["usage"] = answer(
        row("a", memory_byte_ms=3_600_000 << 30, estimated=("memory_byte_ms",)),
        row("b", cpu_ns=5 * 10**9, unsupported=("cpu_ns", "read_bytes")),
        row("c", read_bytes=2048),
    )
    lines = run("usage", "--by", "user").stdout.splitlines()
    table = {line.split()[0]: line.split()[1:] for line in lines[1:6]}
    assert table["user"] == ["CPU", "MEMORY", "IN", "OUT", "READ"]  # WRITE, STORED: nobody's
    assert table["a"] == ["0", "~1.0Gh", "0", "0", "0"]
    assert table["b"] == ["5.00s?", "0", "0", "0", "n/a"]
    assert table["c"] == ["0", "0", "0", "0", "2.0K"]
    assert table["total"] == ["5.00s?", "~1.0Gh", "0", "0", "2.0K?"]
    assert "~ estimated; ? not measured for some of the time; n/a not measured" in lines[-1]


def test_the_rest_and_what_is_unattributed_have_lines(daemon, run):
    daemon.answers["usage"] = answer(
        row("a", cpu_ns=10**9),
        rest={"rows": 41, "quantities": {"cpu_ns": 10**8}},
        unattributed={"quantities": {"cpu_ns": 10**7}, "details": ["interrupts"]},
    )
    output = run("usage", "--by", "user").stdout
    assert "(41 rows more)  0.10s" in output
    assert "(unattributed)  0.01s" in output
    assert "unattributed: interrupts" in output


def test_wire_bytes_instead_of_payload(daemon, run):
    daemon.answers["usage"] = answer(row("a", tx_payload_bytes=100, tx_wire_bytes=164))
    assert " 100" in run("usage", "--by", "user").stdout
    output = run("usage", "--by", "user", "--wire").stdout
    assert " 164" in output
    assert " 100" not in output


@pytest.mark.parametrize(
    ("state", "words"), [("off", "metering is off"), ("degraded", "licagent status")]
)
def test_metering_that_is_not_well_is_said(daemon, run, state, words):
    daemon.answers["usage"] = answer(metering=state, since=None, until=None)
    output = run("usage").stdout
    assert words in output
    assert "nothing used in this time" in output


def test_what_a_long_ledger_left_out_is_said(daemon, run):
    daemon.answers["usage"] = answer(row("a", cpu_ns=5), counted_from="2026-03-02T09:00:00.000Z")
    assert "since 2026-03-02T09:00:00.000Z is counted" in run("usage").stdout
    result = run("usage", "--csv")
    assert "counted" not in result.stdout
    assert "counted only since 2026-03-02T09:00:00.000Z" in result.stderr


def test_csv_has_every_meter_and_tells_nothing_from_not_measured(daemon, run):
    daemon.answers["usage"] = answer(
        row("a", cpu_ns=5, unsupported=("read_bytes",), estimated=("cpu_ns",)),
        rest={"rows": 2, "quantities": {"cpu_ns": 7}},
        unattributed={"quantities": {"cpu_ns": 1}, "details": []},
    )
    result = run("usage", "--by", "user", "--csv")
    assert "\r\n" in result.stdout_bytes.decode()
    lines = list(csv.DictReader(io.StringIO(result.stdout)))
    assert {meter.key for meter in Meter} < lines[0].keys()
    assert [line["line"] for line in lines] == ["row", "rest", "unattributed", "total"]
    first, rest, lost, total = lines
    assert (first["cpu_ns"], first["read_bytes"], first["write_bytes"]) == ("5", "", "0")
    assert (first["estimated"], first["unsupported"]) == ("cpu_ns", "read_bytes")
    assert (rest["name"], rest["cpu_ns"]) == ("2 rows", "7")
    assert (lost["cpu_ns"], lost["tx_wire_bytes"]) == ("1", "")
    assert total["cpu_ns"] == "5"


@pytest.mark.parametrize("name", ["=cmd|'/c calc'!A0", "+1", "-1", "@x"])
def test_csv_starts_no_formula_in_a_spreadsheet(daemon, run, name):
    daemon.answers["usage"] = answer(row(name, cpu_ns=5))
    [line, *_] = csv.DictReader(io.StringIO(run("usage", "--csv").stdout))
    assert line["name"] == f"'{name}"


def test_csv_and_json_exclude_each_other(daemon, run):
    assert run("usage", "--csv", "--json").exit_code == 2
    assert daemon.calls == []


def test_options_before_verify_are_refused_as_they_would_do_nothing(daemon, run):
    result = run("usage", "--by", "user", "verify")
    assert result.exit_code == 2
    assert "after `verify`" in result.stderr
    assert daemon.calls == []


def test_verify_ends_by_what_it_found(daemon, run, examples):
    assert run("usage", "verify").exit_code == 150
    daemon.answers["usage.verify"] = examples("usage-verify") | {"good": True, "problems": []}
    result = run("usage", "verify")
    assert result.exit_code == 0
    assert "the ledger holds" in result.stdout
    assert "records 1201 to 1216 are lost" in result.stdout


def test_verify_offline_says_that_there_is_no_ledger(run):
    result = run("usage", "verify", "--offline", "--json")
    assert result.exit_code == 6
    assert "no ledger" in json.loads(result.stdout)["error"]["message"]


def test_top_asks_for_a_tree_of_processes_only(daemon, run):
    assert run("top", "--once", "--by", "unit", "--tree").exit_code == 2
    assert daemon.calls == []


def test_top_once_as_json_is_one_object_and_a_batch_is_one_a_line(daemon, run):
    found = json.loads(run("top", "--once", "--delay", "0.3", "--json").stdout)
    assert found["schema_version"] == 1
    assert [each["pid"] for each in found["rows"]] == [4242, 5120]
    lines = run("top", "-b", "-n", "2", "-d", "0.3", "--json").stdout.splitlines()
    assert [json.loads(line)["by"] for line in lines] == ["process", "process"]
    assert daemon.calls[0] == ("top", {"by": "process", "exited": True})


def test_top_in_a_pipe_cuts_no_name(daemon, run, examples):
    found = examples("top")
    found["rows"][0][3] = "a-very-long-name-of-a-program"
    daemon.answers["top"] = found
    output = run("top", "--once", "--delay", "0.3").stdout
    assert "a-very-long-name-of-a-program\n" in output
    assert "acme-orders-2026" in output
    assert "orders.service" in output


def test_other_commands_do_not_pay_for_the_screen(daemon, spawn, command):
    import subprocess

    code = (
        "import sys\nfrom licagent.cli.main import cli\n"
        "for words in (['top', '--once', '-d', '0.3'], ['usage'], ['status']):\n"
        "    cli.main([*words, '--timeout', '60'], standalone_mode=False)\n"
        "print('textual' in sys.modules, 'asyncio' in sys.modules)\n"
    )
    done = subprocess.run([command[0], "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("False False\n")
