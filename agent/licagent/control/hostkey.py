# SPDX-License-Identifier: Apache-2.0
"""The host's key and certificate: making, proving, checking. P-256 throughout."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from licagent.control.join import EnrolmentFailed


@dataclass(frozen=True, slots=True)
class CertificateSpan:
    """When a certificate holds, unix milliseconds."""

    not_before_unix_ms: int
    not_after_unix_ms: int


def new_key() -> bytes:
    """A new P-256 key, PKCS #8 in PEM."""
    return ec.generate_private_key(ec.SECP256R1()).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def request_for(key_pem: bytes) -> bytes:
    """A certificate request (PKCS #10, DER). Its subject says nothing: the server ignores it."""
    return (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "licagent")]))
        .sign(_private(key_pem), hashes.SHA256())
        .public_bytes(serialization.Encoding.DER)
    )


def fingerprint(key_pem: bytes) -> bytes:
    """SHA-256 of the key's SubjectPublicKeyInfo: what leases are bound to."""
    return hashlib.sha256(_spki(_private(key_pem).public_key())).digest()


def reenrolment_proof(key_pem: bytes, host_id: str, signed_at_unix_ms: int, csr: bytes) -> bytes:
    """The signature of ReenrollRequest: the host still has its key."""
    signed = b"\0".join(
        (b"licagent-reenroll-v1", host_id.encode(), str(signed_at_unix_ms).encode(), csr)
    )
    return _private(key_pem).sign(signed, ec.ECDSA(hashes.SHA256()))


def span_of(certificate_der: bytes) -> CertificateSpan:
    """When a certificate begins and ends. Raises ValueError."""
    found = x509.load_der_x509_certificate(certificate_der)
    return CertificateSpan(
        int(found.not_valid_before_utc.timestamp() * 1000),
        int(found.not_valid_after_utc.timestamp() * 1000),
    )


def pem_of(*certificates_der: bytes) -> bytes:
    """Certificates as TLS libraries take them."""
    return b"".join(
        x509.load_der_x509_certificate(each).public_bytes(serialization.Encoding.PEM)
        for each in certificates_der
    )


def check_certificate(
    chain: tuple[bytes, ...], roots: tuple[bytes, ...], key_pem: bytes, host_id: str
) -> None:
    """Refuse a certificate that this host could not use. Raises EnrolmentFailed (code answer).

    A chain that does not lead to one of `roots` would be found out by the server at the next
    connection only, with the old certificate gone.
    """
    try:
        leaf, *above = [x509.load_der_x509_certificate(each) for each in chain]
        anchors = [x509.load_der_x509_certificate(each) for each in roots]
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    except (ValueError, x509.ExtensionNotFound) as error:
        raise _wrong("it cannot be read") from error
    if _spki(leaf.public_key()) != _spki(_private(key_pem).public_key()):
        raise _wrong("it is for another key")
    if f"licagent://host/{host_id}" not in uris:
        raise _wrong(f"it does not name the host {host_id}")
    at = leaf
    for issuer in above:
        _check_issued(at, issuer)
        at = issuer
    if at in anchors:
        return
    named = [anchor for anchor in anchors if anchor.subject == at.issuer]
    for number, anchor in enumerate(named, start=1):
        try:
            _check_issued(at, anchor)
        except EnrolmentFailed:
            if number == len(named):
                raise
        else:
            return
    raise _wrong("it does not lead to the control plane's root")


def _check_issued(certificate: x509.Certificate, issuer: x509.Certificate) -> None:
    try:
        certificate.verify_directly_issued_by(issuer)
    except (InvalidSignature, ValueError, TypeError) as error:
        raise _wrong("its chain is broken") from error


def _wrong(why: str) -> EnrolmentFailed:
    return EnrolmentFailed(
        f"the certificate that the control plane sent is refused: {why}. Nothing was changed; "
        "look at the control plane's log",
        code="answer",
    )


def _private(key_pem: bytes) -> ec.EllipticCurvePrivateKey:
    key = serialization.load_pem_private_key(key_pem, None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise TypeError("the host key is no elliptic curve key")
    return key


def _spki(key: object) -> bytes:
    if not isinstance(key, ec.EllipticCurvePublicKey):
        return b""
    return key.public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
