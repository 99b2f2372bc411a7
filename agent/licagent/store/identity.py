# SPDX-License-Identifier: Apache-2.0
"""The host's identity on disk: its key, its certificate, its counter, in one document.

One document, so that a crash leaves the old identity or the new one, never the key of one and
the certificate of the other. It is mode 0600 in a folder of mode 0700, like all state.
"""

from __future__ import annotations

import base64
import threading
from typing import Any, Final

from licagent.domain.catalog import SignedBytes
from licagent.domain.hostidentity import Identity
from licagent.store.errors import StoreError
from licagent.store.statedir import StateDir

_DOCUMENT: Final = "identity"
_SCHEMA: Final = "licagent.identity/1"
_PENDING: Final = "identity-pending"
_PENDING_SCHEMA: Final = "licagent.identity-pending/1"


class IdentityStore:
    """Reads and writes who this host is. Any thread may call."""

    def __init__(self, state: StateDir) -> None:
        self._state = state
        self._lock = threading.Lock()
        self._last: Identity | None = None

    def load(self) -> Identity | None:
        """The identity saved last, or None on a host that never enrolled.

        Raises DocumentDamaged once, the file set aside; the host counts as not enrolled then.
        """
        with self._lock:
            return self._load()

    def save(self, identity: Identity) -> None:
        """Replace it, durably. Raises StateWriteFailed."""
        with self._lock:
            self._save(identity)

    def replace(self, old: Identity, new: Identity) -> bool:
        """Save `new` if `old` is what is kept; False if the host has become another one."""
        with self._lock:
            if self._load() != old:
                return False
            self._save(new)
            return True

    def pending_key(self) -> bytes | None:
        """The key of an enrolment that was begun and not ended (PKCS #8, PEM)."""
        with self._lock:
            body = self._state.read_document(_PENDING, _PENDING_SCHEMA)
        key = (body or {}).get("key")
        return key.encode() if isinstance(key, str) else None

    def keep_pending_key(self, key_pem: bytes) -> None:
        """Keep a key durably before it is shown to the server. Raises StateWriteFailed."""
        with self._lock:
            self._state.write_document(_PENDING, _PENDING_SCHEMA, {"key": key_pem.decode()})

    def drop_pending_key(self) -> None:
        """The enrolment is done."""
        with self._lock:
            self._state.delete_document(_PENDING)

    def forget(self) -> None:
        """This host is nobody's any more; durable. Its key goes too."""
        with self._lock:
            self._state.delete_document(_PENDING)
            self._state.delete_document(_DOCUMENT)
            self._last = None

    def _load(self) -> Identity | None:
        if self._last is None:
            body = self._state.read_document(_DOCUMENT, _SCHEMA)
            if body is not None:
                self._last = _identity(body)
        return self._last

    def _save(self, identity: Identity) -> None:
        self._state.write_document(_DOCUMENT, _SCHEMA, _document(identity))
        self._last = identity


def _document(identity: Identity) -> dict[str, Any]:
    return {
        "key": identity.key_pem.decode(),
        "host_id": identity.host_id,
        "certificate_chain": [_text(each) for each in identity.certificate_chain],
        "ca_certificates": [_text(each) for each in identity.ca_certificates],
        "trust": _text(identity.trust),
        "assignment": {
            "payload": _text(identity.assignment.payload),
            "kid": identity.assignment.kid,
            "signature": _text(identity.assignment.signature),
        },
        "counter": _text(identity.counter),
        "control_address": identity.control_address,
        "public_address": identity.public_address,
        "not_after_unix_ms": identity.not_after_unix_ms,
    }


def _identity(body: dict[str, Any]) -> Identity:
    try:
        assignment = body["assignment"]
        return Identity(
            key_pem=str(body["key"]).encode(),
            host_id=str(body["host_id"]),
            certificate_chain=tuple(_bytes(each) for each in body["certificate_chain"]),
            ca_certificates=tuple(_bytes(each) for each in body["ca_certificates"]),
            trust=_bytes(body["trust"]),
            assignment=SignedBytes(
                _bytes(assignment["payload"]),
                str(assignment["kid"]),
                _bytes(assignment["signature"]),
            ),
            counter=_bytes(body["counter"]),
            control_address=str(body["control_address"]),
            public_address=str(body["public_address"]),
            not_after_unix_ms=int(body["not_after_unix_ms"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise StoreError(
            f"the state document {_DOCUMENT} is whole but makes no sense ({error!r}). Move it "
            "away and enrol again: `licagent enroll JOIN`"
        ) from error


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _bytes(text: str) -> bytes:
    return base64.b64decode(text, validate=True)
