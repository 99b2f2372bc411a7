# SPDX-License-Identifier: Apache-2.0
"""The catalog on disk: what the kernel holds, in one SQLite file that is old or new.

Nothing here is believed: the reader verifies what it gets against the sealed manifest that is
kept with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from licagent.domain.lease import StoredLeases
from licagent.domain.replica import CatalogObject, ObjectKey, SignedBytes, StoredCatalog


class CatalogStore:
    """One file; its methods block, and any thread may call them, one at a time."""

    def __init__(self, path: Path) -> None:
        """`path` is STATE/catalog.db; it is made at the first write."""
        self._path = path

    def load(self) -> StoredCatalog | None:
        """What was committed last, or None. Raises DocumentDamaged, the file set aside."""
        raise NotImplementedError

    def begin(
        self,
        host_id: str,
        manifest: SignedBytes,
        put: Sequence[CatalogObject],
        removed: Sequence[ObjectKey],
        *,
        reset: bool,
    ) -> PendingWrite:
        """Write a change up to its commit. Raises Refused(DISK)."""
        raise NotImplementedError

    def load_leases(self) -> StoredLeases | None:
        """The newest lease bundle, or None."""
        raise NotImplementedError

    def save_leases(self, leases: StoredLeases) -> None:
        """Replace it, durably. Raises Refused(DISK)."""
        raise NotImplementedError

    def clear(self) -> None:
        """Forget catalog and leases: the host has become another one."""
        raise NotImplementedError

    def close(self) -> None:
        """Close the file; it is opened again when it is needed."""
        raise NotImplementedError


class PendingWrite:
    """A change of the stored catalog that is not in force yet."""

    def commit(self) -> None:
        """Make it durable, whole. Raises Refused(DISK) with the old one in place."""
        raise NotImplementedError

    def rollback(self) -> None:
        """Forget it."""
        raise NotImplementedError
