# SPDX-License-Identifier: Apache-2.0
"""The join token: one string with all that a host needs to become one of a fleet's.

    licjoin1.<base64url of {"id", "secret", "public", "control", "ca"}>

While the control plane changes its root it also has "more": other roots, separated by spaces.

It carries the control plane's root certificate, so the very first connection is verified: there
is no trust on first use. Whoever has it can enrol as often as it allows; treat it as a password.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from dataclasses import dataclass, field
from typing import Final

_PREFIX: Final = "licjoin1."
_LENGTH_MAX: Final = 16 * 1024
_ADDRESS: Final = re.compile(r"(\[[0-9A-Fa-f:.%]+\]|[^\s:/\[\]]+):([0-9]{1,5})", re.ASCII)
_AGAIN: Final = "Copy it again, whole, from `licplane token create`"


class EnrolmentFailed(Exception):
    """Enrolment did not happen; the message says what to do. What was there before stands."""

    def __init__(self, message: str, *, code: str = "refused") -> None:
        """`code` is a word for scripts.

        join: the token's text; network: no answer; refused: the server's word; exists: the host
        has another identity; bundle: a file; answer: what the server sent is wrong.
        """
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, slots=True)
class JoinToken:
    """What a join string says."""

    id: str
    secret: str = field(repr=False)
    public: str  # host:port of the public listener
    control: str  # host:port of the mutual TLS listener
    ca: bytes = field(repr=False)  # the root certificate, DER
    more: tuple[bytes, ...] = field(default=(), repr=False)
    """Roots that the server may show a certificate of soon, or did until a while ago."""

    @property
    def roots(self) -> tuple[bytes, ...]:
        """All that the server may be verified with."""
        return (self.ca, *self.more)


def parse_join(text: str) -> JoinToken:
    """Read a join string. Raises EnrolmentFailed (code join), which never shows the secret."""
    text = text.strip()
    if not text.startswith(_PREFIX):
        raise EnrolmentFailed(
            f"this is no join token: it does not begin with {_PREFIX!r}. {_AGAIN}", code="join"
        )
    try:
        if len(text) > _LENGTH_MAX:
            raise ValueError("it is too long")
        body = json.loads(_decoded(text.removeprefix(_PREFIX)))
        if not isinstance(body, dict):
            raise ValueError("it holds no object")
        parts = {key: body[key] for key in ("id", "secret", "public", "control", "ca")}
        if not all(isinstance(part, str) for part in parts.values()):
            raise ValueError("a part of it is no text")
        ca = _decoded(parts["ca"])
        more = tuple(map(_decoded, str(body.get("more") or "").split()))
    except KeyError as error:
        raise EnrolmentFailed(
            f"the join token lacks {error.args[0]!r}. {_AGAIN}", code="join"
        ) from error
    except ValueError as error:  # also of JSON and base64
        raise EnrolmentFailed(
            f"the join token is damaged ({type(error).__name__}). {_AGAIN}", code="join"
        ) from error
    for name in ("public", "control"):
        check_address(parts[name], f"the join token's {name} address", code="join")
    return JoinToken(parts["id"], parts["secret"], parts["public"], parts["control"], ca, more)


def check_address(address: str, what: str, *, code: str) -> None:
    """Refuse what is not host:port. Raises EnrolmentFailed."""
    match = _ADDRESS.fullmatch(address)
    if match is None or not 0 < int(match[2]) < 65536:
        raise EnrolmentFailed(f"{what} is {address[:80]!r}, not host:port", code=code)


def _decoded(text: str) -> bytes:
    """Base64 of either alphabet, padded or not."""
    plain = text.replace("-", "+").replace("_", "/").rstrip("=")
    try:
        return base64.b64decode(plain + "=" * (-len(plain) % 4), validate=True)
    except binascii.Error as error:
        raise ValueError("not base64") from error
