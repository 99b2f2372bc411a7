# SPDX-License-Identifier: Apache-2.0
"""What can go wrong with the state on disk. Each message says what to do next."""

from __future__ import annotations

from pathlib import Path


class StoreError(Exception):
    """Any failure of the state folder."""


class StateDirBusy(StoreError):
    """Another daemon holds the state folder."""

    def __init__(self, path: Path, pid: int | None) -> None:
        """`pid` is None where the holder did not say who it is."""
        who = f"process {pid}" if pid is not None else "another process"
        super().__init__(
            f"{path} is in use by {who}: stop it (`systemctl stop licagent`), "
            "or give this one a state_dir of its own"
        )
        self.path = path
        self.pid = pid


class StateDirUnsafe(StoreError):
    """The state folder, or something in it, could have been changed by somebody else."""


class DocumentDamaged(StoreError):
    """A document's content is not what was written; it has been set aside."""

    def __init__(self, name: str, why: str, kept_as: Path) -> None:
        """`kept_as` is where the damaged file stands now."""
        super().__init__(
            f"the state document {name} is damaged ({why}); it was set aside as {kept_as}. "
            "Restore it from a backup, or go on without it"
        )
        self.name = name
        self.why = why
        self.kept_as = kept_as


class DocumentSchemaUnknown(StoreError):
    """A document is whole, but of a form that this version does not read."""

    def __init__(self, name: str, found: str, wanted: str) -> None:
        """`found` and `wanted` are schema names, such as licagent.numbers/1."""
        super().__init__(
            f"the state document {name} has the form {found}, this version reads {wanted}: "
            "run the version of licagent that wrote it, or a newer one"
        )
        self.name = name
        self.found = found
        self.wanted = wanted


class StateWriteFailed(StoreError):
    """A write did not happen; what was there before still stands."""
