# SPDX-License-Identifier: Apache-2.0
"""Metrics of both packages as their units confine them, scraped over a network."""

from __future__ import annotations

import pytest
from tests.system.harness.prometheus import MISSING, Prometheus, get, promtool
from tests.system.harness.scene import eventually
from tests.vm.issuer import DENIED, LicensedHost, dial, put_dial, resource, said
from tests.vm.machine import Machine

_PORT = 7001
_AGENT, _PLANE = 9795, 9796

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
    installed.run("systemctl start licplane.service", timeout=300)
    agent, plane = (f"127.0.0.1:{installed.forward(port)}" for port in (_AGENT, _PLANE))
    for where in (agent, plane):
        eventually(lambda where=where: answers(where), where)  # type: ignore[misc]
        assert get(f"http://{where}/-/healthy")[0] == 200
        assert get(f"http://{where}/-/ready")[0] == 200
        assert promtool("check", "metrics", stdin=get(f"http://{where}/metrics")[1]) == ""
    assert said(installed.run(dial(_PORT))) == DENIED
    # Emulated, a reading takes longer than it may where Prometheus asks every second.
    jobs = {"licagent": [agent], "licplane": [plane]}
    with Prometheus(jobs, every_s=5) as prometheus:
        denied = 'licagent_decisions_total{resource="closed",verdict="deny"} >= 1'
        eventually(lambda: prometheus.query(denied))
        eventually(lambda: prometheus.query("licplane_database_up == 1"))
        assert len(prometheus.query("up == 1")) == 2
        assert not prometheus.query("licagent_degraded_reasons")
        # The daemon serves at a socket that its way out made, and keeps it without that process.
        installed.run("systemctl stop licagent-uplink.service licagent-uplink.socket")
        assert get(f"http://{agent}/-/healthy")[0] == 200


def answers(where: str) -> bool:
    """Whether it is served yet."""
    try:
        return get(f"http://{where}/-/healthy")[0] == 200
    except OSError:
        return False
