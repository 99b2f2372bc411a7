# SPDX-License-Identifier: Apache-2.0
"""Metrics of both packages as their units confine them, scraped over a network."""

from __future__ import annotations

from functools import partial

import pytest
from tests.system.harness.prometheus import MISSING, Prometheus, get, promtool
from tests.system.harness.scene import eventually
from tests.vm.issuer import DENIED, LicensedHost, dial, put_dial, resource, said
from tests.vm.machine import Machine
from tests.vm.states import START_S

_PORT = 7001
_AGENT, _PLANE = 9795, 9796
_ANSWER_S = 300.0
"""A reading that takes over five seconds is answered as unwell; the next may be quicker."""

pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"needs {', '.join(MISSING)}")


def test_prometheus_scrapes_agent_and_control_plane_of_the_packages(installed: Machine) -> None:
    host = LicensedHost(installed)
    put_dial(installed)
    host.set_up(settings=f'metrics_listen = "0.0.0.0:{_AGENT}"')
    host.license("acme", ["closed"])
    host.policy(resource("closed", _PORT, "unix:uid:61234", jti="acme"))
    installed.run(
        "printf 'correct horse' | systemd-creds encrypt --name=licplane.passphrase - "
        "/etc/licplane/passphrase.cred"
    )
    installed.write(
        "/etc/licplane/licplane.env",
        f"LICPLANE_ISSUER=tests\nLICPLANE_METRICS_LISTEN=0.0.0.0:{_PLANE}\n",
    )
    installed.run("systemctl start licplane.service", timeout=START_S)
    agent, plane = (f"127.0.0.1:{installed.forward(port)}" for port in (_AGENT, _PLANE))
    for where in (agent, plane):
        for page in ("-/healthy", "-/ready"):
            answered(f"http://{where}/{page}")
        assert promtool("check", "metrics", stdin=answered(f"http://{where}/metrics")) == ""
    assert said(installed.run(dial(_PORT))) == DENIED
    # Emulated, a reading takes longer than it may where Prometheus asks every second.
    jobs = {"licagent": [agent], "licplane": [plane]}
    with Prometheus(jobs, every_s=5) as prometheus:
        denied = 'licagent_decisions_total{resource="closed",verdict="deny"} >= 1'
        eventually(lambda: prometheus.query(denied), denied, within_s=_ANSWER_S)
        database = "licplane_database_up == 1"
        eventually(lambda: prometheus.query(database), database, within_s=_ANSWER_S)
        eventually(lambda: len(prometheus.query("up == 1")) == 2, "both are up", within_s=_ANSWER_S)
        assert not prometheus.query("licagent_degraded_reasons")
        # The daemon serves at a socket that its way out made, and keeps it without that process.
        installed.run("systemctl stop licagent-uplink.service licagent-uplink.socket")
        answered(f"http://{agent}/-/healthy")


def answered(url: str) -> str:
    """A page's text, once it is served and well."""
    return eventually(partial(_well, url), url, within_s=_ANSWER_S)


def _well(url: str) -> str:
    try:
        status, text = get(url)
    except OSError:
        return ""
    return text if status == 200 else ""
