# SPDX-License-Identifier: Apache-2.0
"""The host's identity on disk: its key, its certificate, its counter, in one document.

One document, so that a crash leaves the old identity or the new one, never the key of one and
the certificate of the other. It is mode 0600 in a folder of mode 0700, like all state.
"""

from __future__ import annotations

from licagent.domain.hostidentity import Identity
from licagent.store.statedir import StateDir


class IdentityStore:
    """Reads and writes who this host is."""

    def __init__(self, state: StateDir) -> None:
        self._state = state

    def load(self) -> Identity | None:
        """The identity saved last, or None on a host that never enrolled. Raises StoreError."""
        raise NotImplementedError

    def save(self, identity: Identity) -> None:
        """Replace it, durably. Raises StateWriteFailed."""
        raise NotImplementedError

    def pending_key(self) -> bytes | None:
        """The key of an enrolment that was begun and not ended (PKCS #8, PEM)."""
        raise NotImplementedError

    def keep_pending_key(self, key_pem: bytes) -> None:
        """Keep a key durably before it is shown to the server."""
        raise NotImplementedError

    def drop_pending_key(self) -> None:
        """The enrolment is done."""
        raise NotImplementedError
