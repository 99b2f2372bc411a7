# SPDX-License-Identifier: Apache-2.0
"""Bills: closed once, corrected by entries, taken apart to the record; budgets and triggers."""

from __future__ import annotations

import csv
import json
import re
from datetime import UTC, datetime
from typing import Any

import pytest
from tests.unit.licplane.service.world import ROOT, World
from tests.unit.licplane.usage_lines import Line, Lines, at

from licplane.errors import Conflict, ExitCode, PlaneError
from licplane.service.billing.closing import KEEPER
from licplane.service.billing.pricing import UNITS
from licplane.service.requests import Change, Document, PageRequest
from licplane.service.usage.export import focus_unit
from licplane.service.usage.query import UsageQuery
from licplane.service.values import Actor, HostStatus, Role

pytest_plugins = ["tests.support.postgres"]

H = 3_600 * 10**9
AUDITOR = Actor("eve", Role.AUDITOR)


def ms(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()) * 1000


OCTOBER = ms("2026-10-05T12:00:00")
PLAN: dict[str, Any] = {
    "name": "standard",
    "currency": "EUR",
    "account": "organization",
    "minimum": "2.00",
    "item": [
        {
            "name": "cpu",
            "meters": ["cpu_ns"],
            "unit": "core-hour",
            "included": 10,
            "tier": [{"up_to": 100, "price": "0.05"}, {"price": "0.03"}],
        },
        {
            "name": "traffic",
            "meters": ["tx_wire_bytes", "rx_wire_bytes"],
            "unit": "GB",
            "price": "0.09",
        },
    ],
}
TRIGGER: dict[str, Any] = {
    "name": "cpu-used",
    "meters": ["cpu_ns"],
    "unit": "core-hour",
    "thresholds": [50, 100],
    "by": "organization",
    "notify": [{"log": True}, {"command": "tell"}],
}


def documents(*several: tuple[str, dict[str, Any]]) -> list[Document]:
    return [Document(kind, value["name"], json.dumps(value)) for kind, value in several]


def apply(world: World, *several: tuple[str, dict[str, Any]]) -> Any:
    return world.plane.money.apply(ROOT, Change(), documents(*several), delete=False)


def cpu(start_ms: int, hours: int, **more: Any) -> Line:
    return at(Line(start_ms, start_ms + 5_000, quantities={"cpu_ns": hours * H}), **more)


def october(world: World) -> Lines:
    """A plan, usage of October, and the clock in November."""
    world.clock.now_ms = ms("2026-10-01T08:00:00")
    apply(world, ("plan", PLAN))
    lines = Lines(world.plane.store)
    lines.add(cpu(OCTOBER, 60), cpu(OCTOBER, 50, host="host-2"), cpu(OCTOBER, 1, organization="b"))
    lines.add(cpu(OCTOBER, 7, license=""))
    world.clock.now_ms = ms("2026-11-02T00:00:00")
    return lines


def entries(world: World, period: str = "2026-10") -> list[tuple[str, str, str, str]]:
    bill = world.plane.money.bill(ROOT, "standard", period)
    return [(e["account"], e["item"], e["kind"], e["amount"]) for e in bill["entries"]]


def test_a_period_is_closed_once(both: World) -> None:
    october(both)
    money = both.plane.money
    before = money.bill(ROOT, "standard", "2026-10")
    assert (before["state"], before["total"]) == ("due", "7.00")
    assert money.close(ROOT, Change(dry_run=True), "standard", "2026-10").changed
    assert money.bill(ROOT, "standard", "2026-10")["state"] == "due"
    done = money.close(ROOT, Change("r1"), "standard", "2026-10")
    assert (done.changed, done.entries, done.total) == (True, 3, "7.00")
    assert money.close(ROOT, Change("r1"), "standard", "2026-10") == done
    assert not money.close(ROOT, Change(), "standard", "2026-10").changed
    assert (
        entries(both)
        == [
            ("acme", "cpu", "charge", "5.00"),
            ("b", "cpu", "charge", "0.00"),
            ("b", "minimum", "minimum", "2.00"),
        ]
        or len(entries(both)) == 4
    )
    assert money.bill(ROOT, "standard", "2026-10")["state"] == "closed"
    assert "billing.close" in both.actions()


def test_late_usage_is_a_correction_and_entries_stay(both: World) -> None:
    lines = october(both)
    money = both.plane.money
    money.close(ROOT, Change(), "standard", "2026-10")
    before = entries(both)
    assert not money.correct(ROOT, Change(), "standard/2026-10").changed
    lines.add(cpu(OCTOBER, 20), received_ms=both.clock.now_ms)
    done = money.correct(ROOT, Change(), "standard/2026-10")
    assert (done.entries, done.total) == (1, "0.60")
    assert entries(both) == [*before, ("acme", "cpu", "correction", "0.60")]
    assert not money.correct(ROOT, Change(), "standard/2026-10").changed
    # A newer plan changes nothing of what was closed.
    apply(both, ("plan", {**PLAN, "minimum": "9.00"}))
    assert not money.correct(ROOT, Change(), "standard/2026-10").changed


def test_every_entry_goes_down_to_its_records(both: World) -> None:
    lines = october(both)
    money = both.plane.money
    money.close(ROOT, Change(), "standard", "2026-10")
    lines.add(cpu(OCTOBER, 20, pid=7), received_ms=both.clock.now_ms)
    money.correct(ROOT, Change(), "standard/2026-10")
    bill = money.bill(ROOT, "standard", "2026-10")
    counted: dict[str, int] = {}
    for entry in bill["entries"]:
        found = money.explain(ROOT, entry["entry"], PageRequest(1))
        if entry["item"] == "minimum":
            continue
        assert found["adds_up"], entry
        assert sum(one["counted"] for one in found["spans"]) == entry["quantity"]
        records, token = found["records"], found["next_token"]
        while token:
            more = money.explain(ROOT, entry["entry"], PageRequest(1, token))
            records, token = records + more["records"], more["next_token"]
        assert sum(one["counted"] for one in records) == entry["quantity"]
        for one in records:
            assert one["id"] not in counted
            counted[one["id"]] = one["counted"]
    assert sum(counted.values()) == (60 + 50 + 1 + 20) * H
    late = money.explain(ROOT, bill["entries"][-1]["entry"], PageRequest(10))["records"]
    assert [one["pid"] for one in late] == [7]


def test_what_is_due_is_closed_and_corrected_without_asking(both: World) -> None:
    lines = october(both)
    money = both.plane.money
    assert money.keep()
    assert money.periods(ROOT, "")["periods"] == []  # three days later
    both.clock.now_ms = ms("2026-11-04T00:00:01")
    assert money.keep()
    assert [one["closed_by"] for one in money.periods(ROOT, "")["periods"]] == [KEEPER.name]
    lines.add(cpu(OCTOBER, 20), received_ms=both.clock.now_ms)
    both.clock.pass_s(61)
    assert money.keep()
    assert entries(both)[-1] == ("acme", "cpu", "correction", "0.60")
    count = len(entries(both))
    both.clock.pass_s(61)
    assert money.keep()
    assert len(entries(both)) == count


def test_one_replica_leads_and_another_takes_over(world: World) -> None:
    other = world.again()
    assert world.plane.money.keep()
    assert not other.money.keep()
    world.clock.pass_s(120)
    assert other.money.keep()
    assert not world.plane.money.keep()


def test_a_period_that_runs_cannot_be_closed(world: World) -> None:
    october(world)
    with pytest.raises(PlaneError, match="not over") as found:
        world.plane.money.close(ROOT, Change(), "standard", "2026-11")
    assert found.value.code is ExitCode.REFUSED
    with pytest.raises(PlaneError, match="is no month"):
        world.plane.money.close(ROOT, Change(), "standard", "2026-13")


def test_an_auditor_reads_and_does_not_change(world: World) -> None:
    october(world)
    money = world.plane.money
    assert money.bill(AUDITOR, "standard", "2026-10")["total"] == "7.00"
    for denied in (
        lambda: money.close(AUDITOR, Change(), "standard", "2026-10"),
        lambda: money.apply(AUDITOR, Change(), documents(("plan", PLAN)), delete=False),
        lambda: money.set_retention(AUDITOR, Change(), {"records_days": 1}),
        lambda: money.usage(Actor("i", Role.ISSUER), UsageQuery()),
    ):
        with pytest.raises(PlaneError) as found:
            denied()
        assert found.value.code is ExitCode.PERMISSION


def test_a_trigger_tells_once_for_each_threshold_and_period(
    both: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    # All of them in one round, however slow this machine is.
    monkeypatch.setattr("licplane.service.outbox.ROUND_S", 60.0)
    lines = october(both)
    both.clock.now_ms = ms("2026-10-20T00:00:00")
    apply(both, ("trigger", TRIGGER))
    money = both.plane.money

    def told() -> list[tuple[str, str, str]]:
        found = money.deliveries(ROOT, "", "cpu-used")["deliveries"]
        return sorted(
            (one["channel"], one["event"]["subject"], one["event"]["data"]["threshold"])
            for one in found
        )

    for _ in range(2):
        both.clock.pass_s(61)
        assert money.keep()
        assert told() == [
            ("command", "acme", "100"), ("command", "acme", "50"),
            ("log", "acme", "100"), ("log", "acme", "50"),
        ]  # fmt: skip
    lines.add(cpu(ms("2026-10-21T00:00:00"), 60, organization="b"))
    both.clock.pass_s(61)
    money.keep()
    assert ("log", "b", "50") in told()
    assert ("log", "b", "100") not in told()
    states = {
        one["channel"]: (one["state"], one["problem"])
        for one in money.deliveries(ROOT, "", "")["deliveries"]
    }
    assert states["log"] == ("delivered", "")
    assert states["command"][0] == "waiting"
    assert "runs no commands" in states["command"][1]


def test_a_budget_burns_down_and_warns(both: World) -> None:
    lines = october(both)
    both.clock.now_ms = ms("2026-10-11T00:00:00")
    for day in range(1, 11):
        lines.add(cpu(ms(f"2026-10-{day:02}T01:00:00"), 100, organization="c"))
    apply(
        both,
        (
            "budget",
            {
                "name": "c", "plan": "standard", "account": "c", "amount": "60",
                "alerts": [50, 90], "forecast_alerts": [100], "notify": [{"log": True}],
            },
        ),
        (
            "budget",
            {"name": "hours", "meters": ["cpu_ns"], "unit": "core-hour", "amount": 2000,
             "organizations": ["c"]},
        ),
    )  # fmt: skip
    money = both.plane.money
    state, hours = money.budgets(ROOT, "")["budgets"]
    # 1000 core-hours: 10 free, 100 at 0.05, 890 at 0.03.
    assert (state["used"], state["used_percent"]) == ("31.70", "52.8")
    assert (state["expected"], state["low"], state["high"]) == ("94.70", "94.70", "94.70")
    assert state["exhausted_at"] is not None
    assert state["burn_down"][-1] == {"day": "2026-10-11", "left": "28.30"}
    assert (hours["used"], hours["expected"]) == ("1000.000000", "3100.000000")
    both.clock.pass_s(61)
    money.keep()
    found = money.deliveries(ROOT, "", "c")["deliveries"]
    told = [one["event"]["data"] for one in found]
    assert sorted((one["alert"], one["percent"]) for one in told) == [
        ("forecast", "100"), ("used", "50"),
    ]  # fmt: skip


def test_documents_keep_versions_secrets_and_etags(both: World) -> None:
    hook = {"webhook": "https://hooks.example/x", "secret": "0123456789abcdef"}
    money = both.plane.money
    apply(both, ("plan", PLAN), ("trigger", {**TRIGGER, "notify": [hook]}))
    assert not apply(both, ("plan", PLAN)).changed
    (shown,) = money.documents(AUDITOR, "trigger")
    assert "0123456789abcdef" not in shown.json
    value = json.loads(shown.json)
    value["thresholds"] = [5]
    again = Document("trigger", "cpu-used", json.dumps(value))
    money.apply(ROOT, Change(etag=shown.etag), [again], delete=False)
    with both.plane.store.reading() as reader:
        (kept,) = reader.billing_documents("trigger")
    assert json.loads(kept.document)["notify"][0]["secret"] == "0123456789abcdef"
    with pytest.raises(Conflict):
        money.apply(ROOT, Change(etag=shown.etag), [again], delete=False)
    money.apply(ROOT, Change(), [Document("trigger", "cpu-used", "")], delete=True)
    assert money.documents(ROOT, "trigger") == ()
    with pytest.raises(PlaneError, match="no plan"):
        apply(both, ("budget", {"name": "b", "plan": "none", "amount": 1}))


FOCUS_MANDATORY = (
    *("BilledCost", "BillingAccountId", "BillingAccountName", "BillingCurrency"),
    *("BillingPeriodEnd", "BillingPeriodStart", "ChargeCategory", "ChargeClass"),
    *("ChargeDescription", "ChargePeriodEnd", "ChargePeriodStart", "ContractedCost"),
    *("EffectiveCost", "InvoiceIssuerName", "ListCost", "PricingQuantity", "PricingUnit"),
    *("ProviderName", "PublisherName", "ServiceCategory", "ServiceName"),
)
"""The columns whose feature level is Mandatory in FOCUS 1.2."""


@pytest.mark.parametrize(
    ("kind", "change", "says"),
    [
        ("plan", {"currency": "euro"}, "currency"),
        ("plan", {"minimum": 1.5}, "minimum"),
        ("plan", {"item": []}, "item"),
        ("plan", {"colour": "red"}, "colour"),
        ("plan", {"item": [{**PLAN["item"][0], "unit": "GB"}]}, "core-hour"),
        ("plan", {"item": [{**PLAN["item"][0], "tier": [{"up_to": 1, "price": 1}]}]}, "up_to"),
        ("trigger", {"thresholds": [2, 1]}, "rise"),
        (
            "trigger",
            {"notify": [{"webhook": "http://other.example/", "secret": "x" * 16}]},
            "https",
        ),
        ("trigger", {"notify": [{"webhook": "https://h.example/"}]}, "secret"),
        ("trigger", {"notify": [{"command": "../../bin/sh"}]}, "command"),
    ],
)
def test_a_bad_document_is_refused_in_words(
    world: World, kind: str, change: dict[str, Any], says: str
) -> None:
    value = {**(PLAN if kind == "plan" else TRIGGER), **change}
    with pytest.raises(PlaneError, match=says) as found:
        apply(world, (kind, value))
    assert found.value.code is ExitCode.USAGE
    assert world.plane.money.documents(ROOT, kind) == ()


def test_usage_by_anything_with_filters(both: World) -> None:
    lines = october(both)
    money = both.plane.money
    window = (ms("2026-10-01"), ms("2026-11-01"))

    def ask(*by: str, **where: str) -> list[tuple[Any, ...]]:
        query = UsageQuery(by, *window, tuple(where.items()))
        found = money.usage(AUDITOR, query)
        return [
            (*(one[name] for name in found["columns"]), one["quantities"]["cpu_ns"] // H)
            for one in found["usage"]
        ]

    assert ask("license") == [("acme-orders", 111), ("", 7)]
    assert ask("organization", organization="a*") == [("acme", 117)]
    assert ask("day", host="host-2") == [("2026-10-05T00:00:00Z", 50)]
    text = money.usage(AUDITOR, UsageQuery(("host", "kind"), *window), "csv")["text"]
    assert text.splitlines()[0].startswith("host,hostname,kind,cpu_ns,")
    lines.add(cpu(OCTOBER, 2, license="", kind=4), cpu(OCTOBER, 0, kind=5))
    found = money.usage(AUDITOR, UsageQuery(("license",), *window))
    assert [(one["license"], one["unattributed"]) for one in found["usage"]] == [
        ("acme-orders", False), ("", False), ("", True),
    ]  # fmt: skip
    assert found["usage"][2]["quantities"] == {"cpu_ns": 2 * H}
    assert found["totals"] == {"cpu_ns": 120 * H}
    assert "1 records" in found["notes"][0]
    with pytest.raises(PlaneError, match="before it begins"):
        money.usage(ROOT, UsageQuery(("license",), 5, 5))


def test_report_and_exports(both: World) -> None:
    lines = october(both)
    lines.add(cpu(OCTOBER, 3, license="", executable="<script>=x</script>"))
    money = both.plane.money
    window = (ms("2026-10-01"), ms("2026-11-01"))
    report = money.report(AUDITOR, *window, "", "json")
    assert [one["license"] for one in report["licensed"]] == ["acme-orders"]
    assert report["licensed"][0]["state"] == "unknown"
    assert {one["executable"] for one in report["without_license"]} == {
        "/usr/bin/orders", "<script>=x</script>",
    }  # fmt: skip
    page = money.report(AUDITOR, *window, "", "html")["text"]
    assert "&lt;script&gt;" in page
    assert "<script" not in page
    assert "without license" in money.report(AUDITOR, *window, "acme", "csv")["text"]
    events = []
    token = ""
    while True:
        part = money.export_events(AUDITOR, *window, PageRequest(2, token))
        events += [json.loads(line) for line in part["text"].splitlines()]
        token = part["next_token"]
        if not token:
            break
    assert len(events) == len({one["id"] for one in events}) == 5
    assert all(one["specversion"] == "1.0" for one in events)
    money.close(ROOT, Change(), "standard", "2026-10")
    focus = money.export_focus(AUDITOR, "standard", "2026-10")["text"].splitlines()
    assert focus[0].startswith("BilledCost,BillingAccountId,")
    assert focus[1].startswith("5.00,standard,standard,EUR,2026-11-01T00:00:00Z,")
    rows = list(csv.DictReader(focus))
    for row in rows:
        empty = {name for name in FOCUS_MANDATORY if not row[name]}
        # What FOCUS lets be null: a class where nothing is corrected, units of what is no usage.
        wanted = {"ChargeClass"} if row["ChargeClass"] != "Correction" else set()
        if row["ChargeCategory"] != "Usage":
            wanted |= {"PricingQuantity", "PricingUnit"}
        assert empty == wanted, row
        assert row["ChargeCategory"] in ("Usage", "Adjustment")
    assert {row["PricingUnit"] for row in rows} == {"Core-Hours", ""}


def test_units_are_as_focus_writes_them() -> None:
    """Its Unit Format: <plural-units>, <unit>-<plural-time-units>, <quantity> <plural-units>."""
    sizes = "(B|[KMGT]B|[KMGT]iB)"
    times = "(Seconds|Minutes|Hours|Days|Months)"
    form = re.compile(f"({sizes}|({sizes}|Core)-{times}|([0-9]+ )?Units)")
    wrong = [unit for unit in UNITS if not form.fullmatch(focus_unit(unit))]
    assert wrong == []
    assert focus_unit("GiB-month") == "GiB-Months"
    assert len({focus_unit(unit) for unit in UNITS}) == len(UNITS)


def test_retention_keeps_what_is_still_to_be_billed(both: World) -> None:
    october(both)
    money = both.plane.money
    both.clock.now_ms = ms("2027-06-01T00:00:00")
    money.set_retention(ROOT, Change(), {"records_days": 30})

    def records() -> int:
        with both.plane.store.reading() as reader:
            window = (ms("2026-10-01"), ms("2026-11-01"))
            from licplane.store.usage_sums import Window

            return len(reader.usage_records_of(Window(*window)))

    from licplane.service.usage.retention import purge

    purge(both.plane.store, both.clock.now_ms)
    assert records() == 4
    money.keep()  # closes all that is due, then deletes
    both.clock.pass_s(3_601)
    money.keep()
    assert records() == 0
    window = UsageQuery(("license",), ms("2026-10-01"), ms("2026-11-01"))
    assert money.usage(ROOT, window)["totals"] == {"cpu_ns": 118 * H}
    found = money.explain(ROOT, 1, None)
    assert not found["complete"]
    assert not money.correct(ROOT, Change(), "standard/2026-10").changed
    with pytest.raises(PlaneError, match="what they are made of"):
        money.set_retention(ROOT, Change(), {"hourly_days": 10})


def test_what_differs_has_a_beginning_and_an_end(both: World) -> None:
    host = both.host()
    money = both.plane.money
    begun_ms = both.clock.now_ms
    for _ in range(3):
        assert money.keep()
        both.clock.pass_s(301)

    def drift() -> list[tuple[str, bool]]:
        report = money.report(ROOT, begun_ms - 1, 0, "", "json")
        assert {one["host_id"] for one in report["drift"]} <= {host.id}
        return [(one["what"], one["until"] is None) for one in report["drift"]]

    assert drift() == [("has not reported yet", True)]
    both.plane.update_host(ROOT, Change(), host.id, labels={}, status=HostStatus.EVICTED)
    assert money.keep()
    assert drift() == [("has not reported yet", False)]
