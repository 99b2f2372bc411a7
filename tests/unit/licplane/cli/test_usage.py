# SPDX-License-Identifier: Apache-2.0
"""licplane usage, price, billing, budget, trigger, report and export on a state folder."""

from __future__ import annotations

import csv
import io
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.unit.licplane.usage_lines import Line, Lines, at

from licplane.cli.usage_output import amount
from licplane.service.billing.periods import period_at
from licplane.service.usage.verify import UsageCheck, UsageVerify
from licplane.store.database import Store

Run = Callable[..., Any]
H = 3_600 * 10**9
DOCUMENTS = """
[[plan]]
name = "standard"
currency = "EUR"
account = "organization"
[[plan.item]]
name = "cpu"
meters = ["cpu_ns"]
unit = "core-hour"
price = "0.10"
[[trigger]]
name = "cpu"
meters = ["cpu_ns"]
unit = "core-hour"
thresholds = [5]
notify = [{log = true}]
[[budget]]
name = "acme"
plan = "standard"
amount = "10"
"""


@pytest.fixture
def documents(run: Run, kid: str, tmp_path: Path) -> None:
    """A plan, a trigger and a budget; nothing was used."""
    (tmp_path / "billing.toml").write_text(DOCUMENTS)
    run("price", "apply", str(tmp_path / "billing.toml"))


@pytest.fixture
def used(documents: None, state: Path) -> int:
    """A plan, usage of last month (11 core-hours) and of today; the last month's start."""
    now_ms = time.time_ns() // 10**6
    last = period_at("month", period_at("month", now_ms).start_ms - 1)
    with Store.in_folder(state) as store:
        lines = Lines(store)
        line = Line(last.start_ms, last.start_ms + 5_000, quantities={"cpu_ns": 11 * H})
        lines.add(line, at(line, license="", organization="=beta", quantities={"cpu_ns": H}))
        lines.add(Line(now_ms - 5_000, now_ms, quantities={"tx_payload_bytes": 3 * 2**30}))
    return last.start_ms


def label(start_ms: int) -> str:
    return period_at("month", start_ms).label


def test_usage_in_a_table_json_and_csv(run: Run, used: int) -> None:
    since = label(used) + "-01"
    shown = run("usage", "--since", since).stdout.splitlines()
    assert shown[0].split() == ["LICENSE", "CPU", "SENT", "MARKS"]
    assert shown[1].split() == ["acme-orders", "11", "core-h", "3", "GiB"]
    assert shown[2].split() == ["(none)", "1", "core-h", "-"]
    assert shown[-1].startswith("total")
    found = json.loads(run("usage", "--by", "organization", "--since", since, "--json").stdout)
    assert found["totals"] == {"cpu_ns": 12 * H, "tx_payload_bytes": 3 * 2**30}
    text = run("usage", "--by", "organization", "--since", since, "--csv").stdout
    rows = list(csv.DictReader(io.StringIO(text)))
    assert {row["organization"]: row["cpu_ns"] for row in rows} == {
        "acme": str(11 * H), "'=beta": str(H),
    }  # fmt: skip
    assert "Nothing was used" in run("usage", "--where", "license=none*").stderr
    assert "--where" in run("usage", "--where", "colour=red", code=2).stderr


def test_close_explain_correct_and_export(run: Run, used: int, tmp_path: Path) -> None:
    period = label(used)
    assert "due" in run("billing", "show", "standard", "--period", period).stdout
    run("billing", "close", "standard", "--period", period, "--reason", "month's end")
    assert "nothing to do" in run("billing", "close", "standard", "--period", period).stderr
    assert "nothing to do" in run("billing", "correct", f"standard/{period}").stderr
    shown = run("billing", "show", "standard", "--period", period, "--entries").stdout
    assert shown.splitlines()[-1].split() == [
        "1", "1", "charge", "acme", "cpu", "11", "core-hour", "1.10",
    ]  # fmt: skip
    assert period in run("billing", "list").stdout
    told = run("usage", "--explain", "1", "--records")
    assert "orders.service" in told.stdout
    assert "/boot-1/1/1" in told.stdout
    assert "add up" in told.stderr
    assert "no entry 99" in run("usage", "--explain", "99", code=6).stderr
    out = tmp_path / "focus.csv"
    run("export", "focus", "--plan", "standard", "--period", period, "--out", str(out))
    (row,) = csv.DictReader(io.StringIO(out.read_text()))
    assert (row["BilledCost"], row["ConsumedQuantity"], row["x_Entry"]) == ("1.10", "11", "1")
    lines = run("export", "cloudevents", "--since", f"{period}-01").stdout.splitlines()
    assert len({json.loads(line)["id"] for line in lines}) == 3
    page = tmp_path / "report.html"
    run("report", "--since", f"{period}-01", "--out", str(page))
    assert page.read_text().startswith("<!DOCTYPE html>")


def test_documents_are_listed_shown_and_removed(run: Run, documents: None, tmp_path: Path) -> None:
    for word, name in (("price", "standard"), ("trigger", "cpu"), ("budget", "acme")):
        assert name in run(word, "list").stdout
        assert "version" in run(word, "show", name).stdout
    # Last month's first day would be one of the 28 a forecast rests on, when February is over.
    assert "(too few days)" in run("budget", "status").stdout
    assert "Nothing was told" in run("trigger", "deliveries").stderr
    run("trigger", "remove", "cpu")
    assert "no trigger cpu" in run("trigger", "show", "cpu", code=6).stderr
    (tmp_path / "bad.toml").write_text('[[plan]]\nname = "x"\ncurrency = "EUR"\nprice = 0.5\n')
    assert "price" in run("price", "apply", str(tmp_path / "bad.toml"), code=7).stderr
    (tmp_path / "bad.yaml").write_text("plans: []\n")
    assert "none of plan" in run("price", "apply", str(tmp_path / "bad.yaml"), code=7).stderr


def test_retention(run: Run, kid: str) -> None:
    assert "100" in run("usage", "retention").stdout
    run("usage", "retention", "--records", "30")
    found = json.loads(run("usage", "retention", "--json").stdout)
    assert found["retention"] == {"records_days": 30, "hourly_days": 400, "daily_days": 0}
    assert "Keep records" in run("usage", "retention", "--records", "500", code=2).stderr


@pytest.mark.parametrize(
    ("meter", "quantity", "shown"),
    [
        ("cpu_ns", 1_500_000_000, "1.5 core-s"),
        ("cpu_ns", 5 * H, "5 core-h"),
        ("cpu_ns", 12, "12 core-ns"),
        ("read_bytes", 1023, "1023 B"),
        ("read_bytes", 1536, "1.5 KiB"),
        ("read_bytes", 2**70, "1048576 PiB"),
        ("stored_byte_ms", 2**30 * 3_600_000, "1 GiB-h"),
        ("tx_packets", 7, "7"),
        ("tx_packets", 0, "-"),
    ],
)
def test_amounts_for_people(meter: str, quantity: int, shown: str) -> None:
    assert amount(meter, quantity) == shown


def test_verify_tells_of_licenses_that_were_not_the_hosts(
    run: Run, kid: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    check = UsageCheck(chains=1, records=3, unlicensed=2)
    monkeypatch.setattr(UsageVerify, "verify", lambda *_: check)
    shown = run("usage", "verify")
    assert "2 records under no license" in shown.stderr
    assert "Intact: 1 chain, 3 records" in shown.stderr
    assert json.loads(run("usage", "verify", "--json").stdout)["unlicensed"] == 2
