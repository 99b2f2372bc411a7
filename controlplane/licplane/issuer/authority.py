# SPDX-License-Identifier: Apache-2.0
"""The control plane's own certification authority: P-256 certificates with a SAN that says who.

One root, ten years; certificates of hosts, administrators and servers are signed by it directly
and live for hours or days. Nothing of a certificate request but its key is taken over.
"""

from __future__ import annotations

import hashlib
import ipaddress
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_der_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from licplane.errors import ExitCode, PlaneError
from licplane.issuer.peerkeys import key_fingerprint
from licplane.issuer.sealedkey import Cost, damaged, open_secret, read_sealed, seal_secret
from licplane.store.record_model import KeyKind, SealedKey
from lictoken import base64url
from lictoken.errors import TokenError

ROOT_LIFE: Final = timedelta(days=3653)
BACKDATE: Final = timedelta(seconds=10)
"""Certificates start that much earlier, for clocks that are a little behind."""
_RANDOM_BITS: Final = 120
HOST_URI: Final = "licagent://host/"
ADMIN_URI: Final = "licagent://admin/"


@dataclass(frozen=True, slots=True)
class Issued:
    """A certificate and what the store keeps of it. Times are unix milliseconds."""

    der: bytes
    fingerprint: bytes  # SHA-256 of the DER
    key_fingerprint: bytes  # SHA-256 of the SubjectPublicKeyInfo
    serial: str  # hexadecimal
    subject: str  # the SAN URI, or the names of a server
    not_before_unix_ms: int
    not_after_unix_ms: int


@dataclass(frozen=True, slots=True)
class Authority:
    """The root, opened."""

    certificate: x509.Certificate
    private_key: ec.EllipticCurvePrivateKey = field(repr=False)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the root certificate, hexadecimal."""
        return hashlib.sha256(self.der).hexdigest()

    @property
    def der(self) -> bytes:
        """The root certificate."""
        return self.certificate.public_bytes(Encoding.DER)

    @property
    def pem(self) -> bytes:
        """The root certificate as PEM."""
        return self.certificate.public_bytes(Encoding.PEM)

    def issue_host(
        self, host_id: str, key: ec.EllipticCurvePublicKey, ttl_s: int, now_ms: int
    ) -> Issued:
        """A client certificate of a host."""
        return self._client(f"{HOST_URI}{host_id}", host_id, key, ttl_s, now_ms)

    def issue_admin(
        self, name: str, key: ec.EllipticCurvePublicKey, ttl_s: int, now_ms: int
    ) -> Issued:
        """A client certificate of an administrator."""
        return self._client(f"{ADMIN_URI}{name}", name, key, ttl_s, now_ms)

    def issue_server(
        self, names: Sequence[str], key: ec.EllipticCurvePublicKey, ttl_s: int, now_ms: int
    ) -> Issued:
        """A server certificate for these DNS names and addresses."""
        san = [_server_name(name) for name in names]
        if not san:
            raise PlaneError(
                ExitCode.USAGE, "A server certificate needs a name", "Give an address to listen on"
            )
        return self._issue(
            ",".join(names),
            key,
            common_name="licplane server",
            san=san,
            usage=ExtendedKeyUsageOID.SERVER_AUTH,
            ttl_s=ttl_s,
            now_ms=now_ms,
        )

    def _serial(self) -> int:
        """119 random bits, and before them which authority it is: see `is_issuer_of`."""
        return self._mark << _RANDOM_BITS | secrets.randbits(_RANDOM_BITS - 1)

    @property
    def _mark(self) -> int:
        return mark_of(self.fingerprint)

    def _client(
        self, uri: str, name: str, key: ec.EllipticCurvePublicKey, ttl_s: int, now_ms: int
    ) -> Issued:
        san = [x509.UniformResourceIdentifier(uri)]
        return self._issue(
            uri,
            key,
            common_name=name[:64],
            san=san,
            usage=ExtendedKeyUsageOID.CLIENT_AUTH,
            ttl_s=ttl_s,
            now_ms=now_ms,
        )

    def _issue(
        self,
        subject: str,
        key: ec.EllipticCurvePublicKey,
        *,
        common_name: str,
        san: Sequence[x509.GeneralName],
        usage: x509.ObjectIdentifier,
        ttl_s: int,
        now_ms: int,
    ) -> Issued:
        now = _moment(now_ms)
        end = min(now + timedelta(seconds=ttl_s), self.certificate.not_valid_after_utc)
        serial = self._serial()
        certificate = (
            x509.CertificateBuilder()
            .subject_name(_name(common_name))
            .issuer_name(self.certificate.subject)
            .public_key(key)
            .serial_number(serial)
            .not_valid_before(now - BACKDATE)
            .not_valid_after(end)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(signs=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
            .add_extension(x509.SubjectAlternativeName(san), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self.private_key.public_key()),
                critical=False,
            )
            .sign(self.private_key, hashes.SHA256())
        )
        der = certificate.public_bytes(Encoding.DER)
        return Issued(
            der,
            hashlib.sha256(der).digest(),
            key_fingerprint(key),
            f"{serial:x}",
            subject,
            _unix_ms(certificate.not_valid_before_utc),
            _unix_ms(certificate.not_valid_after_utc),
        )


def create_authority(
    passphrase: str | None, now_ms: int, cost: Cost | None = None
) -> tuple[Authority, SealedKey]:
    """A new root, and the row that keeps it."""
    private_key = ec.generate_private_key(ec.SECP256R1())
    now = _moment(now_ms)
    # A name of its own: beside another root, peers find the one that signed by it.
    subject = _name(f"licplane root {key_fingerprint(private_key.public_key()).hex()[:16]}")
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(private_key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATE)
        .not_valid_after(now + ROOT_LIFE)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs=True), critical=True)
        .add_extension(
            x509.SubjectKeyIdentifier.from_public_key(private_key.public_key()), critical=False
        )
        .sign(private_key, hashes.SHA256())
    )
    authority = Authority(certificate, private_key)
    fingerprint = authority.fingerprint
    secret = private_key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
    public: dict[str, object] = {
        "fingerprint": fingerprint,
        "certificate": base64url.encode(authority.der),
    }
    document = seal_secret(public, secret, passphrase, cost)
    return authority, SealedKey(fingerprint, KeyKind.AUTHORITY, "", document, now_ms)


def open_authority(row: SealedKey, passphrase: str | None) -> Authority:
    """The root in `row`. Raises PlaneError as `open_secret` does."""
    what = "The key of the certification authority"
    secret = open_secret(row.document, passphrase, what)
    try:
        certificate = root_certificate(row)
        private_key = load_der_private_key(secret, None)
    except (TypeError, ValueError, TokenError) as error:
        raise damaged(what, str(error)) from error
    if (
        not isinstance(private_key, ec.EllipticCurvePrivateKey)
        or private_key.public_key() != certificate.public_key()
    ):
        raise damaged(what, "it does not match its certificate")
    return Authority(certificate, private_key)


def root_certificate(row: SealedKey) -> x509.Certificate:
    """The certificate of a root that need not be opened."""
    members = read_sealed(row.document, "The key of the certification authority")
    return x509.load_der_x509_certificate(
        base64url.decode(str(members["certificate"]), "certificate")
    )


def mark_of(fingerprint: str) -> int:
    """What begins the serial numbers of an authority's certificates: 31 bits, not 0."""
    return int(fingerprint[:8], 16) >> 1 | 1


def is_issuer_of(fingerprint: str, serial: str) -> bool:
    """Whether an authority made the certificate with this serial number (hexadecimal).

    Those that were made before numbers told of it are nobody's.
    """
    return int(serial, 16) >> _RANDOM_BITS == mark_of(fingerprint)


def pem_of(der: bytes) -> bytes:
    """A DER certificate as PEM."""
    return x509.load_der_x509_certificate(der).public_bytes(Encoding.PEM)


def _server_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name.strip("[]")))
    except ValueError:
        pass
    try:
        return x509.DNSName(name)
    except ValueError as error:
        raise PlaneError(
            ExitCode.USAGE, f"{name!r} is no name of a server", "Give a DNS name or an address"
        ) from error


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _usage(*, signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs,
        crl_sign=signs,
        encipher_only=False,
        decipher_only=False,
    )


def _moment(unix_ms: int) -> datetime:
    return datetime.fromtimestamp(unix_ms // 1000, UTC)


def _unix_ms(moment: datetime) -> int:
    return int(moment.timestamp()) * 1000
