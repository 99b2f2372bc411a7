# SPDX-License-Identifier: Apache-2.0
"""The owner of a row: from the kernel's numbers to names that a bill can show.

Names are looked up once for each owner. What the host could not tell (a program that ended
before anybody saw it) is asked again with the next sheet, for another run of it may be alive.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, Final, NamedTuple, Protocol

from licagent.domain.attribution import Attribution
from licagent.domain.decision import Subject
from licagent.domain.usage import UsageOwner
from licagent.domain.usage_lines import COMPUTE_METERS, Amounts, UsageLine
from licagent.metering.rows import PackedRows, WhoRow, WorkRow

_PAGE_OWNERS: Final = 2048
"""Above it a new page is begun: what no sheet has had since the page before is forgotten."""
_numbers: Final = itertools.count(1)
_NO_OWNER: Final = 0xFFFFFFFE
"""(uid_t)-1 and -2 are nobody's."""


class HostNames(Protocol):
    """What the host says about numbers. Answers are remembered by whoever gives them."""

    def cgroup(self, number: int) -> str:
        """The path of a cgroup below the agent's root; "" where it is not known."""
        ...  # pragma: no cover

    def relative(self, path: str) -> str:
        """A cgroup's path from the root of the hierarchy, below the agent's root; "" outside."""
        ...  # pragma: no cover

    def unit(self, cgroup: str) -> str:
        """Its systemd unit or container, as selectors name them; "" if it is none."""
        ...  # pragma: no cover

    def user(self, uid: int) -> str:
        """The name of a user; the number as text where it has none."""
        ...  # pragma: no cover

    def executable(self, who: WhoRow) -> str:
        """The path of what a process runs; "" where it cannot be told any more."""
        ...  # pragma: no cover

    def process_start_unix_ms(self, start_ns: int) -> int:
        """The wall time of a CLOCK_BOOTTIME reading, the same for one reading at all times."""
        ...  # pragma: no cover


class Charging(Protocol):
    """What use is charged to, under the policy that was in force while it went on."""

    def compute(self, subject: Subject) -> Attribution:
        """Compute, memory and storage input and output of a subject."""
        ...  # pragma: no cover

    def network(self, license_: int, resource: int, subject: Subject) -> Attribution:
        """Network use that the kernel counted under these numbers."""
        ...  # pragma: no cover

    def footprint(self, resource: str, uid: int | None) -> Attribution:
        """Stored bytes of a storage resource; `uid` of a user's footprint."""
        ...  # pragma: no cover

    def scopes(self, cgroup: str) -> tuple[int, ...]:
        """Numbers of the scopes that a cgroup lies in, the deepest first."""
        ...  # pragma: no cover


@dataclass(slots=True, eq=False)
class Known:
    """One owner, named. Compared by identity; nothing but `place` changes."""

    owner: UsageOwner
    subject: Subject
    compute: Attribution
    line: UsageLine
    """The same for all rows of one owner under one license."""
    shares: tuple[str, str]
    """Unit and license: what many owners have in common. Mostly one object for all of them."""
    number: int
    """No other one has it, ever: for whoever remembers it without keeping it."""
    place: Any = None
    """For the one `ProcessTable` that adds up by these owners: where."""


Key = Any
"""Of an owner: what he is known by. A row's `who`, or the kernel's bytes for it."""


class OwnedWork(NamedTuple):
    """What a sheet's rows of work say, row by row."""

    keys: Sequence[Key]
    who: Callable[[Key], WhoRow]
    """What a key says."""
    owners: Sequence[Known]
    amounts: Sequence[Amounts]
    """None of them is negative."""


work_amounts: Final[Callable[[WorkRow], Amounts]] = attrgetter(
    *(meter.key for meter in COMPUTE_METERS)
)
"""The quantities of a row in the order of COMPUTE_METERS."""


class OwnerBook:
    """Owners by the kernel's numbers, under one policy. Not for several threads at once."""

    def __init__(self, names: HostNames) -> None:
        self._names = names
        self._charging: Charging | None = None
        self._known: dict[Key, Known] = {}
        self._before: dict[Key, Known] = {}
        """The page before: with 10,000 live processes both have the same, shared."""
        self._lines: dict[tuple[UsageOwner, Attribution], UsageLine] = {}
        self._shares: dict[tuple[str, str], tuple[str, str]] = {}
        self._rows = 0
        """Of the last sheet."""
        self._unsure: list[Key] = []

    def begin(self, charging: Charging) -> None:
        """Answer under this policy from now on; once for each sheet."""
        for key in self._unsure:
            self._known.pop(key, None)
        self._unsure.clear()
        if charging is not self._charging:
            self._charging = charging
            self._known, self._before, self._lines, self._shares = {}, {}, {}, {}
        elif len(self._known) > max(_PAGE_OWNERS, self._rows + self._rows // 4):
            # More than lately were in a sheet: some are gone.
            self._known, self._before = {}, self._known
        held = len(self._known) + len(self._before)
        if len(self._lines) > held + _PAGE_OWNERS:
            self._shares = {}
            pages = (self._before, self._known)
            self._lines = {
                (known.owner, known.compute): known.line
                for page in pages
                for known in page.values()
            }

    @property
    def charging(self) -> Charging:
        """The policy of `begin`."""
        if self._charging is None:
            raise RuntimeError("no sheet was begun")
        return self._charging

    def of(self, who: WhoRow) -> Known:
        """The owner of a row."""
        return self._known.get(who) or self._found(who, _itself)

    def _found(self, key: Key, who: Callable[[Key], WhoRow]) -> Known:
        found = self._before.get(key)
        if found is None:
            found = self._look_up(who(key), key)
        self._known[key] = found
        return found

    def of_work(self, rows: Sequence[WorkRow]) -> OwnedWork:
        """Owner and amounts of each row of a sheet."""
        self._rows = len(rows)
        keys: Sequence[Key]
        amounts: Sequence[Amounts]
        if isinstance(rows, PackedRows):
            keys, amounts, who = rows.keys, rows.amounts, rows.who
        else:
            keys = [row.who for row in rows]
            amounts = [_not_negative(work_amounts(row)) for row in rows]
            who = _itself
        known, found = self._known.get, self._found
        owners = [known(key) or found(key, who) for key in keys]
        return OwnedWork(keys, who, owners, amounts)

    def __len__(self) -> int:
        return len(self._known.keys() | self._before.keys())

    def _look_up(self, who: WhoRow, key: Key) -> Known:
        names, charging = self._names, self.charging
        cgroup = names.cgroup(who.cgroup)
        if not cgroup and (told := getattr(who, "cgroup_path", "")):
            cgroup = names.relative(told)  # it is gone, and the fallback had seen it
        executable = _executable(who) or names.executable(who)
        if not executable or not cgroup:
            self._unsure.append(key)
        uid = who.uid if who.uid < _NO_OWNER else -1
        owner = UsageOwner(
            unit=(names.unit(cgroup) or cgroup) if cgroup else "",
            cgroup=cgroup,
            user=names.user(uid) if uid >= 0 else "",
            uid=uid,
            executable=executable,
            pid=who.pid,
            process_start_unix_ms=(
                names.process_start_unix_ms(who.start_ns) if who.pid and who.start_ns else 0
            ),
        )
        subject = Subject(
            path=who.path,
            digest=who.digest,
            scopes=charging.scopes(cgroup) if cgroup else (),
            uid=who.uid,
            gid=who.gid,
        )
        compute = charging.compute(subject)
        line = self._lines.get((owner, compute))
        if line is None:
            line = UsageLine(owner, compute.license, compute.resource, compute.binding)
            self._lines[owner, compute] = line
        shares = (owner.unit, compute.license)
        shares = self._shares.setdefault(shares, shares)
        return Known(owner, subject, compute, line, shares, next(_numbers))


def _itself(key: WhoRow) -> WhoRow:
    return key


def _not_negative(amounts: Amounts) -> Amounts:
    if min(amounts) >= 0:
        return amounts
    return tuple(max(0, each) for each in amounts)  # type: ignore[return-value]


def _executable(who: WhoRow) -> str:
    """What the row itself says: the fallback's path, or the name of a kernel thread."""
    told = getattr(who, "executable", "")
    if told:
        return str(told)
    # Kernel threads have no executable (identity.bpf.c), and are the system's.
    if not who.inode and not who.uid and who.pid:
        return f"[{who.comm}]"
    return ""
