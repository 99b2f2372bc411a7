# SPDX-License-Identifier: Apache-2.0
"""Every alert fires for what it is there for, alone, and none fires on a host that is well.

By promtool's unit tests, which run the rules as Prometheus does over series written here.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from licagent.daemon.metrics.families import FAMILIES as AGENT
from licplane.api.metrics import FAMILIES as PLANE

ROOT: Final = Path(__file__).parents[2]
FILES: Final = tuple(sorted((ROOT / "packaging/prometheus").glob("*.rules.yml")))
AT: Final = "8h"
"""Longer than any rule's `for`."""
NOW_S: Final = 8 * 3600
STEP: Final = "2m"
STEPS: Final = 260
"""Samples of a series: some more than there are until then."""

pytestmark = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="needs promtool (Debian's prometheus)"
)

HOST: Final[Mapping[str, str]] = {
    'up{job="licagent"}': "1",
    "process_start_time_seconds": "0",
    'licagent_state{state="enforcing"}': "1",
    'licagent_state{state="degraded"}': "0",
    "licagent_guard_refused_total": "2",
    "licagent_integrity_problems": "0",
    "licagent_break_glass_active": "0",
    "licagent_kernel_tables_full": "0",
    'licagent_kernel_faults_total{fault="tag_failed"}': "3",
    "licagent_events_dropped_total": "7",
    "licagent_events_lost_on_disk_total": "0",
    "licagent_clock_offset_seconds": "-2",
    'licagent_license_expiry_timestamp_seconds{license="acme"}': "864000",
    'licagent_licenses{state="valid"}': "1",
    'licagent_licenses{state="expired"}': "0",
    'licagent_licenses{state="lease_lost"}': "0",
    "licagent_licenses_refused": "0",
    'licagent_decisions_total{resource="db",verdict="deny",reason="no_binding"}': "0+6",
    "licagent_shadow_uses": "4",
    "licagent_control_enrolled": "1",
    "licagent_control_connected": "1",
    "licagent_control_refused": "0",
    "licagent_control_certificate_end_timestamp_seconds": "129600",
    'licagent_metering_state{state="off"}': "0",
    "licagent_metering_last_commit_timestamp_seconds": "0+120",
    "licagent_metering_interval_seconds": "5",
    "licagent_spool_bytes": "100",
    "licagent_spool_max_bytes": "1000",
    "licagent_usage_refused_records_total": "2",
    "licagent_usage_delivery_alarm": "0",
    "licagent_usage_gaps": "1",
    "licagent_unattributed_cpu_seconds_total": "0+1",
    'licagent_usage_cpu_seconds_total{license="acme"}': "0+50",
    'licagent_usage_cpu_seconds_total{license="none"}': "0+50",
}
SERVER: Final[Mapping[str, str]] = {
    'up{job="licplane"}': "1",
    "licplane_database_up": "1",
    "licplane_catalog_intact": "1",
    'licplane_errors_total{where="usage"}': "5",
    'licplane_push_seconds_bucket{le="0.1"}': "0+10",
    'licplane_push_seconds_bucket{le="2.5"}': "0+10",
    'licplane_push_seconds_bucket{le="+Inf"}': "0+10",
    'licplane_refused_total{why="unauthenticated"}': "0+6",
    "licplane_server_certificate_end_timestamp_seconds": "129600",
    "licplane_authority_end_timestamp_seconds": "99999999",
    "licplane_hosts_silent": "0",
    "licplane_sync_longest_unanswered_seconds": "2",
    "licplane_hosts_refusing": "0",
    "licplane_hosts_drifting": "0",
    'licplane_hosts{status="active",connected="true"}': "3",
    'licplane_license_expiry_timestamp_seconds{license="acme"}': "8640000",
    "licplane_usage_alarmed_chains": "1",
    "licplane_usage_gaps": "2",
    'licplane_deliveries{state="failed"}': "1",
    'licplane_budget_used_ratio{budget="year"}': "0.5",
    'licplane_budget_expected_ratio{budget="year"}': "0.9",
}
GROWS: Final = f"0x235 5+5x{STEPS - 236}"
"""Five more with each sample, since ten minutes before the end."""


NEVER: Final = "_"
"""A series that is not there."""


@dataclass(frozen=True, slots=True)
class Case:
    """An alert, and what is another way than on a host that is well when it fires."""

    alert: str
    series: Mapping[str, str]
    also: frozenset[str] = field(default_factory=frozenset)
    """Alerts that rightly fire with it."""


def case(alert: str, also: str = "", /, **series: str) -> Case:
    """A case over one series without labels of its own."""
    return Case(alert, series, frozenset(also.split()))


DEGRADED: Final = 'licagent_degraded_reasons{code="%s"}'
CASES: Final = (
    Case("LicagentDown", {'up{job="licagent"}': "0"}),
    Case("LicagentDegraded", {'licagent_state{state="degraded"}': "1"}),
    Case("LicagentHookMissing", {DEGRADED % "hook-missing": "2"}),
    Case("LicagentTampering", {DEGRADED % "kernel-changed": "1"}),
    case("LicagentTampering", licagent_guard_refused_total="0+1"),
    case("LicagentIntegrity", licagent_integrity_problems="1"),
    case("LicagentBreakGlass", licagent_break_glass_active="1"),
    Case("LicagentPolicyRefused", {DEGRADED % "policy-refused": "1"}),
    Case("LicagentPolicyRefused", {DEGRADED % "no-policy": "1"}),
    case("LicagentTableFull", licagent_kernel_tables_full="1"),
    Case("LicagentTableFull", {'licagent_kernel_faults_total{fault="tag_failed"}': "0+1"}),
    case("LicagentEventsLost", licagent_events_dropped_total="0+1"),
    case("LicagentEventsLost", licagent_events_lost_on_disk_total="0+1"),
    case("LicagentClockWrong", licagent_clock_offset_seconds="-3600"),
    Case(
        "LicagentLicenseEndsSoon",
        {'licagent_license_expiry_timestamp_seconds{license="acme"}': f"{NOW_S + 7200}"},
    ),
    Case("LicagentLicenseEnded", {'licagent_licenses{state="expired"}': "1"}),
    Case("LicagentLeaseEnding", {DEGRADED % "lease-ending": "1"}),
    Case("LicagentLeaseLost", {'licagent_licenses{state="lease_lost"}': "2"}),
    case("LicagentLicenseRefused", licagent_licenses_refused="1"),
    Case(
        "LicagentDenials",
        {'licagent_decisions_total{resource="db",verdict="deny",reason="expired"}': "0+600"},
    ),
    case("LicagentShadowUse", licagent_shadow_uses=GROWS),
    case("LicagentDisconnected", licagent_control_connected="0"),
    case("LicagentRevisionRefused", licagent_control_refused="1"),
    case(
        "LicagentCertificateEndsSoon",
        licagent_control_certificate_end_timestamp_seconds=f"{NOW_S + 600}",
    ),
    case("LicagentUsageNotCommitted", licagent_metering_last_commit_timestamp_seconds="20000"),
    case("LicagentUsageNotCommitted", licagent_metering_last_commit_timestamp_seconds=NEVER),
    Case("LicagentUsageNotCommitted", {DEGRADED % "metering-stopped": "1"}),
    case("LicagentSpoolFilling", licagent_spool_bytes="900"),
    case("LicagentUsageRefused", licagent_usage_refused_records_total="0+1"),
    case("LicagentUsageRefused", licagent_usage_delivery_alarm="1"),
    case("LicagentUsageLost", licagent_usage_gaps=GROWS),
    case("LicagentUnattributed", licagent_unattributed_cpu_seconds_total="0+10"),
    Case("LicplaneDown", {'up{job="licplane"}': "0"}),
    case("LicplaneDatabaseDown", licplane_database_up="0"),
    case("LicplaneCatalogAltered", licplane_catalog_intact="0"),
    Case("LicplaneErrors", {'licplane_errors_total{where="usage"}': "0+1"}),
    Case("LicplanePushSlow", {'licplane_push_seconds_bucket{le="0.1"}': "0+1"}),
    Case("LicplanePeersRefused", {'licplane_refused_total{why="unauthenticated"}': "0+600"}),
    case(
        "LicplaneServerCertificateEndsSoon",
        licplane_server_certificate_end_timestamp_seconds=f"{NOW_S + 600}",
    ),
    case(
        "LicplaneAuthorityEndsSoon",
        licplane_authority_end_timestamp_seconds=f"{NOW_S + 30 * 86_400}",
    ),
    case("LicplaneHostsSilent", licplane_hosts_silent="1"),
    case("LicplaneHostUnanswering", licplane_sync_longest_unanswered_seconds="900"),
    case("LicplaneHostsRefusing", licplane_hosts_refusing="1"),
    case("LicplaneHostsDrifting", licplane_hosts_drifting="1"),
    Case("LicplaneHostCloned", {'licplane_hosts{status="cloned",connected="false"}': "1"}),
    Case(
        "LicplaneLicenseEndsSoon",
        {'licplane_license_expiry_timestamp_seconds{license="acme"}': f"{NOW_S + 86_400}"},
    ),
    case("LicplaneUsageAlarm", licplane_usage_alarmed_chains=GROWS),
    case("LicplaneUsageLost", licplane_usage_gaps=GROWS),
    case("LicplaneDeliveriesStuck", licplane_delivery_oldest_waiting_timestamp_seconds="20000"),
    Case("LicplaneDeliveriesFailed", {'licplane_deliveries{state="failed"}': GROWS}),
    Case("LicplaneBudgetNearlyUsed", {'licplane_budget_used_ratio{budget="year"}': "0.95"}),
    Case(
        "LicplaneBudgetForecastExceeded", {'licplane_budget_expected_ratio{budget="year"}': "1.2"}
    ),
)


def rules() -> Iterator[dict[str, Any]]:
    for file in FILES:
        for group in yaml.safe_load(file.read_text())["groups"]:
            yield from group["rules"]


def series_of(where: str, changed: Mapping[str, str]) -> Iterator[dict[str, str]]:
    """A well host and server, but for what is changed, as promtool takes them."""
    for name, values in {**HOST, **SERVER, **changed}.items():
        metric, _, labels = name.partition("{")
        # Of `up` the job is what the rules know it by; of all others it says whose they are.
        own = f'instance="{where}"' + ("" if metric == "up" else f',job="{where}"')
        yield {
            "series": f"{metric}{{{own},{labels.removesuffix('}')}}}".replace(",}", "}"),
            "values": values if " " in values else f"{values}x{STEPS}",
        }


def promtool(folder: Path, series: list[dict[str, str]], wanted: list[dict[str, Any]]) -> str:
    """What promtool finds wrong; "" if nothing."""
    file = folder / "rules.test.yml"
    body = {
        "rule_files": [str(each) for each in FILES],
        "evaluation_interval": STEP,
        "tests": [{"interval": STEP, "input_series": series, "promql_expr_test": wanted}],
    }
    file.write_text(yaml.safe_dump(body))
    command = ["promtool", "test", "rules", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0 or "FAILED" in done.stderr, done
    return done.stderr[-6000:] if done.returncode else ""


def firing(names: Iterable[str], where: str, at: str = AT) -> dict[str, Any]:
    """What promtool asks, and is to be answered, at a moment."""
    fires = 'ALERTS{alertstate="firing",%s="' + where + '"}'
    of = f"({fires % 'job'} or {fires % 'instance'})"
    return {
        "expr": f"count by (alertname) {of}",
        "eval_time": at,
        "exp_samples": [
            {"labels": f'{{alertname="{name}"}}', "value": 1} for name in sorted(names)
        ],
    }


def test_each_alert_fires_for_its_cause_and_no_other_does(tmp_path: Path) -> None:
    series: list[dict[str, str]] = []
    wanted: list[dict[str, Any]] = []
    for number, each in enumerate(CASES):
        where = f"{each.alert}-{number}"
        series += series_of(where, each.series)
        wanted.append(firing({each.alert} | each.also, where))
    assert promtool(tmp_path, series, wanted) == ""


def test_no_alert_fires_where_all_is_well(tmp_path: Path) -> None:
    series = list(series_of("well", {}))
    wanted = [firing((), "well", at) for at in ("30m", "2h", "6h30m", AT)]
    assert promtool(tmp_path, series, wanted) == ""
    assert promtool(tmp_path, series, [firing({"LicagentDown"}, "well")]), "it would say so"


def test_every_alert_has_a_case_a_runbook_and_words() -> None:
    found = list(rules())
    assert {rule["alert"] for rule in found} == {each.alert for each in CASES}
    runbooks = (ROOT / "docs/operations/runbooks.md").read_text()
    sections = re.findall(r"^### (\w+)$", runbooks, re.MULTILINE)
    assert sorted(sections) == sorted(rule["alert"] for rule in found)
    known = {"up", *AGENT, *PLANE}
    for rule in found:
        name, notes = rule["alert"], rule["annotations"]
        assert notes["runbook"] == f"docs/operations/runbooks.md#{name.lower()}"
        assert notes["summary"].endswith("."), name
        assert notes["description"].endswith("."), name
        assert rule["labels"]["severity"] in {"critical", "warning", "info"}, name
        names = re.findall(r"\b(?:licagent|licplane)_\w+", rule["expr"])
        metrics = {re.sub(r"_bucket$", "", each) for each in names}
        assert metrics <= known, f"{name} asks for metrics that nobody serves: {metrics - known}"


def test_promtool_finds_no_fault_with_the_files() -> None:
    done = subprocess.run(
        ["promtool", "check", "rules", *map(str, FILES)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert len(FILES) == 2
