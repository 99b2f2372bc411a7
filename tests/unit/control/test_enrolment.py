# SPDX-License-Identifier: Apache-2.0
"""Enrolment by join token, its repetition, renewal, and what is not believed."""

from __future__ import annotations

import base64
import dataclasses
import datetime as dt
import json
import uuid

import pytest
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from licagent.control import hostkey
from licagent.control.enrolment import EnrolmentFailed, EnrolmentMode, enroll
from licagent.control.interface import ControlPhase, Machine
from licagent.control.join import parse_join
from lictoken.keys import SigningKey

MACHINE = Machine("web-1", "0" * 32, "boot", "1.0", "6.1.0")


def join_string(plane, ca=None, **more):
    body = {
        "id": "tok",
        "secret": "s3cret",
        "public": plane.public,
        "control": plane.control,
        "ca": base64.b64encode(ca or plane.authority.root_der).decode(),
    }
    text = json.dumps({**body, **more}).encode()
    return "licjoin1." + base64.urlsafe_b64encode(text).rstrip(b"=").decode()


class Registry:
    """A server's memory of who enrolled: by key, as the protocol wants it."""

    def __init__(self, plane):
        self.plane = plane
        self.hosts = {}
        self.host_id = None
        self.more = {}

    def __call__(self, name, request):
        public = x509.load_der_x509_csr(request.csr).public_key().public_numbers()
        changed = public not in self.hosts
        host_id = self.hosts.setdefault(public, self.host_id or str(uuid.uuid4()))
        return self.plane.response(request.csr, host_id, changed=changed, **self.more)


@pytest.fixture
def registry(plane):
    plane.answer = Registry(plane)
    return plane.answer


async def test_a_host_enrols_once_and_again_changes_nothing(plane, folder, registry, kit):
    first = await enroll(join_string(plane), folder.identities, folder.catalogs, MACHINE)
    assert first.changed
    assert first.labels == kit.LABELS
    _, request = plane.calls[0]
    assert (request.token_id, request.token_secret) == ("tok", "s3cret")
    assert request.machine.hostname == "web-1"
    held = folder.identities.load()
    assert held.host_id == first.host_id
    assert held.control_address == plane.control
    again = await enroll(join_string(plane), folder.identities, folder.catalogs, MACHINE)
    assert (again.host_id, again.changed) == (first.host_id, False)
    assert (folder.path / "identity.json").stat().st_mode & 0o777 == 0o600


async def test_a_host_cut_off_before_the_answer_asks_with_the_same_key(plane, folder, registry):
    import grpc

    plane.answer = lambda name, request: (
        registry(name, request) and (grpc.StatusCode.UNAVAILABLE, "cut")
    )
    with pytest.raises(EnrolmentFailed) as failed:
        await enroll(join_string(plane), folder.identities, folder.catalogs, MACHINE)
    assert failed.value.code == "network"
    assert folder.identities.load() is None
    plane.answer = registry
    found = await enroll(join_string(plane), folder.identities, folder.catalogs, MACHINE)
    assert list(registry.hosts.values()) == [found.host_id]
    assert folder.identities.pending_key() is None


async def test_after_a_clone_one_keeps_its_id_and_the_other_gets_a_new_one(plane, folder, registry):
    async def again(mode):
        return await enroll(
            join_string(plane), folder.identities, folder.catalogs, MACHINE, mode=mode
        )

    with pytest.raises(EnrolmentFailed, match="no identity to keep"):
        await again(EnrolmentMode.AGAIN)
    first = await again(EnrolmentMode.KEEP)
    old = folder.identities.load()
    kept = await again(EnrolmentMode.AGAIN)
    assert kept.host_id == first.host_id
    assert folder.identities.load().counter != old.counter
    registry.hosts.clear()  # a control plane that does not know the key any more
    with pytest.raises(EnrolmentFailed, match="makes another host"):
        await again(EnrolmentMode.AGAIN)
    assert folder.identities.load().host_id == first.host_id
    fresh = await again(EnrolmentMode.NEW)
    assert fresh.changed
    assert fresh.host_id != first.host_id
    assert folder.identities.load().key_pem != old.key_pem
    registry.host_id = fresh.host_id
    with pytest.raises(EnrolmentFailed, match="gives the old identity"):
        await again(EnrolmentMode.NEW)


async def test_a_new_host_forgets_the_old_ones_catalog(plane, folder, registry, model, run_host):
    await enroll(join_string(plane), folder.identities, folder.catalogs, MACHINE)
    host = run_host()
    peer = await plane.stream()
    await peer.welcome()
    model.change((1, "db", b"{}"))
    await peer.push(model.parts(0))
    await peer.receive("ack")
    await enroll(
        join_string(plane), folder.identities, folder.catalogs, MACHINE, mode=EnrolmentMode.NEW
    )
    host.session.wake()
    again = await plane.stream()
    assert again.hello.revision == 0
    assert host.session.state.host_id == folder.identities.load().host_id


async def test_another_control_plane_does_not_take_a_host_over(plane, folder, registry, kit):
    await enroll(join_string(plane), folder.identities, folder.catalogs, MACHINE)
    other = kit.Authority()
    with pytest.raises(EnrolmentFailed, match="another control plane") as failed:
        await enroll(
            join_string(plane, other.root_der), folder.identities, folder.catalogs, MACHINE
        )
    assert failed.value.code == "exists"
    assert len(plane.calls) == 1


async def test_the_join_token_pins_the_authority(plane, folder, registry, kit):
    other = kit.Authority()
    with pytest.raises(EnrolmentFailed, match="no connection") as failed:
        await enroll(
            join_string(plane, other.root_der), folder.identities, folder.catalogs, MACHINE
        )
    assert failed.value.code == "network"
    assert plane.calls == []


@pytest.mark.parametrize("wrong", ["key", "name", "authority", "assignment", "trust", "host"])
async def test_an_answer_that_does_not_fit_changes_nothing(plane, folder, registry, kit, wrong):

    key = hostkey.new_key()
    other = kit.Authority()

    def answer(name, request):
        host_id = str(uuid.uuid4())
        found = plane.response(request.csr, host_id)
        if wrong == "key":
            found.certificate_chain[0] = plane.response(
                hostkey.request_for(key), host_id
            ).certificate_chain[0]
        elif wrong == "name":
            found.certificate_chain[0] = plane.response(request.csr, "x").certificate_chain[0]
        elif wrong == "authority":
            found.ca_certificates[0] = other.root_der
        elif wrong == "assignment":
            found.assignment.CopyFrom(plane.model.manifest())
        elif wrong == "trust":
            found.trust = b'{"keys": []}'
        else:
            found.assignment.CopyFrom(plane.model.assignment("y"))
        return found

    plane.answer = answer
    with pytest.raises(EnrolmentFailed) as failed:
        await enroll(join_string(plane), folder.identities, folder.catalogs, MACHINE)
    assert failed.value.code == "answer"
    assert folder.identities.load() is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "licjoin2.e30",
        "licjoin1.",
        "licjoin1.!!!",
        "licjoin1.e30",
        "licjoin1." + "A" * 20_000,
        "licjoin1." + base64.urlsafe_b64encode(b'{"id":1}').decode(),
        "licjoin1." + base64.urlsafe_b64encode(b"\xff\xfe").decode(),
        "licjoin1."
        + base64.urlsafe_b64encode(
            b'{"id":"a","secret":"hush","public":"nowhere","control":"a:1","ca":""}'
        ).decode(),
    ],
)
def test_a_damaged_join_token_says_so_and_shows_no_secret(text):
    with pytest.raises(EnrolmentFailed) as failed:
        parse_join(text)
    assert failed.value.code == "join"
    assert "hush" not in str(failed.value)


async def test_the_certificate_is_renewed_at_half_its_life(plane, folder, registry, run_host):
    identity = folder.enrolled(plane.control, life_s=43_200, age_s=10)
    host = run_host()
    peer = await plane.stream()
    await peer.welcome()
    await peer.receive("counter_kept")
    assert not plane.calls
    await host.stop()

    def answer(name, request):
        assert name == "renew"
        return plane.response(
            request.csr,
            identity.host_id,
            counter=b"\3" * 32,
            trust=b"of somebody who has the server only",
        )

    plane.answer = answer
    # Beyond 60 % of its life: whatever the jitter, it is time.
    leaf = plane.authority.host(
        hostkey.request_for(identity.key_pem),
        identity.host_id,
        dt.timedelta(seconds=1000),
        dt.timedelta(seconds=610),
    )
    held = folder.identities.load()
    folder.identities.save(dataclasses.replace(held, certificate_chain=(leaf,)))
    run_host()
    peer = await plane.stream()
    await peer.welcome(b"\4" * 32)
    again = await plane.stream()  # with the new certificate
    found = folder.identities.load()
    assert found.certificate_chain != (leaf,)
    assert found.key_pem == identity.key_pem
    assert again.hello.counter == b"\4" * 32
    assert found.trust == identity.trust


async def test_a_certificate_that_ended_is_replaced_on_a_proof_of_the_key(plane, folder, run_host):
    identity = folder.enrolled(plane.control, plane.public, life_s=100, age_s=200)

    def answer(name, request):
        assert name == "reenroll"
        signed = b"\0".join(
            (
                b"licagent-reenroll-v1",
                request.host_id.encode(),
                str(request.signed_at_unix_ms).encode(),
                request.csr,
            )
        )
        public = x509.load_der_x509_csr(request.csr).public_key()
        public.verify(request.signature, signed, ec.ECDSA(hashes.SHA256()))
        with pytest.raises(InvalidSignature):
            public.verify(request.signature, signed + b"x", ec.ECDSA(hashes.SHA256()))
        return plane.response(request.csr, request.host_id, counter=b"\5" * 32)

    plane.answer = answer
    run_host()
    peer = await plane.stream()
    assert peer.hello.counter == b"\5" * 32
    assert folder.identities.load().host_id == identity.host_id
    assert [name for name, _ in plane.calls] == ["reenroll"]


async def test_a_server_that_does_not_know_the_certificate_gets_a_proof(plane, folder, run_host):
    import grpc

    folder.enrolled(plane.control, plane.public)
    plane.answer = lambda name, request: plane.response(request.csr, request.host_id)
    host = run_host()
    peer = await plane.stream()
    await peer.end((grpc.StatusCode.UNAUTHENTICATED, "who are you"))
    await plane.stream()
    assert [name for name, _ in plane.calls] == ["reenroll"]
    assert host.session.state.phase is ControlPhase.CONNECTING


async def test_a_young_certificate_that_nobody_takes_is_replaced(plane, folder, run_host):
    """The root that signed it was retired before the next one's certificate arrived."""
    import grpc

    identity = folder.enrolled(plane.control, plane.public, life_s=43_200, age_s=10)
    plane.answer = lambda name, request: plane.response(request.csr, request.host_id)
    run_host()
    for _ in range(3):
        peer = await plane.stream()
        assert not plane.calls
        await peer.end((grpc.StatusCode.UNAVAILABLE, "no handshake"))
    await plane.stream()
    assert [name for name, _ in plane.calls] == ["reenroll"]
    assert folder.identities.load().certificate_chain != identity.certificate_chain


async def test_a_refused_reenrolment_is_told(plane, folder, run_host):
    folder.enrolled(plane.control, plane.public, life_s=100, age_s=200)
    host = run_host()
    await host.until(lambda: host.session.state.attempts >= 1)
    await host.until(lambda: "re-enrolment failed" in host.session.state.last_error)


async def test_an_answer_sealed_by_nobody_known_is_not_taken_at_reenrolment(
    plane, folder, run_host, model
):
    folder.enrolled(plane.control, plane.public, life_s=100, age_s=200)
    before = folder.identities.load().assignment
    ours = model.key

    def answer(name, request):
        model.key = SigningKey.create("acme")
        found = plane.response(
            request.csr, request.host_id, assignment=model.assignment(request.host_id, 7)
        )
        model.key = ours
        return found

    plane.answer = answer
    run_host()
    peer = await plane.stream()
    assert peer.hello.assignment_sequence == 1
    assert folder.identities.load().assignment == before


async def test_a_clock_that_is_wrong_does_not_renew_in_a_circle(plane, folder, run_host):
    identity = folder.enrolled(plane.control, life_s=1000, age_s=700)

    def answer(name, request):
        found = plane.response(request.csr, identity.host_id)
        leaf = plane.authority.host(
            request.csr,
            identity.host_id,
            dt.timedelta(seconds=1000),
            dt.timedelta(seconds=700),  # past its half as soon as it is made
        )
        found.certificate_chain[0] = leaf
        return found

    plane.answer = answer
    run_host()
    await (await plane.stream()).welcome()
    peer = await plane.stream()  # with the new certificate
    await peer.welcome()
    plane.model.change((1, "db", b"{}"))
    await peer.push(plane.model.parts(0))
    assert (await peer.receive("ack")).revision == 1
    assert [name for name, _ in plane.calls] == ["renew"]
