# SPDX-License-Identifier: Apache-2.0
"""A key, a trust store, and a forger who signs whatever it is told."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from lictoken import base64url
from lictoken.keys import SigningKey
from lictoken.payload import license_to_claims
from lictoken.strictjson import dump
from lictoken.trust import TrustedKey, TrustStore

# --import-mode=importlib leaves the test folders out of sys.path.
sys.path.insert(0, str(Path(__file__).parent))

from lictoken_samples import SAMPLE, Forge


@pytest.fixture(scope="session")
def key() -> SigningKey:
    return SigningKey("acme", bytes(range(32)))


@pytest.fixture(scope="session")
def trusted(key: SigningKey) -> TrustedKey:
    return TrustedKey.of(key.public_key, "acme")


@pytest.fixture(scope="session")
def trust(trusted: TrustedKey) -> TrustStore:
    return TrustStore([trusted])


@pytest.fixture(scope="session")
def forge(key: SigningKey) -> Forge:
    """Makes a token with a *valid* signature over any header and payload bytes.

    It shares no code with `lictoken.envelope`, so that what is tested is the verifier.
    """

    def make(
        payload: bytes | dict[str, Any] | None = None,
        header: bytes | dict[str, Any] | None = None,
        **more: object,
    ) -> bytes:
        if header is None:
            header = {"alg": "Ed25519", "typ": "licagent-license+jwt", "kid": key.kid, **more}
        if payload is None:
            payload = license_to_claims(SAMPLE)
        parts = [part if isinstance(part, bytes) else dump(part) for part in (header, payload)]
        signed = ".".join(base64url.encode(part) for part in parts)
        signature = Ed25519PrivateKey.from_private_bytes(key.secret).sign(signed.encode())
        return f"{signed}.{base64url.encode(signature)}".encode()

    return make
