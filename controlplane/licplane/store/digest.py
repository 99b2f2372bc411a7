# SPDX-License-Identifier: Apache-2.0
"""The catalog's digest as it is stored: one root over all live objects with their scopes."""

from __future__ import annotations

from collections.abc import Iterable

from licplane.store.model import CatalogObject


def catalog_root(objects: Iterable[CatalogObject]) -> bytes:
    """The root over live objects: kind, name, scope, payload and document (32 bytes)."""
    raise NotImplementedError


def catalog_head_payload(revision: int, root: bytes) -> bytes:
    """What is sealed with the purpose CATALOG_HEAD: canonical JSON of both."""
    raise NotImplementedError


def parse_catalog_head(payload: bytes) -> tuple[int, bytes]:
    """(revision, root) of a payload whose seal was verified. Raises PlaneError INTERNAL."""
    raise NotImplementedError
