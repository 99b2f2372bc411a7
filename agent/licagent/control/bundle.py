# SPDX-License-Identifier: Apache-2.0
"""Enrolment by files, for a host with no network: a request goes out, a bundle comes back.

The request is JSON (bytes in base64url): schema_version 1, kind "licagent-enrolment-request",
csr (DER), machine {hostname, machine_id, boot_id, agent_version, kernel_release} and nonce, which
an offline lease repeats.

The bundle is JSON of `licplane host admit`: schema_version 1, host_id, certificate_chain,
ca_certificates, trust, assignment, manifest and lease (objects of payload, kid, signature),
objects [{kind, name, revision, payload}], control_address. Its catalog and its leases stand in
the stores afterwards, as if they had come over a stream. A lease in it is for any boot, and lasts
until a date.
"""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any, Final

from licagent.control.adoption import (
    Answer,
    EnrolmentMode,
    EnrolmentResult,
    adopt,
    key_for,
    lease_nonce,
    verified_assignment,
)
from licagent.control.hostkey import fingerprint, request_for
from licagent.control.join import EnrolmentFailed
from licagent.domain.catalog import (
    CatalogView,
    Delta,
    Kind,
    NackReason,
    ObjectChange,
    Refused,
    SignedBytes,
)
from licagent.domain.hostidentity import Identity
from licagent.domain.lease import LeaseHolder, StoredLeases
from licagent.domain.replica import Replica
from lictoken import base64url
from lictoken.errors import TokenError

if TYPE_CHECKING:
    from licagent.control.interface import (
        Assignment,
        CatalogStorage,
        ControlSettings,
        IdentityStorage,
        Machine,
    )

SCHEMA_VERSION: Final = 1
REQUEST_KIND: Final = "licagent-enrolment-request"
BUNDLE_MAX_BYTES: Final = 256 * 1024 * 1024


def enrolment_request(
    identities: IdentityStorage, machine: Machine, *, mode: EnrolmentMode = EnrolmentMode.KEEP
) -> bytes:
    """The text of a request file. Its key is kept durably. Raises EnrolmentFailed. Blocking."""
    key = key_for(identities, identities.load(), (), mode)
    body = {
        "schema_version": SCHEMA_VERSION,
        "kind": REQUEST_KIND,
        "csr": base64url.encode(request_for(key)),
        "machine": asdict(machine),
        "nonce": base64url.encode(lease_nonce(key)),
    }
    return json.dumps(body, indent=2).encode() + b"\n"


def enroll_from_bundle(
    data: bytes,
    identities: IdentityStorage,
    catalogs: CatalogStorage,
    settings: ControlSettings,
    *,
    mode: EnrolmentMode = EnrolmentMode.KEEP,
) -> EnrolmentResult:
    """Become a host by a bundle. Raises EnrolmentFailed, with nothing changed. Blocking.

    Call `ControlSession.wake` afterwards: it reads the stores again.
    """
    try:
        body = _parsed(data)
        answer = _answer(body)
        manifest = _signed(body["manifest"]) if body.get("manifest") else None
        lease = _signed(body["lease"]) if body.get("lease") else None
        changes = tuple(_change(each) for each in body.get("objects", ()))
    except (KeyError, TypeError, ValueError, TokenError) as error:
        raise EnrolmentFailed(
            f"this is no enrolment bundle ({error!r}): make it with `licplane host admit`, and "
            "copy it whole",
            code="bundle",
        ) from error
    key = key_for(identities, identities.load(), answer.ca_certificates, mode)
    assignment = verified_assignment(answer, key)
    try:
        view = _catalog(catalogs, answer, assignment, manifest, changes) if manifest else None
        leases = _leases(answer, key, lease, settings) if lease else None
    except Refused as error:
        raise EnrolmentFailed(
            f"the bundle is refused: {error.detail}. Nothing was changed", code="bundle"
        ) from error

    def keep(identity: Identity) -> None:
        if view is not None and manifest is not None:
            objects = list(view.objects.values())
            catalogs.begin(identity.host_id, manifest, objects, (), reset=True).commit()
        if leases is not None:
            catalogs.save_leases(leases)

    old = identities.load()
    result = adopt(answer, key, identities, catalogs, mode=mode, keep=keep)
    return replace(result, changed=identities.load() != old)


def _catalog(
    catalogs: CatalogStorage,
    answer: Answer,
    assignment: Assignment,
    sealed: SignedBytes,
    changes: tuple[ObjectChange, ...],
) -> CatalogView:
    """The bundle's catalog, once it fits. Raises Refused."""
    from licagent.control.trust import opened, trust_of
    from licagent.control.wire import manifest as parse_manifest
    from lictoken.digest import DigestTree
    from lictoken.sealed import SealPurpose

    found = parse_manifest(opened(SealPurpose.SNAPSHOT, sealed, trust_of(answer.trust)), sealed)
    if found.view != assignment.view:
        raise Refused(NackReason.NOT_OURS, f"its catalog is for the view {found.view}")
    stored = catalogs.load()
    if stored is not None and stored.host_id == answer.host_id:
        before = parse_manifest(stored.manifest.payload, stored.manifest)
        if found.revision < before.revision:
            raise Refused(
                NackReason.ROLLBACK,
                f"its catalog is of revision {found.revision}, and this host has "
                f"{before.revision}: have a new bundle made",
            )
    return Replica(DigestTree).stage(Delta(0, found.revision, True, changes, found))


def _leases(
    answer: Answer, key_pem: bytes, sealed: SignedBytes, settings: ControlSettings
) -> StoredLeases:
    """The bundle's leases, once they are ours. Raises Refused."""
    from licagent.control.leases import opened_leases
    from licagent.control.trust import trust_of

    kept = StoredLeases(sealed, lease_nonce(key_pem), "", 0)
    holder = LeaseHolder(answer.host_id, fingerprint(key_pem), settings.boot_id)
    opened_leases(kept, holder, trust_of(answer.trust), settings)
    return kept


def _parsed(data: bytes) -> dict[str, Any]:
    if len(data) > BUNDLE_MAX_BYTES:
        raise ValueError(f"it has {len(data)} bytes")
    body = json.loads(data)
    if not isinstance(body, dict) or body.get("schema_version") != SCHEMA_VERSION:
        raise ValueError(f"it is not of schema_version {SCHEMA_VERSION}")
    return body


def _answer(body: dict[str, Any]) -> Answer:
    chain = tuple(_bytes(each) for each in body["certificate_chain"])
    return Answer(
        host_id=str(body["host_id"]),
        certificate_chain=chain,
        ca_certificates=tuple(_bytes(each) for each in body["ca_certificates"]),
        trust=_trust(body["trust"]),
        assignment=_signed(body["assignment"]),
        counter=_bytes(body["counter"]) if body.get("counter") else b"",
        changed=False,
        not_after_unix_ms=int(body.get("not_after_unix_ms") or _end_of(chain)),
        control_address=str(body.get("control_address", "")),
        public_address=str(body.get("public_address", "")),
    )


def _end_of(chain: tuple[bytes, ...]) -> int:
    from licagent.control.hostkey import span_of

    return span_of(chain[0]).not_after_unix_ms if chain else 0


def _trust(value: object) -> bytes:
    """The JWKS, as an object or as its bytes."""
    return json.dumps(value).encode() if isinstance(value, dict) else _bytes(value)


def _signed(body: dict[str, Any]) -> SignedBytes:
    return SignedBytes(_bytes(body["payload"]), str(body["kid"]), _bytes(body["signature"]))


def _change(body: dict[str, Any]) -> ObjectChange:
    kind = body["kind"]
    found = Kind(kind) if isinstance(kind, int) else Kind[str(kind).upper().removeprefix("KIND_")]
    return ObjectChange(found, str(body["name"]), int(body["revision"]), _bytes(body["payload"]))


def _bytes(value: object) -> bytes:
    if not isinstance(value, str):
        raise TypeError("bytes are text in base64url")
    return base64url.decode(value, "a field")
