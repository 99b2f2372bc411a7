# SPDX-License-Identifier: Apache-2.0
"""What must not be forgotten of licenses: newest generations, revocations, epochs.

Losing this would bring revoked licenses back, so two copies are kept, the spare one written
first: while one of them is whole, nothing that was acknowledged is lost.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

from licagent.store.errors import DocumentDamaged, StoreError
from licagent.store.statedir import StateDir

_DOCUMENT: Final = "licenses"
_SPARE: Final = "licenses-spare"
_SCHEMA: Final = "licagent.licenses/1"
EPOCH_FIRST: Final = 1
EPOCH_MAX: Final = 0xFFFFFFFF

Action = Literal["revoke", "suspend", "reinstate"]


class ReplayedGeneration(StoreError):
    """A license older than one of the same id that was accepted before."""

    def __init__(self, jti: str, generation: int, newest: int) -> None:
        """`newest` is the generation on record."""
        super().__init__(
            f"license {jti} is of generation {generation}, but {newest} was accepted before: "
            "install the newest file, or have the issuer issue it again"
        )
        self.jti = jti
        self.generation = generation
        self.newest = newest


class NumberTaken(StoreError):
    """A license has the number of another one."""

    def __init__(self, jti: str, number: int, holder: str) -> None:
        """`holder` is the jti that has the number."""
        super().__init__(
            f"license {jti} has the number {number}, which belongs to {holder}: "
            "sockets could not tell them apart. Have the issuer issue it with a number of its own"
        )
        self.jti = jti
        self.number = number
        self.holder = holder


@dataclass(frozen=True, slots=True)
class Statement:
    """One statement about a license, signed by its issuer or made on this host."""

    id: str  # jti of the signed statement, or a name of its own for a local one
    license: str  # jti
    issuer: str  # "" for one made on this host
    action: Action
    generation: int  # concerns the license's generations up to this one
    reason: str
    at_s: int  # unix seconds, when it was recorded
    by: str  # who brought it: "file", "control-plane", "uid 0"


class LicenseRecords:
    """The records of all licenses this host has seen. Every change is durable on return."""

    def __init__(self, state: StateDir) -> None:
        """Load; `damaged` says whether one copy had to be set aside.

        Raises DocumentDamaged when both are damaged: then somebody must decide.
        """
        self._state = state
        self._generations: dict[str, int] = {}
        self._numbers: dict[int, str] = {}
        self._epochs: dict[int, int] = {}
        self._statements: dict[str, dict[str, Statement]] = {}
        self._batches = 0
        self._dirty = False
        self.damaged: DocumentDamaged | None
        bodies, self.damaged = self._read()
        if bodies:
            # The spare one, which is read first, is newer after a crash between the two writes.
            self._take(bodies[0])
        if bodies and bodies != [bodies[0]] * 2:
            self._write()  # two whole and equal copies again

    def accept(self, jti: str, number: int, generation: int) -> bool:
        """Put a license on record before it is used; whether it was new or newer.

        Raises ReplayedGeneration or NumberTaken; then nothing is changed.
        """
        newest = self._generations.get(jti, 0)
        if generation < newest:
            raise ReplayedGeneration(jti, generation, newest)
        holder = self._numbers.get(number)
        if holder is not None and holder != jti:
            raise NumberTaken(jti, number, holder)
        if generation == newest and holder == jti:
            return False
        self._generations[jti] = generation
        self._numbers[number] = jti
        self._changed()
        return True

    def newest_generation(self, jti: str) -> int:
        """The highest generation accepted; 0 for an unknown license."""
        return self._generations.get(jti, 0)

    def jti_of(self, number: int) -> str | None:
        """The license that has a number, also when its file is gone by now."""
        return self._numbers.get(number)

    def record(self, statement: Statement) -> bool:
        """Keep a statement and move the epoch of its license's numbers; False if known.

        Sockets with the old epoch in their tags are dead once the kernel has the new one.
        """
        held = self._statements.setdefault(statement.license, {})
        if statement.id in held:
            return False
        held[statement.id] = statement
        for number, jti in self._numbers.items():
            if jti == statement.license:
                self._epochs[number] = self._next_epoch(number)
        self._changed()
        return True

    def statements(self, jti: str) -> tuple[Statement, ...]:
        """All statements about a license, in the order they came."""
        return tuple(self._statements.get(jti, {}).values())

    def epoch(self, number: int) -> int:
        """The epoch of a license number: what a live tag must carry."""
        return self._epochs.get(number, EPOCH_FIRST)

    def bump(self, number: int) -> int:
        """Move an epoch on, which ends all sockets tagged before; the new one."""
        self._epochs[number] = self._next_epoch(number)
        self._changed()
        return self._epochs[number]

    def _next_epoch(self, number: int) -> int:
        epoch = self.epoch(number)
        if epoch >= EPOCH_MAX:
            raise StoreError(
                f"license number {number} has used all its epochs: have it issued with a new number"
            )
        return epoch + 1

    @contextmanager
    def batch(self) -> Iterator[None]:
        """Write once at the end of the block, for a whole folder of licenses.

        After an error in the block nothing is undone in memory, and what was changed until
        then is written.
        """
        self._batches += 1
        try:
            yield
        finally:
            self._batches -= 1
            if self._batches == 0 and self._dirty:
                self._write()

    def _changed(self) -> None:
        self._dirty = True
        if self._batches == 0:
            self._write()

    def _write(self) -> None:
        body: dict[str, Any] = {
            "generations": self._generations,
            "numbers": {str(number): jti for number, jti in self._numbers.items()},
            "epochs": {str(number): epoch for number, epoch in self._epochs.items()},
            "statements": [
                asdict(statement)
                for held in self._statements.values()
                for statement in held.values()
            ],
        }
        self._state.write_document(_SPARE, _SCHEMA, body)
        self._state.write_document(_DOCUMENT, _SCHEMA, body)
        self._dirty = False

    def _read(self) -> tuple[list[dict[str, Any]], DocumentDamaged | None]:
        bodies: list[dict[str, Any]] = []
        damaged: DocumentDamaged | None = None
        for name in (_SPARE, _DOCUMENT):
            try:
                body = self._state.read_document(name, _SCHEMA)
            except DocumentDamaged as error:
                damaged = error
            else:
                if body is not None:
                    bodies.append(body)
        if not bodies and damaged is not None:
            raise damaged
        return bodies, damaged

    def _take(self, body: dict[str, Any]) -> None:
        self._generations = dict(body["generations"])
        self._numbers = {int(number): jti for number, jti in body["numbers"].items()}
        self._epochs = {int(number): epoch for number, epoch in body["epochs"].items()}
        for fields in body["statements"]:
            statement = Statement(**fields)
            self._statements.setdefault(statement.license, {})[statement.id] = statement
