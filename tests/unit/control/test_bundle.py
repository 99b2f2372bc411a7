# SPDX-License-Identifier: Apache-2.0
"""Enrolment by files, for a host with no network."""

from __future__ import annotations

import datetime as dt
import json
import time
import uuid
from dataclasses import replace

import pytest

from licagent.control.enrolment import EnrolmentFailed, enroll_from_bundle, enrolment_request
from licagent.control.interface import Machine
from licagent.control.session import ControlSession
from licagent.domain.hostidentity import Identity
from lictoken import base64url

MACHINE = Machine("vault-1", "0" * 32, "boot", "1.0", "6.1.0")


def sealed(message):
    return {
        "payload": base64url.encode(message.payload),
        "kid": message.kid,
        "signature": base64url.encode(message.signature),
    }


@pytest.fixture
def admit(authority, model):
    """What `licplane host admit` does."""

    def make(request: bytes, **more):
        asked = json.loads(request)
        csr = base64url.decode(asked["csr"], "csr")
        host_id = str(uuid.uuid4())
        leaf = authority.host(csr, host_id, dt.timedelta(days=365), dt.timedelta(seconds=10))
        return {
            "schema_version": 1,
            "host_id": host_id,
            "certificate_chain": [base64url.encode(leaf)],
            "ca_certificates": [base64url.encode(authority.root_der)],
            "trust": base64url.encode(model.trust),
            "assignment": sealed(model.assignment(host_id)),
            "manifest": sealed(model.manifest()),
            "objects": [
                {
                    "kind": kind,
                    "name": name,
                    "revision": revision,
                    "payload": base64url.encode(payload),
                }
                for (kind, name), (revision, payload) in model.objects.items()
            ],
            "control_address": "plane.example:8443",
            **more,
        }

    return make


def lease_of(model, folder, request, of, **more):
    asked = json.loads(request)
    key = folder.identities.pending_key()

    class Asked:
        nonce = base64url.decode(asked["nonce"], "nonce")
        boot_id = ""

    who = Identity(key, of, (), (), b"", None, b"", "", "", 0)
    now_ms = int(time.time() * 1000)
    return sealed(
        model.leases(Asked, who, "acme-1", issued_at_unix_ms=now_ms, ttl_ms=30 * 86_400_000, **more)
    )


def test_a_request_goes_out_and_a_bundle_makes_a_host(folder, model, admit, kernel, kit):
    model.change((1, "db", b"{}"), (3, "acme-1", b"token"))
    request = enrolment_request(folder.identities, MACHINE)
    assert json.loads(request)["machine"]["hostname"] == "vault-1"
    bundle = admit(request)
    bundle["lease"] = lease_of(model, folder, request, bundle["host_id"])
    result = enroll_from_bundle(
        json.dumps(bundle).encode(), folder.identities, folder.catalogs, kit.SETTINGS
    )
    assert result.changed
    assert result.labels == kit.LABELS
    again = enroll_from_bundle(
        json.dumps(bundle).encode(), folder.identities, folder.catalogs, kit.SETTINGS
    )
    assert (again.host_id, again.changed) == (result.host_id, False)
    settings = replace(kit.SETTINGS, deadline_of_unix_s=lambda unix_s: unix_s * 10)
    for boot_id in ("this boot", "the next boot"):
        session = ControlSession(
            folder.identities, folder.catalogs, kernel, replace(settings, boot_id=boot_id)
        )
        boot = session.boot()
        assert boot.problems == ()
        assert {each.name for each in boot.catalog.objects.values()} == {"db", "acme-1"}
        assert boot.leases.end_boottime_ns > (time.time() + 29 * 86_400) * 10
        assert boot.leases.end_of("acme-1", 1) > 0


@pytest.mark.parametrize("field", ["host_id", "key_fingerprint", "nonce", "boot_id"])
def test_somebody_elses_lease_refuses_the_bundle(folder, model, admit, kit, field):
    request = enrolment_request(folder.identities, MACHINE)
    bundle = admit(request)
    other = b"\0" * 16 if field in ("nonce", "key_fingerprint") else "other"
    bundle["lease"] = lease_of(model, folder, request, bundle["host_id"], **{field: other})
    with pytest.raises(EnrolmentFailed) as failed:
        enroll_from_bundle(
            json.dumps(bundle).encode(), folder.identities, folder.catalogs, kit.SETTINGS
        )
    assert failed.value.code == "bundle"
    assert folder.identities.load() is None


def test_a_bundle_for_another_key_or_with_another_catalog_changes_nothing(
    folder, model, admit, kit, tmp_path
):
    model.change((1, "db", b"{}"))
    request = enrolment_request(folder.identities, MACHINE)
    bundle = admit(request)
    spoilt = json.loads(json.dumps(bundle))
    spoilt["objects"][0]["payload"] = base64url.encode(b"{everything}")
    other = kit.HostFolder(tmp_path / "other", model, folder.authority)
    foreign = admit(enrolment_request(other.identities, MACHINE))
    other.close()
    for text in (json.dumps(spoilt), json.dumps(foreign), "{}", "nonsense", '["a"]'):
        with pytest.raises(EnrolmentFailed):
            enroll_from_bundle(text.encode(), folder.identities, folder.catalogs, kit.SETTINGS)
        assert folder.identities.load() is None
        assert folder.catalogs.load() is None
    # The request is not used up by that:
    assert enroll_from_bundle(
        json.dumps(bundle).encode(), folder.identities, folder.catalogs, kit.SETTINGS
    ).changed
