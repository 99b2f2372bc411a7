# SPDX-License-Identifier: Apache-2.0
"""A real Prometheus over a live agent and control plane: metrics, dashboards, alerts, health."""

from __future__ import annotations

import json
import os
import re
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest
from tests.kernel.harness.agent import AgentUnderTest
from tests.system.harness.confined import ConfinedAgent
from tests.system.harness.controlplane import ControlPlane, Host, address
from tests.system.harness.prometheus import MISSING, Prometheus, get, promtool
from tests.system.harness.scene import HOLDER, STRANGER, Scene, eventually

from licagent.daemon.metrics.families import FAMILIES as AGENT
from licagent.daemon.metrics.families import SERIES_MAX
from licplane.api.metrics import FAMILIES as PLANE

ROOT: Final = Path(__file__).parents[2]
BOARDS: Final = sorted((ROOT / "packaging/grafana").glob("*.json"))
QUIET: Final = {
    # What has no series here, because nothing of the kind happens on a fleet that is well.
    *("licagent_degraded_reasons", "licplane_errors_total", "licplane_refused_total"),
    *("licplane_budget_used_ratio", "licplane_budget_expected_ratio"),
    'verdict="shadow"',
    "licagent_usage_storage_bytes_total",  # a short-lived program may write nothing
}

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
    pytest.mark.skipif(bool(MISSING), reason=f"needs {', '.join(MISSING)}"),
]


@dataclass(frozen=True, slots=True)
class Watched:
    """A host, its control plane, and the Prometheus that scrapes both."""

    host: Host
    plane: ControlPlane
    prometheus: Prometheus
    agent_url: str
    plane_url: str


@pytest.fixture(scope="module")
def watched() -> Iterator[Watched]:
    where = address()
    settings = (
        f'metrics_listen = "{where}"\nmetering_interval_s = 1\nreport_interval_s = 1\n'
        "labels = { org = 'acme' }\n"
    )
    with ControlPlane() as plane:
        plane.make_keys()
        plane.start()
        with Host(plane, AgentUnderTest(settings=settings)) as host:
            host.agent.start()
            host.enroll()
            host.licensed()
            jobs = {"licagent": [where], "licplane": [plane.metrics]}
            with Prometheus(jobs) as prometheus:
                plane_url = f"http://{plane.metrics}"
                yield Watched(host, plane, prometheus, f"http://{where}", plane_url)


@pytest.fixture
def metered() -> Iterator[Callable[..., Scene]]:
    """Makes standalone scenes that serve metrics, not started."""
    made: list[Scene] = []

    def make() -> Scene:
        settings = f'metrics_listen = "{address()}"\nmetering_interval_s = 1\n'
        made.append(Scene(AgentUnderTest(settings=settings)))
        return made[-1]

    yield make
    for scene in made:
        scene.__exit__(None, None, None)


def page(scene: Scene, path: str = "/metrics") -> tuple[int, str]:
    found = re.search(r'metrics_listen = "(.+?)"', scene.agent.settings)
    assert found
    return eventually(lambda: answered(f"http://{found[1]}{path}"), "somebody listens")


def answered(url: str) -> tuple[int, str] | None:
    """The daemon is ready before its metrics are served."""
    try:
        return get(url)
    except OSError:
        return None


def total(text: str, name: str, *labels: str) -> float:
    """The sum of a metric's series that have these labels."""
    return sum(
        float(line.rsplit(" ", 1)[1])
        for line in text.splitlines()
        if re.match(rf"{name}[ {{]", line) and all(label in line for label in labels)
    )


# --- what is served


def test_promtool_and_the_tables_agree_with_what_is_served(watched: Watched) -> None:
    for url, families in ((watched.agent_url, AGENT), (watched.plane_url, PLANE)):
        status, text = get(f"{url}/metrics")
        assert status == 200
        assert promtool("check", "metrics", stdin=text) == ""
        typed = dict(re.findall(r"^# TYPE (\S+) (\w+)$", text, re.MULTILINE))
        ours = {name: kind for name, kind in typed.items() if not name.startswith("process_")}
        assert ours.keys() <= families.keys()
        for name, kind in ours.items():
            assert kind == families[name].kind, name
        assert typed["process_start_time_seconds"] == "gauge"
        asked = "application/openmetrics-text;version=1.0.0"
        assert get(f"{url}/metrics", asked)[1].endswith("# EOF\n")
        assert get(f"{url}/")[0] == 404


def test_prometheus_has_the_kernels_own_numbers(watched: Watched) -> None:
    host, prometheus = watched.host, watched.prometheus
    eventually(lambda: len(prometheus.query("up == 1")) == 2, "both are scraped")
    for _ in range(3):
        assert host.connect() == "ok"
        assert host.connect(STRANGER) == "ENOKEY"

    def same() -> bool:
        counters = host.cli("status", "--json").json["counters"]
        wanted = {
            (row["license"] or "none", row["resource"] or "none", row["verdict"], row["reason"]):
            row["count"]
            for row in counters
        }  # fmt: skip
        found = {
            (each["license"], each["resource"], each["verdict"], each["reason"]): value
            for each, value in prometheus.query("licagent_decisions_total")
        }
        return ("none", "db", "deny", "no_binding") in found and found == wanted

    eventually(same, "Prometheus has what status has")
    eventually(lambda: prometheus.query('licagent_licenses{state="valid"} == 1'))
    eventually(lambda: prometheus.query("licagent_control_connected == 1"))
    eventually(lambda: prometheus.query('licplane_hosts{status="active",connected="true"} == 1'))
    used = 'licagent_usage_network_wire_bytes_total{license="acme-db",path="loopback"} > 0'
    eventually(lambda: len(prometheus.query(used)) == 2, "sent and received")
    ends = 'licagent_license_expiry_timestamp_seconds{license="acme-db"}'
    both = (ends, ends.replace("licagent", "licplane"))

    def same_end() -> bool:
        found = [end for each in both for _, end in prometheus.query(each)]
        return len(found) == 2 and found[0] == found[1]

    eventually(same_end, "both say when it ends")  # a scrape that took too long leaves a gap


def test_no_label_grows_without_end(watched: Watched) -> None:
    eventually(lambda: watched.prometheus.query("licplane_hosts"))
    documented = {
        *("__name__", "job", "instance", "le", "alertname", "alertstate", "severity"),
        *(label for family in (*AGENT.values(), *PLANE.values()) for label in family.labels),
    }
    labels = set(watched.prometheus.api("labels"))
    assert "license" in labels
    assert labels <= documented
    values = " ".join(get(f"{watched.agent_url}/metrics")[1].splitlines())
    assert watched.host.id not in values
    assert f'"{watched.host.agent.pid}"' not in values


# --- dashboards


def queries(board: Path) -> list[str]:
    """Every query of a dashboard, as Grafana would ask it of our two jobs."""
    body = json.loads(board.read_text())
    job = "licplane" if board.stem == "licplane" else "licagent"
    found = [target["expr"] for panel in body["panels"] for target in panel.get("targets", ())]
    return [
        each.replace("$__rate_interval", "30s").replace("$job", job).replace("$instance", ".*")
        for each in found
    ]


@pytest.mark.parametrize("board", BOARDS, ids=lambda board: board.stem)
def test_every_query_of_a_dashboard_has_an_answer(watched: Watched, board: Path) -> None:
    found = queries(board)
    assert len(found) > 15
    watched.host.connect(STRANGER)
    # One host has its name written out, where Grafana puts the one that was chosen.
    asked = [query.replace('instance=".*"', 'instance=~".*"') for query in found]
    left = list(asked)

    def all_were() -> bool:
        assert watched.host.curl(uid=HOLDER).stdout == b"licensed"
        left[:] = [query for query in left if not watched.prometheus.query(query)]
        return all(any(part in query for part in QUIET) for query in left)

    with watched.host.program():  # somebody who uses memory for a while
        try:
            eventually(all_were)
        except AssertionError:
            pytest.fail(f"no answer to {left}")


def test_the_dashboards_are_whole() -> None:
    assert len(BOARDS) == 3
    boards = [json.loads(board.read_text()) for board in BOARDS]
    assert len({board["uid"] for board in boards}) == 3
    known = {*AGENT, *PLANE, "up", "process_cpu_seconds_total", "process_resident_memory_bytes"}
    for board in boards:
        names = [variable["name"] for variable in board["templating"]["list"]]
        assert names[0] == "datasource"
        taken: set[tuple[int, int]] = set()
        for panel in board["panels"]:
            place = panel["gridPos"]
            cells = {
                (place["x"] + x, place["y"] + y)
                for x in range(place["w"])
                for y in range(place["h"])
            }
            assert not cells & taken, f"{panel['title']} lies over another panel"
            assert place["x"] + place["w"] <= 24
            taken |= cells
            if panel["type"] == "row":
                continue
            assert panel["description"].endswith("."), panel["title"]
            assert panel["datasource"]["uid"] == "${datasource}"
            for target in panel["targets"]:
                used = re.findall(r"\b(?:licagent|licplane|process)_\w+", target["expr"])
                assert {re.sub("_bucket$", "", name) for name in used} <= known
                assert set(re.findall(r"\$(\w+)", target["expr"])) <= {*names, "__rate_interval"}


# --- alerts and health


def test_alerts_follow_what_happens_on_the_host(watched: Watched) -> None:
    host, prometheus = watched.host, watched.prometheus
    eventually(lambda: prometheus.query("licagent_break_glass_active == 0"))
    groups = prometheus.api("rules")["groups"]
    assert {rule["health"] for group in groups for rule in group["rules"]} <= {"ok", "unknown"}
    assert not prometheus.alerts("LicagentBreakGlass")
    host.cli("break-glass", "--for", "5m", "--reason", "test")
    eventually(lambda: prometheus.alerts("LicagentBreakGlass") == {"firing"})
    host.cli("break-glass", "--end")
    eventually(lambda: not prometheus.alerts("LicagentBreakGlass"), "it is over")
    groups = prometheus.api("rules")["groups"]
    assert {rule["health"] for group in groups for rule in group["rules"]} == {"ok"}
    # A scrape that took too long is "down" for a second: it must not last.
    others = ("LicagentDown", "LicplaneDown", "LicplaneDatabaseDown", "LicplaneCatalogAltered")
    eventually(lambda: not any(map(prometheus.alerts, others)), "no other alert")


def test_health_and_readiness_of_both(watched: Watched) -> None:
    agent, plane = watched.agent_url, watched.plane_url
    for url, words in (
        (f"{agent}/-/healthy", "licagent is healthy\n"),
        (f"{agent}/-/ready", "licagent is ready: enforcing\n"),
        (f"{plane}/-/healthy", "licplane is healthy\n"),
        (f"{plane}/-/ready", "licplane is ready\n"),
    ):
        # One that waited for a processor for seconds says no: it must not last.
        eventually(lambda url=url, words=words: answered(url) == (200, words), words)


def test_a_program_that_somebody_takes_off_is_told_within_seconds(
    metered: Callable[..., Scene],
) -> None:
    scene = metered()
    scene.agent.start()
    scene.ready()
    where = re.search(r'"(.+?)"', scene.agent.settings)
    assert where
    assert page(scene, "/-/ready") == (200, "licagent is ready: enforcing\n")
    with Prometheus({"licagent": [where[1]]}) as prometheus:
        eventually(lambda: prometheus.query("licagent_hook_attached"))
        (scene.agent.bpffs / "links" / "cgroup_connect4").unlink()
        gone = 'licagent_hook_attached{hook="cgroup_connect4"} == 0'
        eventually(lambda: prometheus.query(gone))
        eventually(lambda: prometheus.alerts("LicagentHookMissing") == {"pending"})
        status, words = page(scene, "/-/ready")
        assert status == 503
        assert words.startswith("licagent is not ready: degraded (")
        assert "hook-missing" in words
        assert page(scene, "/-/healthy")[0] == 200, "the daemon itself does its work"


# --- over time, and beyond the bounds


def test_totals_survive_a_restart_and_none_goes_down(metered: Callable[..., Scene]) -> None:
    scene = metered()
    scene.agent.start()
    scene.ready()
    denied = ("licagent_decisions_total", 'verdict="deny"')
    used = ("licagent_usage_cpu_seconds_total",)
    assert scene.connect(STRANGER) == "ENOKEY"
    eventually(lambda: total(page(scene)[1], *denied) == 1)
    before = eventually(lambda: total(page(scene)[1], *used))
    scene.agent.stop()
    scene.agent.start()
    text = eventually(lambda: page(scene)[1])
    assert total(text, *denied) == 1
    eventually(lambda: total(page(scene)[1], *used) >= before, "usage goes on where it was")
    scene.agent.kill()
    scene.agent.start()
    assert total(page(scene)[1], *denied) == 1, "the kernel's own totals survive a crash too"


def test_beyond_the_bound_licenses_are_one_series(metered: Callable[..., Scene]) -> None:
    scene = metered()
    for number in range(SERIES_MAX + 3):
        scene.agent.issue(f"l{number:03}", ["db"], expires_in_s=3600 + 60 * number)
    scene.agent.start()
    text = page(scene)[1]
    name = "licagent_license_expiry_timestamp_seconds"
    ends = re.findall(rf'^{name}{{license="(.+?)"}}', text, re.MULTILINE)
    assert sorted(ends) == [*(f"l{number:03}" for number in range(SERIES_MAX)), "other"]
    assert total(text, "licagent_licenses", 'state="valid"') == SERIES_MAX + 3


def test_an_address_that_is_taken_hurts_nothing_but_the_metrics(
    metered: Callable[..., Scene],
) -> None:
    scene = metered()
    found = re.search(r'"(.+?):(\d+)"', scene.agent.settings)
    assert found
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind((found[1], int(found[2])))
        taken.listen()
        scene.agent.start()
        scene.ready()
        assert scene.connect(STRANGER) == "ENOKEY"

        def codes() -> list[Any]:
            return [row["code"] for row in scene.cli("status", "--json").json["reasons"]]

        eventually(lambda: "metrics-unserved" in codes())
    eventually(lambda: "metrics-unserved" not in codes(), "it is tried again")
    assert page(scene)[0] == 200


def test_a_daemon_without_a_network_serves_at_a_socket_of_its_way_out() -> None:
    settings = f'metrics_listen = "{address()}"\n'
    with Scene(ConfinedAgent(settings=settings)) as scene:
        agent = scene.agent
        assert isinstance(agent, ConfinedAgent)
        agent.start()

        def unserved() -> list[str]:
            reasons = scene.cli("status", "--json").json["reasons"]
            return [row["message"] for row in reasons if row["code"] == "metrics-unserved"]

        assert "no way out" in eventually(unserved)[0]
        agent.start_uplink()
        assert page(scene, "/-/healthy") == (200, "licagent is healthy\n")
        agent.stop_uplink()
        assert total(page(scene)[1], "licagent_state", 'state="degraded"') == 0
        assert not unserved()
