# SPDX-License-Identifier: Apache-2.0
"""Who this host is in its control plane's eyes, as it is kept on the disk."""

from __future__ import annotations

from dataclasses import dataclass, field

from licagent.domain.catalog import SignedBytes


@dataclass(frozen=True, slots=True)
class Identity:
    """Who this host is; one document, replaced whole."""

    key_pem: bytes = field(repr=False)  # PKCS #8, P-256
    host_id: str
    certificate_chain: tuple[bytes, ...]  # DER, leaf first
    ca_certificates: tuple[bytes, ...]  # DER
    trust: bytes  # JWKS of the enrolment; the catalog's takes its place
    assignment: SignedBytes
    counter: bytes = field(repr=False)  # 32 bytes, the newest one
    control_address: str  # host:port
    public_address: str
    not_after_unix_ms: int
