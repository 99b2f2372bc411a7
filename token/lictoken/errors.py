# SPDX-License-Identifier: Apache-2.0
"""Why a token, a trust file or a key was refused: one name for each reason."""

from __future__ import annotations

from enum import StrEnum
from typing import Final


class Refusal(StrEnum):
    """Named reasons. The values are stable: scripts and tests may rely on them."""

    # reading
    UNREADABLE = "unreadable"
    TOO_LARGE = "too-large"
    BAD_ARMOUR = "bad-armour"
    TRUNCATED = "truncated"
    TRAILING_DATA = "trailing-data"
    BAD_ENCODING = "bad-encoding"
    BAD_UTF8 = "bad-utf8"
    BAD_JSON = "bad-json"
    DUPLICATE_KEY = "duplicate-key"
    BAD_NUMBER = "bad-number"
    TOO_DEEP = "too-deep"
    # header
    WRONG_ALGORITHM = "wrong-algorithm"
    KEY_IN_HEADER = "key-in-header"
    UNKNOWN_CRITICAL = "unknown-critical"
    UNKNOWN_HEADER = "unknown-header"
    WRONG_PURPOSE = "wrong-purpose"
    BAD_KEY_ID = "bad-key-id"
    UNKNOWN_KEY = "unknown-key"
    RETIRED_KEY = "retired-key"
    KEY_PURPOSE = "key-purpose"
    BAD_SIGNATURE = "bad-signature"
    # claims
    WRONG_ISSUER = "wrong-issuer"
    WRONG_AUDIENCE = "wrong-audience"
    UNSUPPORTED_VERSION = "unsupported-version"
    UNKNOWN_FIELD = "unknown-field"
    MISSING_FIELD = "missing-field"
    BAD_VALUE = "bad-value"
    # judged against the clock and what was seen before
    NOT_YET_VALID = "not-yet-valid"
    EXPIRED = "expired"
    REPLAYED = "replayed"
    REVOKED = "revoked"
    SUSPENDED = "suspended"
    # trust file
    BAD_TRUST = "bad-trust"


_COPY_AGAIN: Final = "Copy the file again from the issuer, unchanged"
_ASK_ISSUER: Final = "Ask the issuer for a license made by `licplane license issue`"
_SUSPECT: Final = "Do not use this file; tell the issuer where it came from"
_UPDATE_TRUST: Final = "If the issuer has a new key, install its current trust.jwks"

NEXT_STEPS: Final[dict[Refusal, str]] = {
    Refusal.UNREADABLE: "Check that the path is a regular file this user may read",
    Refusal.TOO_LARGE: "Check that this is a license file and not something else",
    Refusal.BAD_ARMOUR: _COPY_AGAIN,
    Refusal.TRUNCATED: _COPY_AGAIN,
    Refusal.TRAILING_DATA: "Keep one license a file and nothing after its END line",
    Refusal.BAD_ENCODING: _COPY_AGAIN,
    Refusal.BAD_UTF8: _COPY_AGAIN,
    Refusal.BAD_JSON: _ASK_ISSUER,
    Refusal.DUPLICATE_KEY: _SUSPECT,
    Refusal.BAD_NUMBER: _ASK_ISSUER,
    Refusal.TOO_DEEP: _SUSPECT,
    Refusal.WRONG_ALGORITHM: _SUSPECT,
    Refusal.KEY_IN_HEADER: _SUSPECT,
    Refusal.UNKNOWN_CRITICAL: "Upgrade licagent, or ask for a license without the extension",
    Refusal.UNKNOWN_HEADER: _ASK_ISSUER,
    Refusal.WRONG_PURPOSE: "Put licenses into .lic files and revocations into .rev files",
    Refusal.BAD_KEY_ID: _SUSPECT,
    Refusal.UNKNOWN_KEY: _UPDATE_TRUST,
    Refusal.RETIRED_KEY: "Ask the issuer to issue it again with its current key",
    Refusal.KEY_PURPOSE: _UPDATE_TRUST,
    Refusal.BAD_SIGNATURE: _COPY_AGAIN,
    Refusal.WRONG_ISSUER: _SUSPECT,
    Refusal.WRONG_AUDIENCE: "It was issued for another product; ask for one for this host",
    Refusal.UNSUPPORTED_VERSION: "Upgrade licagent, or ask for a license in an older format",
    Refusal.UNKNOWN_FIELD: "Upgrade licagent, or ask the issuer to correct the field",
    Refusal.MISSING_FIELD: _ASK_ISSUER,
    Refusal.BAD_VALUE: _ASK_ISSUER,
    Refusal.NOT_YET_VALID: "Wait for its start, and check this host's clock",
    Refusal.EXPIRED: "Ask the issuer to renew it",
    Refusal.REPLAYED: "Install the newest generation of this license",
    Refusal.REVOKED: "Ask the issuer for a new license",
    Refusal.SUSPENDED: "Ask the issuer to reinstate it",
    Refusal.BAD_TRUST: "Install the trust.jwks that `licplane keys export` prints",
}

_SHOWN_LENGTH: Final = 80


class TokenError(Exception):
    """A token, trust file or key was refused.

    `refusal` names the reason, `detail` says what was found where, `next_step` what to do.
    """

    def __init__(self, refusal: Refusal, detail: str) -> None:
        super().__init__(refusal, detail)
        self.refusal = refusal
        self.detail = detail

    @property
    def next_step(self) -> str:
        """One sentence, without a full stop, on what to do now."""
        return NEXT_STEPS[self.refusal]

    def __str__(self) -> str:
        return f"{self.detail} [{self.refusal.value}]. {self.next_step}."


def shown(value: object) -> str:
    """`value` for an error text: one short line, control characters escaped."""
    text = ascii(value)
    return text if len(text) <= _SHOWN_LENGTH else text[: _SHOWN_LENGTH - 3] + "..."
