# SPDX-License-Identifier: Apache-2.0
"""What the control plane changes is in the kernel of the host: pushes, revocations, refusals."""

from __future__ import annotations

from collections.abc import Callable

from tests.kernel.harness.programs import Program
from tests.system.harness.controlplane import Host, binding, license
from tests.system.harness.scene import HOLDER, STRANGER, eventually

from lictoken.claims import LicenseScope


def talks(program: Program) -> bool:
    """Whether a byte still goes there and back."""
    assert program.process.stdin is not None
    program.process.stdin.write(b"x\n")
    program.process.stdin.flush()
    return program.line() == {"outcome": "ok"}


def in_force(host: Host, revision: int) -> None:
    """Wait until the host has acknowledged a revision."""
    eventually(lambda: host.plane.host(host.id)["acked_revision"] >= revision, "the ACK")


def test_licensed_by_the_control_plane_alone(host: Host) -> None:
    assert list((host.agent.config / "licenses").iterdir()) == []
    assert list((host.agent.config / "policy.d").iterdir()) == []
    assert (host.connect(HOLDER), host.connect(STRANGER)) == ("ok", "ENOKEY")
    [row] = host.ask("license", "list")["licenses"]
    assert (row["id"], row["state"]) == ("acme-db", "valid")


def test_a_revocation_cuts_the_open_socket(host: Host) -> None:
    with host.program() as (program, report):
        assert report["outcome"] == "ok"
        assert talks(program)
        host.plane.do("license", "revoke", "acme-db", "--reason", "ticket 12")
        eventually(lambda: host.connect() == "EKEYREVOKED", "revoked in the kernel")
        assert not talks(program)
    assert host.state_of("acme-db") == "revoked"
    [event] = [e for e in host.agent.events() if "ticket 12" in str(e)][-1:]
    assert event["kind"] == "license"
    # A restart of either side does not bring it back.
    host.agent.kill()
    host.agent.start()
    assert host.connect() == "EKEYREVOKED"


def test_suspended_and_reinstated(host: Host) -> None:
    host.plane.do("license", "suspend", "acme-db")
    host.until("EKEYREVOKED")
    host.plane.do("license", "reinstate", "acme-db")
    host.until("ok")


def test_a_binding_is_added_without_a_restart(host: Host) -> None:
    pid = host.agent.pid
    with host.program() as (program, _report):
        assert host.connect(STRANGER) == "ENOKEY"
        host.plane.apply(binding(uid=STRANGER))
        host.until("ok", STRANGER)
        assert talks(program)
        host.plane.do("binding", "delete", f"acme-db-{STRANGER}")
        host.until("ENOKEY", STRANGER)
        assert talks(program)
    assert host.agent.pid == pid


def test_a_license_is_widened_without_a_restart(host: Host) -> None:
    before = host.ask("license", "show", "acme-db")["license"]
    where = {"cidr": "127.0.0.1/32", "ports": [str(host.server.port)], "protocol": "tcp"}
    host.plane.apply(host.resource("wide", destinations=[{**where, "cidr": "127.0.0.0/30"}]))
    with host.program() as (program, _report):
        wider = license(entitlements=[{"resource": "db"}, {"resource": "wide"}], grace=120)
        host.plane.apply(wider)
        after = eventually(
            lambda: (
                row
                if (row := host.ask("license", "show", "acme-db")["license"])["generation"]
                > before["generation"]
                else None
            )
        )
        assert [e["resource"] for e in after["entitlements"]] == ["db", "wide"]
        assert talks(program)


def test_acknowledged_means_in_the_kernel(host: Host) -> None:
    """As soon as the control plane has the ACK, the very next connect is decided by it."""
    for number in range(8):
        uid = 62_000 + number
        revision = host.plane.apply(binding(uid=uid))["revision"]
        in_force(host, revision)
        assert host.connect(uid) == "ok", number
        revision = host.plane.ask("binding", "delete", f"acme-db-{uid}")["revision"]
        in_force(host, revision)
        assert host.connect(uid) == "ENOKEY", number


def test_what_the_host_cannot_take_is_refused_and_the_old_stays(host: Host) -> None:
    plane, name = host.plane, host.id
    in_force(host, plane.host(name)["revision"])  # the ACK is written down a little later
    before = plane.host(name)["acked_revision"]
    host.agent.policy(
        '[[resource]]\nname = "local"\nkind = "network"\n'
        'destinations = [{ cidr = "192.0.2.9/32" }]\n'
    )
    taken = plane.apply(
        host.resource("local", destinations=[{"cidr": "192.0.2.8/32"}]), binding(uid=STRANGER)
    )
    found = eventually(lambda: (h := plane.host(name))["last_nack"] and h, "the NACK")
    assert "local" in found["last_nack"]
    assert "POLICY" in found["last_nack"].upper()
    assert found["acked_revision"] == before
    assert found["lag"] > 0
    assert (host.connect(HOLDER), host.connect(STRANGER)) == ("ok", "ENOKEY")
    # The cause is taken away, and what is newest comes into force.
    plane.do("resource", "delete", "local")
    in_force(host, taken["revision"] + 1)
    assert host.connect(STRANGER) == "ok"
    assert not plane.host(name)["last_nack"]


def test_a_revocation_passes_a_refused_delta(host: Host) -> None:
    """The host is stuck at an old version; what takes away still reaches it."""
    host.agent.policy(
        '[[resource]]\nname = "local"\nkind = "network"\n'
        'destinations = [{ cidr = "192.0.2.9/32" }]\n'
    )
    host.plane.apply(host.resource("local", destinations=[{"cidr": "192.0.2.8/32"}]))
    eventually(lambda: host.plane.host(host.id)["last_nack"], "the NACK")
    host.plane.do("license", "revoke", "acme-db")
    host.until("EKEYREVOKED")


def test_what_changed_while_the_host_was_away_comes_as_a_delta(
    host: Host, make_host: Callable[..., Host]
) -> None:
    host.plane.apply(*(binding(uid=63_000 + number) for number in range(50)))
    in_force(host, host.plane.host(host.id)["revision"])
    host.agent.stop()
    host.plane.apply(binding(uid=STRANGER))
    host.plane.do("binding", "delete", "acme-db-63007")
    resets = host.plane.metric("licplane_delta_resets_total")
    host.agent.start()
    host.until("ok", STRANGER)
    assert host.connect(63_007) == "ENOKEY"
    assert host.connect(63_008) == "ok"
    assert host.plane.metric("licplane_delta_resets_total") == resets


def test_licenses_and_policy_from_files_go_on_beside_it(host: Host) -> None:
    scope = LicenseScope(org="acme")  # the organization that the host has joined
    host.agent.issue("from-file", ["db"], number=900, scope=scope)
    host.agent.policy(f'[[binding]]\nlicense = "from-file"\nselectors = ["unix:uid:{STRANGER}"]\n')
    host.until("ok", STRANGER)
    host.plane.do("license", "revoke", "acme-db")
    host.until("EKEYREVOKED")
    assert host.connect(STRANGER) == "ok"
