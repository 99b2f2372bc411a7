# SPDX-License-Identifier: Apache-2.0
"""Puts the parts of a delta together, as they come, within bounds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from licagent.domain.catalog import NackReason, ObjectChange, Refused, SignedBytes

OBJECTS_MAX: Final = 1_000_000
"""Objects of one delta. Ten times what one host is meant to hold."""

BYTES_MAX: Final = 256 * 1024 * 1024
"""Names and payloads of one delta, together."""


@dataclass(frozen=True, slots=True)
class DeltaPart:
    """One message of licapi.control.v1.Delta."""

    from_revision: int
    to_revision: int
    reset: bool
    more: bool
    changes: tuple[ObjectChange, ...]
    manifest: SignedBytes | None  # in the last part


@dataclass(frozen=True, slots=True)
class GatheredDelta:
    """All parts; the manifest is not verified yet."""

    from_revision: int
    to_revision: int
    reset: bool
    changes: tuple[ObjectChange, ...]
    manifest: SignedBytes


class DeltaParts:
    """Gathers one delta at a time. Forget it with its stream."""

    def __init__(self, *, objects_max: int = OBJECTS_MAX, bytes_max: int = BYTES_MAX) -> None:
        self._objects_max = objects_max
        self._bytes_max = bytes_max
        self._of: tuple[int, int, bool] | None = None
        self._changes: list[ObjectChange] = []
        self._bytes = 0
        self._refused: tuple[int, int, bool] | None = None

    def add(self, part: DeltaPart) -> GatheredDelta | None:
        """The whole delta once its last part is here.

        Raises Refused once for a delta that is refused; the rest of its parts are passed over.
        """
        of = (part.from_revision, part.to_revision, part.reset)
        if self._refused == of:
            if not part.more:
                self._refused = None
            return None
        self._refused = None
        try:
            return self._add(part, of)
        except Refused:
            self._forget()
            self._refused = of if part.more else None
            raise

    def _add(self, part: DeltaPart, of: tuple[int, int, bool]) -> GatheredDelta | None:
        if self._of is not None and self._of != of:
            raise Refused(
                NackReason.DIGEST,
                f"a part of the delta {of[0]}..{of[1]} came before the end of "
                f"{self._of[0]}..{self._of[1]}",
            )
        self._of = of
        self._bytes += sum(len(each.name) + len(each.payload or b"") for each in part.changes)
        self._changes.extend(part.changes)
        if len(self._changes) > self._objects_max or self._bytes > self._bytes_max:
            raise Refused(
                NackReason.KERNEL,
                f"the delta to revision {part.to_revision} has more than {self._objects_max} "
                f"objects or {self._bytes_max} bytes: give this host a narrower scope",
            )
        if part.more:
            if part.manifest is not None:
                raise Refused(NackReason.DIGEST, "a manifest came before the last part")
            return None
        if part.manifest is None:
            raise Refused(
                NackReason.SIGNATURE, f"the delta to revision {part.to_revision} is not signed"
            )
        whole = GatheredDelta(*of, tuple(self._changes), part.manifest)
        self._forget()
        return whole

    def _forget(self) -> None:
        self._of = None
        self._changes = []
        self._bytes = 0
