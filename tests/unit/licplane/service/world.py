# SPDX-License-Identifier: Apache-2.0
"""A control plane as tests need it: cheap keys, a clock that stands still, hosts that are faked."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from licplane.issuer.keyring import NO_KEYS, open_keys
from licplane.issuer.sealedkey import Cost
from licplane.service.answers import ChangeResult, Enrolled, JoinTokenCreated
from licplane.service.plane import Plane
from licplane.service.requests import (
    Change,
    Document,
    EnrollRequest,
    Machine,
    PlaneSettings,
)
from licplane.service.values import Actor, Role
from licplane.store.database import Store
from lictoken import base64url

CHEAP = Cost(n=2**10, p=1)
PASSPHRASE = "correct horse battery"
START_MS = 1_800_000_000_000
ROOT = Actor("local:root", Role.ADMIN)
SETTINGS = PlaneSettings(public_address="plane.test:8444", control_address="plane.test:8443")


@dataclass
class Clock:
    """Milliseconds since 1970, as the test says."""

    now_ms: int = START_MS

    def __call__(self) -> int:
        return self.now_ms

    def pass_s(self, seconds: float) -> None:
        self.now_ms += int(seconds * 1000)


def new_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def csr(key: ec.EllipticCurvePrivateKey) -> bytes:
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "whatever")])
    builder = x509.CertificateSigningRequestBuilder().subject_name(name)
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.DER)


@dataclass
class FakeHost:
    """The host's side: a key, and what it was told."""

    plane: Plane
    machine: Machine = field(
        default_factory=lambda: Machine("db-1", "a" * 32, "boot", "0.1", "6.1")
    )
    key: ec.EllipticCurvePrivateKey = field(default_factory=new_key)
    id: str = ""
    counter: bytes = b""
    fingerprint: str = ""

    def enroll(self, join: str) -> Enrolled:
        found = parse_join(join)
        request = EnrollRequest(found["id"], found["secret"], csr(self.key), self.machine)
        return self.take(self.plane.enroll(request))

    def take(self, answer: Enrolled) -> Enrolled:
        self.id, self.counter = answer.host_id, answer.counter
        leaf = x509.load_der_x509_certificate(answer.certificate_chain[0])
        self.fingerprint = leaf.fingerprint(hashes.SHA256()).hex()
        return answer

    def connect(self) -> None:
        """A stream that goes well: the next counter is kept."""
        result = self.plane.open_stream(self.id, self.counter)
        assert result.verdict.value == "accepted"
        self.plane.keep_counter(self.id, result.counter)
        self.counter = result.counter


def parse_join(join: str) -> dict[str, str]:
    assert join.startswith("licjoin1.")
    found: dict[str, str] = json.loads(base64url.decode(join[9:], "join"))
    return found


def resource(name: str = "db", **fields: Any) -> Document:
    where = {"cidr": "10.0.5.0/24", "ports": ["5432"], "protocol": "tcp"}
    table = {"name": name, "kind": "network", "mode": "enforce", "destinations": [where], **fields}
    return Document("resource", name, json.dumps(table))


def binding(name: str = "b", license: str = "acme-db", **fields: Any) -> Document:
    table = {"name": name, "license": license, "selectors": ["unix:uid:1000"], **fields}
    return Document("binding", name, json.dumps(table))


def license(name: str = "acme-db", **fields: Any) -> Document:
    table = {
        "id": name,
        "subject": "Acme Ltd",
        "scope": {"org": "acme"},
        "entitlements": [{"resource": "db"}],
        "expires": "2100-01-01T00:00:00Z",
        **fields,
    }
    return Document("license", name, json.dumps({k: v for k, v in table.items() if v is not None}))


@dataclass
class World:
    """A plane with its clock, and short ways to what tests do all the time."""

    plane: Plane
    clock: Clock
    store: Store

    def again(self) -> Plane:
        """Another process on the same database."""
        with self.store.reading() as reader:
            keys = open_keys(reader, lambda: PASSPHRASE)
        return Plane(self.store, keys, SETTINGS, now_ms=self.clock, cost=CHEAP)

    def apply(self, *documents: Document, **options: Any) -> ChangeResult:
        result = self.plane.apply(ROOT, Change(**options.pop("change", {})), documents, **options)
        self.plane.refresh()
        return result

    def token(self, uses: int = 1, ttl_s: int = 3600, **labels: str) -> JoinTokenCreated:
        labels = labels or {"org": "acme"}
        return self.plane.create_join_token(
            ROOT, Change(), labels=labels, uses_max=uses, ttl_s=ttl_s
        )

    def host(self, name: str = "db-1", **labels: str) -> FakeHost:
        """An enrolled host."""
        number = sum(map(ord, name))
        host = FakeHost(self.plane, Machine(name, f"{number:032x}", "boot", "0.1", "6.1"))
        host.enroll(self.token(**labels).join)
        return host

    def actions(self) -> list[str]:
        """The audit log, by action."""
        return [one.action for one in self.plane.list_audit(ROOT, 0, 1000)]


def make_world(store: Store) -> World:
    clock = Clock()
    plane = Plane(store, NO_KEYS, SETTINGS, now_ms=clock, cost=CHEAP)
    assert plane.ensure_foundations(ROOT, issuer="acme", passphrase=PASSPHRASE)
    assert plane.refresh().intact
    return World(plane, clock, store)
