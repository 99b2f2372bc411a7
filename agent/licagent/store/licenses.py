# SPDX-License-Identifier: Apache-2.0
"""What must not be forgotten of licenses: newest generations, revocations, epochs.

Losing this would bring revoked licenses back, so two copies are kept, the spare one written
first: while one of them is whole, nothing that was acknowledged is lost.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Final, Literal

from licagent.store.errors import DocumentDamaged, StoreError
from licagent.store.statedir import StateDir

_DOCUMENT: Final = "licenses"
_SPARE: Final = "licenses-spare"
_SCHEMA: Final = "licagent.licenses/1"
EPOCH_FIRST: Final = 1
EPOCH_MAX: Final = 0xFFFFFFFF

Action = Literal["revoke", "suspend", "reinstate"]


class LicenseNotAccepted(StoreError):
    """A license that verifies, but not beside what this host has seen before."""

    refusal: ClassVar[str]
    """The reason's name, in the style of `lictoken.errors.Refusal`."""


class ReplayedGeneration(LicenseNotAccepted):
    """A license older than one of the same id that was accepted before."""

    refusal = "replayed"

    def __init__(self, jti: str, generation: int, newest: int) -> None:
        """`newest` is the generation on record."""
        super().__init__(
            f"license {jti} is of generation {generation}, but {newest} was accepted before: "
            "install the newest file, or have the issuer issue it again"
        )
        self.jti = jti
        self.generation = generation
        self.newest = newest


class IdTaken(LicenseNotAccepted):
    """A license has the id of one that another issuer made.

    Ids are the issuers' own to choose. If two could share one, the second issuer could replace
    the first one's licenses, and outlive its revocations.
    """

    refusal = "id-taken"

    def __init__(self, jti: str, issuer: str, owner: str) -> None:
        """`owner` is the issuer that this host saw first."""
        super().__init__(
            f"license {jti} is of the issuer {issuer}, but this host knows that id from the "
            f"issuer {owner}: have it issued with an id of its own"
        )
        self.jti = jti
        self.issuer = issuer
        self.owner = owner


class RecordsLost(LicenseNotAccepted):
    """A license that was not seen since the records were lost: it may have been revoked."""

    refusal = "records-lost"

    def __init__(self, jti: str) -> None:
        """`jti` is the license's id."""
        super().__init__(
            f"license {jti} may have been revoked: the records of this host were damaged and "
            "set aside. Ask the issuer, then confirm it: licagent license add FILE"
        )
        self.jti = jti


class NumberTaken(LicenseNotAccepted):
    """A license has the number of another one."""

    refusal = "number-taken"

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

        When both are damaged, `lost` is true from then on: what was revoked is not known any
        more, so each license counts only after root has confirmed it (`accept`).
        """
        self._state = state
        self.lost = False
        self._issuers: dict[str, str] = {}
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
        elif self.damaged is not None:
            self.lost = True
            self._write()  # a later start must know it too
        if bodies and bodies != [bodies[0]] * 2:
            self._write()  # two whole and equal copies again

    def accept(
        self, jti: str, number: int, generation: int, *, issuer: str, confirmed: bool = False
    ) -> bool:
        """Put a license on record before it is used; whether it was new or newer.

        `confirmed`: root brings this very license now, which a file in a folder does not say.

        Raises IdTaken, ReplayedGeneration, RecordsLost or NumberTaken; then nothing is changed.
        """
        owner = self._issuers.get(jti)
        if owner is not None and owner != issuer:
            raise IdTaken(jti, issuer, owner)
        newest = self._generations.get(jti, 0)
        if generation < newest:
            raise ReplayedGeneration(jti, generation, newest)
        if self.lost and not confirmed and not newest:
            raise RecordsLost(jti)
        holder = self._numbers.get(number)
        if holder is not None and holder != jti:
            raise NumberTaken(jti, number, holder)
        if generation == newest and holder == jti and owner is not None:
            return False
        self._issuers[jti] = issuer
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
            "lost": self.lost,
            "issuers": self._issuers,
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
        return bodies, damaged

    def _take(self, body: dict[str, Any]) -> None:
        self.lost = bool(body.get("lost"))
        self._issuers = dict(body.get("issuers", {}))
        self._generations = dict(body["generations"])
        self._numbers = {int(number): jti for number, jti in body["numbers"].items()}
        self._epochs = {int(number): epoch for number, epoch in body["epochs"].items()}
        for fields in body["statements"]:
            statement = Statement(**fields)
            self._statements.setdefault(statement.license, {})[statement.id] = statement
