# SPDX-License-Identifier: Apache-2.0
"""The certification authority: what it signs, for how long, and that it opens by its passphrase."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from licplane.errors import ExitCode, PlaneError
from licplane.issuer.authority import Authority, create_authority, open_authority, root_certificate
from licplane.issuer.peerkeys import key_fingerprint, new_private_key
from licplane.issuer.sealedkey import Cost
from licplane.store.record_model import SealedKey
from lictoken import base64url

PASSPHRASE = "correct horse battery"
CHEAP = Cost(n=2**10, p=1)
NOW_MS = 1_800_000_000_000
DAY_MS = 86_400_000


@pytest.fixture(scope="module")
def made() -> tuple[Authority, SealedKey]:
    return create_authority(PASSPHRASE, NOW_MS, CHEAP)


def test_the_root_lasts_ten_years_and_signs_only_leaves(made: tuple[Authority, SealedKey]) -> None:
    root = made[0].certificate
    assert (root.not_valid_after_utc - root.not_valid_before_utc).days == 3653
    assert isinstance(root.public_key(), ec.EllipticCurvePublicKey)
    limits = root.extensions.get_extension_for_class(x509.BasicConstraints).value
    assert (limits.ca, limits.path_length) == (True, 0)
    root.verify_directly_issued_by(root)


def test_it_opens_again(made: tuple[Authority, SealedKey]) -> None:
    authority, row = made
    again = open_authority(row, PASSPHRASE)
    assert again.der == authority.der
    assert root_certificate(row) == authority.certificate
    issued = again.issue_host("h", new_private_key().public_key(), 60, NOW_MS)
    x509.load_der_x509_certificate(issued.der).verify_directly_issued_by(authority.certificate)


@pytest.mark.parametrize("words", [None, "not the passphrase"])
def test_it_needs_its_passphrase(made: tuple[Authority, SealedKey], words: str | None) -> None:
    with pytest.raises(PlaneError) as error:
        open_authority(made[1], words)
    assert error.value.code is ExitCode.PERMISSION


def test_another_certificate_cannot_be_put_into_its_place(
    made: tuple[Authority, SealedKey],
) -> None:
    other, _ = create_authority(PASSPHRASE, NOW_MS, CHEAP)
    document = {**json.loads(made[1].document), "certificate": base64url.encode(other.der)}
    with pytest.raises(PlaneError) as error:
        open_authority(replace(made[1], document=json.dumps(document)), PASSPHRASE)
    assert error.value.code is ExitCode.PERMISSION


def test_what_certificates_say(made: tuple[Authority, SealedKey]) -> None:
    authority = made[0]
    key = new_private_key().public_key()
    issued = authority.issue_admin("ann", key, 3600, NOW_MS)
    leaf = x509.load_der_x509_certificate(issued.der)
    assert issued.key_fingerprint == key_fingerprint(key)
    assert issued.serial == f"{leaf.serial_number:x}"
    assert issued.subject == "licagent://admin/ann"
    assert leaf.not_valid_before_utc == datetime.fromtimestamp(NOW_MS / 1000 - 10, UTC)
    assert issued.not_after_unix_ms == NOW_MS + 3_600_000
    usage = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [x509.oid.ExtendedKeyUsageOID.CLIENT_AUTH]
    limits = leaf.extensions.get_extension_for_class(x509.BasicConstraints)
    assert (limits.critical, limits.value.ca) == (True, False)


def test_nothing_outlives_the_root(made: tuple[Authority, SealedKey]) -> None:
    late_ms = NOW_MS + 3652 * DAY_MS
    issued = made[0].issue_host("h", new_private_key().public_key(), 30 * 86_400, late_ms)
    assert issued.not_after_unix_ms == NOW_MS + 3653 * DAY_MS


def test_names_of_servers(made: tuple[Authority, SealedKey]) -> None:
    key = new_private_key().public_key()
    issued = made[0].issue_server(["plane.test", "[::1]", "10.0.0.1"], key, 60, NOW_MS)
    leaf = x509.load_der_x509_certificate(issued.der)
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [str(one) for one in names.get_values_for_type(x509.IPAddress)] == ["::1", "10.0.0.1"]
    for wrong in ([], ["pläne.test"]):
        with pytest.raises(PlaneError) as error:
            made[0].issue_server(wrong, key, 60, NOW_MS)
        assert error.value.code is ExitCode.USAGE
