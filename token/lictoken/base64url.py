# SPDX-License-Identifier: Apache-2.0
"""Base64url without padding (RFC 7515, section 2), in exactly one spelling."""

from __future__ import annotations

import base64
import binascii
import re
from typing import Final

from lictoken.errors import Refusal, TokenError

_ALPHABET: Final = re.compile(r"[A-Za-z0-9_-]*", re.ASCII)


def encode(data: bytes) -> str:
    """`data` in base64url, without padding."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode("ascii")


def decode(text: str, what: str) -> bytes:
    """Decode `text`; refuse padding, other alphabets and spellings that `encode` never makes.

    The last character may carry bits that decoding drops (RFC 4648, section 3.5): with them,
    several texts would mean the same token.
    """
    check_alphabet(text, what)
    try:
        data = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except (binascii.Error, ValueError) as error:
        raise TokenError(Refusal.BAD_ENCODING, f"{what} is not base64url: {error}") from error
    if encode(data) != text:
        raise TokenError(Refusal.BAD_ENCODING, f"{what} is not in canonical base64url")
    return data


def check_alphabet(text: str, what: str) -> None:
    """Refuse characters that base64url does not have."""
    if not _ALPHABET.fullmatch(text):
        raise TokenError(Refusal.BAD_ENCODING, f"{what} has a character outside base64url")
