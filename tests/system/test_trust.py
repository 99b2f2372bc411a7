# SPDX-License-Identifier: Apache-2.0
"""Trust is installed while the daemon runs, as on a new host."""

from __future__ import annotations

from collections.abc import Callable

from tests.system.harness.scene import Scene


def test_a_license_is_accepted_as_soon_as_its_key_is_installed(
    make_scene: Callable[..., Scene],
) -> None:
    scene = make_scene()
    trust = scene.agent.config / "trust.jwks"
    installed = trust.read_bytes()
    trust.unlink()
    scene.agent.start()
    license_ = scene.file("acme.lic", scene.agent.token("acme", ["db"]))
    assert scene.cli("license", "add", license_).status == 7
    trust.write_bytes(installed)
    assert scene.cli("license", "add", license_).status == 0
    statement = scene.file("acme.rev", scene.agent.statement("acme", "revoke"))
    trust.write_bytes(b'{"keys": []}')
    assert scene.cli("license", "revoke", "--statement", statement).status == 7
    trust.write_bytes(installed)
    assert scene.cli("license", "revoke", "--statement", statement).status == 0
