# SPDX-License-Identifier: Apache-2.0
"""The catalog's digest: one root over all live objects with their scopes.

Objects fall into 4,096 buckets by the hash of kind and name. A bucket's hash is over its entries
in the order of their keys, the root over all buckets' hashes. So a change hashes the buckets it
touches, and 128 KiB of hashes, whatever the size of the catalog.

The database keeps the buckets' hashes. A change checks each bucket it touches against its rows,
and the root that was signed stands for all others: what was altered behind the program's back is
found before anything new is signed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Final

from licplane.store.catalog_model import CatalogChange, CatalogObject, Scope
from licplane.store.session import canonical, inconsistent, scope_text

BUCKETS: Final = 4096
HASH_BYTES: Final = 32
EMPTY_BUCKET: Final = hashlib.sha256(b"licplane-bucket-v1\0").digest()
EMPTY_HASHES: Final = EMPTY_BUCKET * BUCKETS


def object_key(kind: int, name: str) -> bytes:
    """What an object is known by. Names hold no NUL, and kinds have two bytes."""
    return kind.to_bytes(2, "big") + name.encode()


def bucket_of(key: bytes) -> int:
    """The bucket of an object's key."""
    return int.from_bytes(hashlib.sha256(key).digest()[:2], "big") % BUCKETS


def entry_hash(scope: str, payload: bytes) -> bytes:
    """Of an object's scope (as `scope_text` gives it) and payload."""
    text = scope.encode()
    return hashlib.sha256(len(text).to_bytes(4, "big") + text + payload).digest()


def bucket_hash(entries: Mapping[bytes, bytes]) -> bytes:
    """Over the entries of a bucket, {key: entry hash}."""
    if not entries:
        return EMPTY_BUCKET
    hasher = hashlib.sha256(b"licplane-bucket-v1\0")
    for key in sorted(entries):
        hasher.update(len(key).to_bytes(4, "big") + key + entries[key])
    return hasher.digest()


def root_of(hashes: bytes) -> bytes:
    """The root over all buckets' hashes."""
    return hashlib.sha256(b"licplane-catalog-v1\0" + hashes).digest()


class CatalogDigest:
    """The digest of a catalog held in memory, kept up to date at the price of the change."""

    def __init__(self, objects: Iterable[CatalogObject] = ()) -> None:
        self._buckets: list[dict[bytes, bytes]] = [{} for _ in range(BUCKETS)]
        self._hashes = bytearray(EMPTY_HASHES)
        self._stale: set[int] = set()
        for one in objects:
            self.put(one.kind, one.name, one.scope, one.payload)

    def put(self, kind: int, name: str, scope: Scope, payload: bytes) -> None:
        """Add an object, or replace the one of its kind and name."""
        key = object_key(kind, name)
        at = bucket_of(key)
        self._buckets[at][key] = entry_hash(scope_text(scope), payload)
        self._stale.add(at)

    def remove(self, kind: int, name: str) -> None:
        """Take an object out; one that is not there is no matter."""
        key = object_key(kind, name)
        at = bucket_of(key)
        self._buckets[at].pop(key, None)
        self._stale.add(at)

    def apply(self, change: CatalogChange) -> None:
        """Follow the change log, row by row in its order."""
        if change.payload is None:
            self.remove(change.kind, change.name)
        else:
            self.put(change.kind, change.name, change.scope, change.payload)

    def root(self) -> bytes:
        """32 bytes."""
        for at in self._stale:
            self._hashes[at * HASH_BYTES : (at + 1) * HASH_BYTES] = bucket_hash(self._buckets[at])
        self._stale.clear()
        return root_of(bytes(self._hashes))


def catalog_root(objects: Iterable[CatalogObject]) -> bytes:
    """The root over live objects: kind, name, scope and payload (32 bytes)."""
    return CatalogDigest(objects).root()


def catalog_head_payload(revision: int, root: bytes) -> bytes:
    """What is sealed with the purpose CATALOG_HEAD: canonical JSON of both."""
    return canonical({"revision": revision, "root": root.hex()}).encode()


def parse_catalog_head(payload: bytes) -> tuple[int, bytes]:
    """(revision, root) of a payload whose seal was verified. Raises PlaneError INTERNAL."""
    try:
        document = json.loads(payload)
        revision, root = document["revision"], bytes.fromhex(document["root"])
        if not isinstance(revision, int) or len(root) != HASH_BYTES:
            raise ValueError("a revision and 32 bytes are wanted")
    except (ValueError, KeyError, TypeError) as error:
        raise inconsistent(f"the catalog's sealed head is unreadable ({error})") from error
    return revision, root
