# SPDX-License-Identifier: Apache-2.0
"""Which of the certification authorities issues, and which are only trusted.

A change of authority has three steps, with time for every host between them: the next one is made
and trusted by all; it takes over issuing; the old one is no longer trusted. Where that stands is
a signed document, so that nobody who can only write to the database brings an old root back.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from typing import Any, Final

from licplane.errors import ExitCode, PlaneError
from lictoken import base64url
from lictoken.errors import TokenError
from lictoken.sealed import Seal, Sealer, SealPurpose, unseal
from lictoken.trust import TrustStore

ROOTS_SETTING: Final = "authorities"
"""Where the signed document is kept; absent while there was never more than one authority."""


class RootStatus(StrEnum):
    """What an authority is for."""

    ACTIVE = "active"  # it signs certificates
    COMING = "coming"  # trusted already; signs none yet
    LEAVING = "leaving"  # trusted still; signs none any more
    RETIRED = "retired"  # not trusted; kept to tell what it once made


@dataclass(frozen=True, slots=True)
class Roots:
    """The authorities by the SHA-256 of their certificates, hexadecimal."""

    active: str
    coming: str = ""
    leaving: tuple[str, ...] = ()
    retired: tuple[str, ...] = ()
    changed_unix_ms: int = 0
    """When what hosts must trust or show last became another."""
    active_since_unix_ms: int = 0

    @property
    def trusted(self) -> tuple[str, ...]:
        """Those that count, the issuing one first."""
        return (self.active, *filter(None, (self.coming,)), *self.leaving)

    @property
    def every(self) -> tuple[str, ...]:
        """Those that ever counted."""
        return (*self.trusted, *self.retired)

    def status_of(self, fingerprint: str) -> RootStatus:
        """What the authority is for."""
        if fingerprint == self.active:
            return RootStatus.ACTIVE
        if fingerprint == self.coming:
            return RootStatus.COMING
        return RootStatus.LEAVING if fingerprint in self.leaving else RootStatus.RETIRED

    def with_coming(self, fingerprint: str, now_ms: int) -> Roots:
        """These, and one that hosts shall begin to trust."""
        return replace(self, coming=fingerprint, changed_unix_ms=now_ms)

    def promoted(self, now_ms: int) -> Roots:
        """The coming one issues from now on."""
        return replace(
            self,
            active=self.coming,
            coming="",
            leaving=(*self.leaving, self.active),
            changed_unix_ms=now_ms,
            active_since_unix_ms=now_ms,
        )

    def without(self, fingerprint: str, now_ms: int) -> Roots:
        """One that issues nothing is no longer trusted."""
        return replace(
            self,
            coming="" if fingerprint == self.coming else self.coming,
            leaving=tuple(one for one in self.leaving if one != fingerprint),
            retired=(*self.retired, fingerprint),
            changed_unix_ms=now_ms,
        )


def sealed_roots(roots: Roots, sealer: Sealer) -> bytes:
    """The signed document."""
    payload = json.dumps(asdict(roots), sort_keys=True, separators=(",", ":")).encode()
    seal = sealer.seal(SealPurpose.AUTHORITIES, payload)
    document = {
        "payload": payload.decode(),
        "kid": seal.kid,
        "signature": base64url.encode(seal.signature),
    }
    return json.dumps(document, sort_keys=True).encode()


def opened_roots(data: bytes, trust: TrustStore) -> Roots:
    """What `sealed_roots` wrote. Raises PlaneError INTERNAL where it is not signed by `trust`."""
    try:
        document = _object(json.loads(data))
        payload = str(document["payload"]).encode()
        signature = base64url.decode(str(document["signature"]), "signature")
        seal = Seal(payload, str(document["kid"]), signature)
        return _roots(_object(json.loads(unseal(SealPurpose.AUTHORITIES, seal, trust))))
    except (KeyError, TypeError, ValueError, TokenError) as error:
        raise PlaneError(
            ExitCode.INTERNAL,
            f"What says which certification authority counts was altered ({error})",
            "Restore the database from a backup",
        ) from error


def unverified_roots(data: bytes) -> Roots:
    """The same for display, where no key is open. Raises ValueError, KeyError or TypeError."""
    return _roots(_object(json.loads(str(_object(json.loads(data))["payload"]))))


def _object(value: object) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise TypeError("it is no object")
    return value


def _roots(value: Mapping[str, Any]) -> Roots:
    return Roots(
        active=str(value["active"]),
        coming=str(value["coming"]),
        leaving=tuple(map(str, value["leaving"])),
        retired=tuple(map(str, value["retired"])),
        changed_unix_ms=int(value["changed_unix_ms"]),
        active_since_unix_ms=int(value["active_since_unix_ms"]),
    )
