# SPDX-License-Identifier: Apache-2.0
"""One hash over a set of named objects, kept up to date at the price of the change.

Objects fall into 4,096 buckets by the hash of their names. A bucket's hash is over its entries
in the order of their names; the root is over all buckets' hashes. A change hashes one bucket and
128 KiB of bucket hashes again, whatever the size of the set. Both sides of a sync hold one: they
have the same objects if, and only if, they have the same root.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Final

BUCKETS: Final = 4096
DIGEST_BYTES: Final = 32
_EMPTY: Final = hashlib.sha256(b"licagent-bucket-v1\0").digest()


class DigestTree:
    """The hash of a set of objects, each of a kind (a small number) and a name."""

    def __init__(self) -> None:
        self._buckets: list[dict[bytes, bytes]] = [{} for _ in range(BUCKETS)]
        self._hashes = bytearray(_EMPTY * BUCKETS)
        self._stale: set[int] = set()
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def put(self, kind: int, name: str, payload: bytes) -> None:
        """Add an object or replace the one of its kind and name."""
        key = _key(kind, name)
        at = _bucket(key)
        entries = self._buckets[at]
        if key not in entries:
            self._count += 1
        entries[key] = hashlib.sha256(payload).digest()
        self._stale.add(at)

    def remove(self, kind: int, name: str) -> bool:
        """Take an object out; False if it was not there."""
        key = _key(kind, name)
        at = _bucket(key)
        if self._buckets[at].pop(key, None) is None:
            return False
        self._count -= 1
        self._stale.add(at)
        return True

    def holds(self, kind: int, name: str, payload: bytes) -> bool:
        """Whether the set has exactly this object."""
        key = _key(kind, name)
        return self._buckets[_bucket(key)].get(key) == hashlib.sha256(payload).digest()

    def root(self) -> bytes:
        """32 bytes. The root of no objects at all is not that of an unset field."""
        for at in self._stale:
            self._hashes[at * DIGEST_BYTES : (at + 1) * DIGEST_BYTES] = _hash(self._buckets[at])
        self._stale.clear()
        return hashlib.sha256(b"licagent-root-v1\0" + self._hashes).digest()

    def copy(self) -> DigestTree:
        """A tree that changes by itself."""
        other = DigestTree()
        other._buckets = [dict(entries) for entries in self._buckets]
        other._hashes = bytearray(self._hashes)
        other._stale = set(self._stale)
        other._count = self._count
        return other


def digest_of(objects: Iterable[tuple[int, str, bytes]]) -> bytes:
    """The root of a set of (kind, name, payload)."""
    tree = DigestTree()
    for kind, name, payload in objects:
        tree.put(kind, name, payload)
    return tree.root()


def _key(kind: int, name: str) -> bytes:
    # Names never hold a NUL (they are checked on entry), so no two pairs share a key.
    return kind.to_bytes(2, "big") + name.encode()


def _bucket(key: bytes) -> int:
    return int.from_bytes(hashlib.sha256(key).digest()[:2], "big") % BUCKETS


def _hash(entries: dict[bytes, bytes]) -> bytes:
    if not entries:
        return _EMPTY
    hasher = hashlib.sha256(b"licagent-bucket-v1\0")
    for key in sorted(entries):
        hasher.update(len(key).to_bytes(2, "big") + key + entries[key])
    return hasher.digest()
