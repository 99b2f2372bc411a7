# SPDX-License-Identifier: Apache-2.0
"""Which authority issues and which are trusted: a signed document that only moves forward."""

from __future__ import annotations

import json

import pytest
from tests.unit.licplane.service.world import CHEAP, START_MS

from licplane.errors import PlaneError
from licplane.issuer.authority import create_authority, is_issuer_of
from licplane.issuer.peerkeys import new_private_key
from licplane.issuer.roots import Roots, RootStatus, opened_roots, sealed_roots, unverified_roots
from lictoken.keys import SigningKey
from lictoken.sealed import Sealer
from lictoken.trust import TrustedKey, TrustStore

KEY = SigningKey.create("acme")
TRUST = TrustStore([TrustedKey.of(KEY.public_key, KEY.issuer)])


def test_one_after_the_other() -> None:
    roots = Roots("a" * 64).with_coming("b" * 64, 1)
    assert roots.trusted == ("a" * 64, "b" * 64)
    after = roots.promoted(2)
    assert (after.active, after.coming, after.leaving) == ("b" * 64, "", ("a" * 64,))
    assert after.trusted == ("b" * 64, "a" * 64)
    last = after.without("a" * 64, 3)
    assert last.trusted == ("b" * 64,)
    assert last.status_of("a" * 64) is RootStatus.RETIRED
    assert last.every == ("b" * 64, "a" * 64)
    assert roots.without("b" * 64, 4).trusted == ("a" * 64,)


def test_only_a_key_of_the_control_plane_says_so() -> None:
    roots = Roots("a" * 64, "", ("c" * 64,), (), 7, 7)
    data = sealed_roots(roots, Sealer(KEY))
    assert opened_roots(data, TRUST) == roots
    assert unverified_roots(data) == roots
    other = SigningKey.create("acme")
    document = json.loads(data)
    forged = [
        sealed_roots(roots, Sealer(other)),
        data.replace(b"cccc", b"dddd", 1),
        json.dumps({**document, "kid": other.kid}).encode(),
        b"{}",
        b"[]",
        b"\xff",
    ]
    for each in forged:
        with pytest.raises(PlaneError, match="altered"):
            opened_roots(each, TRUST)


def test_a_certificate_tells_its_authority() -> None:
    first, _ = create_authority(None, START_MS, CHEAP)
    second, _ = create_authority(None, START_MS, CHEAP)
    assert first.certificate.subject != second.certificate.subject
    issued = first.issue_host("00000000-0000-4000-8000-000000000000",
                              new_private_key().public_key(), 3600, START_MS)  # fmt: skip
    assert is_issuer_of(first.fingerprint, issued.serial)
    assert not is_issuer_of(second.fingerprint, issued.serial)
    assert int(issued.serial, 16).bit_length() <= 159  # RFC 5280: 20 octets, positive
