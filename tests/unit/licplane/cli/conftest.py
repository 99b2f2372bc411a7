# SPDX-License-Identifier: Apache-2.0
"""A state folder with a key and a CA, and hosts that joined it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from licplane.cli.local import open_store, remember_addresses
from licplane.cli.place import Place
from licplane.cli.starting import open_for_server, prepare
from licplane.service.plane import Plane
from licplane.service.requests import EnrollRequest, LiveReport, Machine, PlaneSettings, Report
from lictoken import base64url

DOCUMENTS = """
resource:
- name: orders-db
  kind: network
  mode: enforce
  destinations: [{cidr: 10.0.5.0/24, ports: ["5432"], protocol: tcp}]
binding:
- name: orders
  license: acme-orders
  selectors: ["systemd:unit:orders.service"]
license:
- id: acme-orders
  subject: Acme Ltd
  scope: {org: acme}
  entitlements: [{resource: orders-db}]
  expires: 2100-01-01T00:00:00Z
"""


def make_csr() -> bytes:
    """A certificate request of a new P-256 key."""
    key = ec.generate_private_key(ec.SECP256R1())
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.DER)


class Fleet:
    """The control plane of a state folder, and what its hosts do."""

    def __init__(self, state: Path, run: Callable[..., Any]) -> None:
        self.place = Place(state=state)
        self.run = run

    def plane(self) -> Plane:
        """As a server has it."""
        return self.opened().plane

    def opened(self) -> Any:
        return open_for_server(self.place, None, PlaneSettings())

    def join(self, hostname: str = "db-1", **labels: str) -> str:
        """A host joins; its id."""
        chosen = [f"--label={name}={value}" for name, value in labels.items()]
        made = json.loads(self.run("token", "create", *chosen, "--json").stdout)
        found = json.loads(base64url.decode(made["join"].split(".")[1], "the token"))
        machine = Machine(hostname, "0" * 31 + str(len(hostname)), "boot-1", "0.1.0", "6.1.0")
        opened = self.opened()
        with opened.store:
            request = EnrollRequest(found["id"], found["secret"], make_csr(), machine)
            return str(opened.plane.enroll(request).host_id)

    def report(
        self, host_id: str, live: Sequence[tuple[str, str, str, int]] = (), **more: Any
    ) -> None:
        """The host's report comes in."""
        uses = [LiveReport(*one) for one in live]
        opened = self.opened()
        now_ms = time.time_ns() // 10**6
        state = {"mode": "enforce", "agent_version": "0.1.0", "hooks": [{"attached": True}]}
        report = Report(
            json=json.dumps({"state": state, "live": [asdict(one) for one in uses]}),
            at_unix_ms=now_ms,
            boot_id="boot-1",
            hostname="db-1",
            agent_version="0.1.0",
            kernel_release="6.1.0",
            mode="enforce",
            revision=1,
            live=tuple(uses),
            **more,
        )
        with opened.store:
            opened.plane.record_report(host_id, report)


@pytest.fixture
def fleet(state: Path, run: Callable[..., Any], kid: str) -> Fleet:
    """A control plane that was started once."""
    place = Place(state=state)
    prepare(place, issuer="acme", words=None, unencrypted=True)
    with open_store(place) as store:
        remember_addresses(store, public="plane.example:8444", control="plane.example:8443")
    return Fleet(state, run)


@pytest.fixture
def csr() -> bytes:
    """A certificate request of a new P-256 key."""
    return make_csr()


@pytest.fixture
def documents(tmp_path: Path) -> Path:
    """A folder with a resource, a binding and a license."""
    folder = tmp_path / "policy"
    folder.mkdir()
    (folder / "orders.yaml").write_text(DOCUMENTS)
    return folder
