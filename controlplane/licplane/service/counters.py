# SPDX-License-Identifier: Apache-2.0
"""The rotating counters by which clones of a machine are found, and restored databases are told
from clones.

A counter is a number that goes up by one each time, 8 random bytes and our authentication code
over both and the host. A machine that was copied shows a counter that was superseded. A database
that was put back from a backup meets counters that it has not given out yet: nobody but us can
have made them, so the host is ahead, and is no clone.
"""

from __future__ import annotations

import hmac
import os
from collections.abc import Sequence
from typing import Final

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from licplane.issuer.authority import Authority
from licplane.store.host_model import HostCounters

COUNTER_BYTES: Final = 32
_NUMBER_BYTES: Final = 8
_RANDOM_BYTES: Final = 8
_CODE_BYTES: Final = 16
_NUMBER_MAX: Final = 2**63


class Counters:
    """Makes and judges counters, with keys that come from the certification authorities'."""

    def __init__(self, authority: Authority, every: Sequence[Authority] = ()) -> None:
        """`every`: those whose counters hosts may still show; `authority` makes new ones."""
        self._key = _key_of(authority)
        self._keys = (self._key, *(_key_of(one) for one in every if one is not authority))

    def following(self, host_id: str, known: HostCounters | None) -> bytes:
        """A counter that comes after all that the host was given."""
        number = 1 + (max(_number(known.current), _number(known.pending)) if known else 0)
        head = number.to_bytes(_NUMBER_BYTES, "big") + os.urandom(_RANDOM_BYTES)
        return head + _code(self._key, host_id, head)

    def is_ahead(self, host_id: str, counter: bytes, known: HostCounters) -> bool:
        """Whether we made this counter for the host, after the newest one we know of."""
        if len(counter) != COUNTER_BYTES:
            return False
        head, code = counter[:-_CODE_BYTES], counter[-_CODE_BYTES:]
        is_ours = any(hmac.compare_digest(code, _code(key, host_id, head)) for key in self._keys)
        return is_ours and _number(counter) > max(_number(known.current), _number(known.pending))


def _key_of(authority: Authority) -> bytes:
    secret = authority.private_key.private_numbers().private_value.to_bytes(32, "big")
    return HKDF(SHA256(), 32, salt=None, info=b"licplane-counter-v1").derive(secret)


def _code(key: bytes, host_id: str, head: bytes) -> bytes:
    message = host_id.encode() + b"\0" + head
    return hmac.digest(key, message, "sha256")[:_CODE_BYTES]


def holds(known: HostCounters, counter: bytes) -> bool:
    """Whether the counter is the confirmed one, or the one given last."""
    return hmac.compare_digest(known.current, counter) or (
        bool(known.pending) and hmac.compare_digest(known.pending, counter)
    )


def _number(counter: bytes) -> int:
    """0 for no counter, and for one of another form."""
    if len(counter) != COUNTER_BYTES:
        return 0
    number = int.from_bytes(counter[:_NUMBER_BYTES], "big")
    return number if number < _NUMBER_MAX else 0
