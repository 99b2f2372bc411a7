# SPDX-License-Identifier: Apache-2.0
"""From the kernel to the bill's evidence: a real daemon delivers all it metered, each byte once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from tests.system.harness.controlplane import ControlPlane, Host
from tests.system.harness.scene import HOLDER, eventually

MakeHost = Callable[..., Host]

SETTINGS: Final = "metering_interval_s = 1\n"


def _sent(rows: list[dict[str, Any]], jti: str) -> int:
    mine = [row for row in rows if row["license"] == jti]
    return sum(int((row.get("quantities") or row).get("tx_payload_bytes", 0)) for row in mine)


def _here(host: Host, jti: str) -> int:
    return _sent(host.ask("usage")["rows"], jti)


def _there(plane: ControlPlane, jti: str) -> int:
    found = plane.ask("usage", "--since", "-24h")
    return _sent(found["usage"], jti)


def _say(host: Host, size: int) -> None:
    with host.program(HOLDER) as (program, report):
        assert report["outcome"] == "ok"
        assert program.process.stdin is not None
        program.process.stdin.write(b"y" * (size - 1) + b"\n")
        program.process.stdin.flush()
        assert program.line() == {"outcome": "ok"}


def test_what_a_license_carried_arrives_once_through_crashes_of_both_sides(
    plane: ControlPlane, make_host: MakeHost
) -> None:
    host = make_host(settings=SETTINGS)
    host.enroll()
    host.licensed()
    jti = next(row["id"] for row in host.ask("license", "list")["licenses"])
    _say(host, 5_000)
    eventually(lambda: _there(plane, jti) >= 5_000, "the first bytes at the control plane")

    host.agent.kill()  # with whatever is in the kernel and in the spool
    host.agent.start()
    host.until("ok")
    _say(host, 7_000)
    plane.kill()
    _say(host, 11_000)
    plane.start()
    eventually(lambda: _there(plane, jti) >= 23_000, "what was used while it was away")

    eventually(
        lambda: (
            host.ask("status")["metering"]["spool"]["unacknowledged"] == 0
            and _there(plane, jti) == _here(host, jti)
        ),
        "both sides have the same sum",
    )
    delivery = host.ask("status")["metering"]["delivery"]
    assert delivery["refused"] == 0
    assert delivery["alarm"] is None
    assert host.ask("usage", "verify")["good"]
    verified = plane.cli("usage", "verify", "--json")
    assert verified.status == 0, verified
