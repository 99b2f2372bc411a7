# SPDX-License-Identifier: Apache-2.0
"""Joining, renewing, coming back, and who stays out."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from tests.unit.licplane.service.world import (
    ROOT,
    FakeHost,
    World,
    csr,
    new_key,
    parse_join,
)

from licapi.control.v1 import common_pb2
from licplane.errors import Conflict, ExitCode, PlaneError, Unauthenticated
from licplane.service.answers import Enrolled
from licplane.service.requests import Change, EnrollRequest, Machine, ReenrollRequest
from licplane.service.values import HostStatus, Role
from lictoken.sealed import SealPurpose, unseal
from lictoken.trust import TrustStore

pytest_plugins = ["tests.support.postgres"]


def status(world: World, host: FakeHost, to: HostStatus) -> None:
    world.plane.update_host(ROOT, Change(), host.id, labels={}, status=to)


def test_a_host_joins(both: World) -> None:
    join = both.token(org="acme", region="eu-1").join
    host = FakeHost(both.plane)
    answer = host.enroll(join)
    assert answer.changed
    assert len(answer.counter) == 32
    assert answer.control_address == "plane.test:8443"
    leaf = x509.load_der_x509_certificate(answer.certificate_chain[0])
    root = x509.load_der_x509_certificate(answer.ca_certificates[0])
    leaf.verify_directly_issued_by(root)
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.UniformResourceIdentifier) == [
        f"licagent://host/{host.id}"
    ]
    start, end = leaf.not_valid_before_utc, leaf.not_valid_after_utc
    assert (end - start).total_seconds() == 12 * 3600 + 10
    payload = unseal(SealPurpose.ASSIGNMENT, answer.assignment, TrustStore.from_bytes(answer.trust))
    told = common_pb2.Assignment.FromString(payload)
    assert (told.host_id, dict(told.labels), told.sequence, told.status) == (
        host.id,
        {"org": "acme", "region": "eu-1"},
        1,
        common_pb2.HOST_STATUS_ACTIVE,
    )
    found = both.plane.authenticate(host.fingerprint)
    assert (found.role, found.host_id, found.status) == (Role.HOST, host.id, HostStatus.ACTIVE)
    assert both.actions()[-1] == "host.enroll"
    # What the join token pins is the root that signs.
    ca = parse_join(join)["ca"]
    assert ca == parse_join(both.token().join)["ca"]


def test_the_second_time_nothing_changes(both: World) -> None:
    join = both.token(uses=1).join
    host = FakeHost(both.plane)
    first = host.enroll(join)
    again = host.enroll(join)  # although the token is used up
    assert (again.host_id, again.changed) == (first.host_id, False)
    assert both.actions().count("host.enroll") == 1
    host.connect()  # and whichever answer was lost, the counter is good
    host.counter = first.counter
    with pytest.raises(Conflict):
        both.plane.renew(both.plane.authenticate(host.fingerprint), csr(host.key), b"old")


def test_a_token_lets_in_as_many_as_it_says(both: World) -> None:
    join = both.token(uses=2).join

    def enter(number: int) -> bool:
        try:
            FakeHost(both.plane, Machine(f"h{number}", f"{number:032x}")).enroll(join)
        except Unauthenticated:
            return False
        return True

    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(enter, range(6))) == 2
    assert both.plane.list_join_tokens(ROOT)[0].uses == 2


def test_tokens_that_do_not_count_are_told_apart_by_nobody(world: World) -> None:
    expired = parse_join(world.token(ttl_s=60).join)
    used = parse_join(world.token().join)
    deleted = parse_join(world.token().join)
    wrong = {**parse_join(world.token().join), "secret": "x"}
    unknown = {"id": "0" * 16, "secret": "x"}
    hostile = {"id": "' OR 1=1 --", "secret": "\0" * 50}
    FakeHost(world.plane, Machine(machine_id="b" * 32)).enroll("licjoin1." + encode(used))
    world.plane.delete_join_token(ROOT, Change(), deleted["id"])
    world.clock.pass_s(61)
    said = set()
    for one in (expired, used, deleted, wrong, unknown, hostile):
        request = EnrollRequest(one["id"], one["secret"], csr(new_key()), Machine())
        with pytest.raises(Unauthenticated) as error:
            world.plane.enroll(request)
        said.add(str(error.value))
    assert len(said) == 1


def encode(join: dict[str, str]) -> str:
    from lictoken import base64url

    return base64url.encode(json.dumps(join).encode())


def test_requests_that_are_none(world: World) -> None:
    found = parse_join(world.token().join)
    name = x509.Name([])
    builder = x509.CertificateSigningRequestBuilder().subject_name(name)
    other_curve = builder.sign(ec.generate_private_key(ec.SECP384R1()), hashes.SHA256())
    rsa_key = builder.sign(rsa.generate_private_key(65537, 2048), hashes.SHA256())
    good = csr(new_key())
    forged = good[:-1] + bytes([good[-1] ^ 1])
    for data in (
        b"",
        b"\x30",
        b"0" * 10_000_000,
        other_curve.public_bytes(Encoding.DER),
        rsa_key.public_bytes(Encoding.DER),
        forged,
    ):
        with pytest.raises(PlaneError) as error:
            world.plane.enroll(EnrollRequest(found["id"], found["secret"], data, Machine()))
        assert error.value.code is ExitCode.USAGE
    with pytest.raises(PlaneError, match="machine id"):
        world.plane.enroll(
            EnrollRequest(found["id"], found["secret"], good, Machine(machine_id="../etc"))
        )
    odd = Machine("db-1", "c" * 32, kernel_release="a\0b\x1b[31m" + "x" * 500)
    answer = world.plane.enroll(EnrollRequest(found["id"], found["secret"], good, odd))
    with world.store.reading() as reader:
        host = reader.host(answer.host_id)
    assert host is not None
    assert host.kernel_release.startswith("a?b?[31mxxx")


def test_a_host_name_is_one(world: World) -> None:
    for number, name in enumerate(
        ("", "(none)", "db-1", "Web_1.example.net", "_a", "9", "x" * 253)
    ):
        join = parse_join(world.token().join)
        machine = Machine(name, f"{number:032x}")
        request = EnrollRequest(join["id"], join["secret"], csr(new_key()), machine)
        answer = world.plane.enroll(request)
        kept = world.plane.get_host(ROOT, answer.host_id).hostname
        assert kept == ("" if name == "(none)" else name)
    join = parse_join(world.token().join)
    for name in (
        "-oProxyCommand=x", "-", ".a", "a b", "a\n", "a/b", "a\0", "\u00e4", "{{ x }}", "x" * 254,
    ):  # fmt: skip
        with pytest.raises(PlaneError, match="The host name is") as error:
            world.plane.enroll(
                EnrollRequest(join["id"], join["secret"], csr(new_key()), Machine(name, "c" * 32))
            )
        assert error.value.code is ExitCode.USAGE


def test_renewal(both: World) -> None:
    host = both.host()
    old = host.fingerprint
    both.clock.pass_s(6 * 3600)
    identity = both.plane.authenticate(host.fingerprint)
    answer = host.take(both.plane.renew(identity, csr(host.key), host.counter))
    assert (answer.host_id, answer.changed) == (identity.host_id, False)
    assert answer.counter == host.counter  # renewing does not turn it
    assert both.plane.authenticate(old)
    both.clock.pass_s(6 * 3600 + 1)
    with pytest.raises(Unauthenticated):
        both.plane.authenticate(old)
    assert both.plane.authenticate(host.fingerprint)
    with pytest.raises(PlaneError, match="another key"):
        both.plane.renew(identity, csr(new_key()), host.counter)


def reenroll(
    world: World,
    host: FakeHost,
    *,
    at_ms: int | None = None,
    key: ec.EllipticCurvePrivateKey | None = None,
) -> Enrolled:
    at_ms = world.clock.now_ms if at_ms is None else at_ms
    request = csr(key or host.key)
    parts = (b"licagent-reenroll-v1", host.id.encode(), str(at_ms).encode(), request)
    signature = (key or host.key).sign(b"\0".join(parts), ec.ECDSA(hashes.SHA256()))
    return world.plane.reenroll(ReenrollRequest(host.id, request, host.counter, at_ms, signature))


def test_coming_back_after_the_certificates_end(both: World) -> None:
    host = both.host()
    both.clock.pass_s(30 * 86_400)
    with pytest.raises(Unauthenticated):
        both.plane.authenticate(host.fingerprint)
    answer = host.take(reenroll(both, host))
    assert answer.host_id == host.id
    assert both.plane.authenticate(host.fingerprint).host_id == host.id
    host.connect()


def test_proofs_of_others_and_of_other_times(world: World) -> None:
    host = world.host()
    with pytest.raises(Unauthenticated, match="5 minutes"):
        reenroll(world, host, at_ms=world.clock.now_ms - 6 * 60_000)
    with pytest.raises(Unauthenticated):
        reenroll(world, host, key=new_key())
    with pytest.raises(Unauthenticated):
        reenroll(world, FakeHost(world.plane, id="../../etc", counter=b""))
    at_ms = world.clock.now_ms
    request = csr(host.key)
    parts = (b"licagent-reenroll-v1", host.id.encode(), str(at_ms).encode(), request)
    signature = host.key.sign(b"\0".join(parts), ec.ECDSA(hashes.SHA256()))
    message = ReenrollRequest(host.id, request, host.counter, at_ms, signature)
    world.plane.reenroll(message)
    with pytest.raises(Unauthenticated):  # each signature once
        world.plane.reenroll(message)
    with pytest.raises(Unauthenticated):
        world.plane.reenroll(replace(message, signature=b"\x30\x00"))


@pytest.mark.parametrize("out", [HostStatus.EVICTED, HostStatus.BANNED, HostStatus.CLONED])
def test_who_is_out(world: World, out: HostStatus) -> None:
    host = world.host()
    status(world, host, out)
    assert world.plane.authenticate(host.fingerprint).status is out
    with pytest.raises(PlaneError, match=out.word):
        reenroll(world, host)
    identity = world.plane.authenticate(host.fingerprint)
    with pytest.raises(PlaneError, match=out.word):
        world.plane.renew(identity, csr(host.key), host.counter)
    with pytest.raises(PlaneError):
        world.plane.lease(host.id, b"k" * 32, "boot", b"n" * 16)
    back = world.token()
    if out is HostStatus.BANNED:
        with pytest.raises(PlaneError, match="banned"):
            host.enroll(back.join)
        host.key = new_key()
        with pytest.raises(PlaneError, match="banned"):  # its machine is known
            host.enroll(back.join)
    else:
        was = host.id
        answer = host.enroll(back.join)
        assert (answer.host_id, answer.changed) == (was, True)
        assert world.plane.get_host(ROOT, was).status is HostStatus.ACTIVE
        host.connect()


def test_an_evicted_host_needs_a_new_token(world: World) -> None:
    join = world.token(uses=5).join
    host = FakeHost(world.plane)
    host.enroll(join)
    old = host.fingerprint
    status(world, host, HostStatus.EVICTED)
    with pytest.raises(PlaneError, match="new join token"):
        host.enroll(join)
    host.enroll(world.token().join)
    with pytest.raises(Unauthenticated):  # what was revoked stays so
        world.plane.authenticate(old)


def test_a_key_on_another_machine(world: World) -> None:
    host = world.host()
    copied = FakeHost(world.plane, Machine("copy", "f" * 32), host.key)
    with pytest.raises(PlaneError, match="another machine"):
        copied.enroll(world.token(uses=3).join)


def test_a_cloned_host_is_mended(both: World) -> None:
    """As `licplane host split` does it: evicted, then a token for two."""
    host = both.host(org="acme", region="eu-1")
    clone = FakeHost(both.plane, host.machine, host.key, host.id, host.counter, host.fingerprint)
    host.connect()
    both.plane.open_stream(clone.id, clone.counter)
    status(both, host, HostStatus.EVICTED)
    join = both.token(uses=2, org="acme", region="eu-1").join
    was = host.id
    assert host.enroll(join).host_id == was  # licagent enroll --again
    host.connect()
    with pytest.raises(Unauthenticated):  # the clone goes on trying, which breaks nothing
        reenroll(both, clone)
    assert both.plane.authenticate(host.fingerprint).status is HostStatus.ACTIVE
    clone.key = new_key()
    assert clone.enroll(join).host_id != was  # licagent enroll --new
    clone.connect()
    host.connect()


def test_a_clone_that_comes_back_after_long(world: World) -> None:
    host = world.host()
    clone = FakeHost(world.plane, host.machine, host.key, host.id, host.counter)
    host.connect()
    host.connect()
    world.clock.pass_s(86_400)
    with pytest.raises(PlaneError, match="cloned"):
        reenroll(world, clone)
    assert world.plane.host_state(host.id).status is HostStatus.CLONED
