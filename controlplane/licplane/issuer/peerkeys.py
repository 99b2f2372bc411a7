# SPDX-License-Identifier: Apache-2.0
"""Keys that certificates are for: P-256, their requests and their signatures."""

from __future__ import annotations

import hashlib
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from licplane.errors import ExitCode, PlaneError

CSR_BYTES_MAX: Final = 8 * 1024


def new_private_key() -> ec.EllipticCurvePrivateKey:
    """A P-256 key."""
    return ec.generate_private_key(ec.SECP256R1())


def private_key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """PKCS #8, in the clear."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def read_csr(data: bytes) -> ec.EllipticCurvePublicKey:
    """The key of a certificate request that its owner signed; P-256 only.

    Raises PlaneError USAGE, whatever `data` is.
    """
    hint = "Let `licagent enroll` make the request"
    if len(data) > CSR_BYTES_MAX:
        raise PlaneError(ExitCode.USAGE, f"The certificate request has {len(data)} bytes", hint)
    try:
        request = x509.load_der_x509_csr(data)
        key = request.public_key()
        valid = request.is_signature_valid
    except (ValueError, TypeError, InvalidSignature, x509.InvalidVersion) as error:
        raise PlaneError(ExitCode.USAGE, "The certificate request is none", hint) from error
    except Exception as error:  # UnsupportedAlgorithm, and what OpenSSL makes of odd curves
        raise PlaneError(ExitCode.USAGE, "The certificate request is none", hint) from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise PlaneError(ExitCode.USAGE, "The certificate request is not for a P-256 key", hint)
    if not valid:
        raise PlaneError(ExitCode.USAGE, "The certificate request is not signed by its key", hint)
    return key


def key_fingerprint(key: ec.EllipticCurvePublicKey) -> bytes:
    """SHA-256 of the SubjectPublicKeyInfo."""
    return hashlib.sha256(
        key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    ).digest()


def signed_by(key: ec.EllipticCurvePublicKey, signature: bytes, data: bytes) -> bool:
    """Whether `signature` (ECDSA with SHA-256, DER) over `data` is by `key`."""
    try:
        key.verify(signature, data, ec.ECDSA(hashes.SHA256()))
    except InvalidSignature:
        return False
    return True
