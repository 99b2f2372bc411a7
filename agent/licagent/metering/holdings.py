# SPDX-License-Identifier: Apache-2.0
"""Bytes times time from single measurements. Pure: sizes and instants come in, sums go out.

A measured size holds until the next measurement. Time is CLOCK_BOOTTIME within one boot, which
no step of the wall clock moves and which goes on while the machine sleeps. Across boots there is
the wall clock alone: such time is counted, because the bytes were still there, and is estimated;
a backward step counts nothing, and more than `LONGEST_UNKNOWN_MS` is not believed.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

LONGEST_UNKNOWN_MS: Final = 7 * 86_400_000
"""Between two boots: a longer time is more likely a clock that was wrong, and is not counted."""

_VERSION: Final = 1

Key = tuple[str, int]
"""Name of the footprint, and owner (-1 where it has none)."""


@dataclass(frozen=True, slots=True)
class Instant:
    """One moment in both clocks."""

    boot_id: str
    boottime_ms: int
    unix_ms: int


@dataclass(frozen=True, slots=True)
class Measured:
    """One measurement of a footprint."""

    sizes: Mapping[int, tuple[int, int]]
    """By owner: bytes and inodes."""
    note: str = ""
    """Why it is not exact; "" if it is."""


@dataclass(frozen=True, slots=True)
class Stretch:
    """What one owner held between the last commit and the last measurement."""

    name: str
    owner: int
    start_unix_ms: int
    end_unix_ms: int
    byte_ms: int
    size_bytes: int
    inodes: int
    why_estimated: str
    uncounted_ms: int


@dataclass(frozen=True, slots=True)
class Totals:
    """Where one account stood when it was sampled: what a commit of that sample settles."""

    byte_ms: int
    counted_ms: int
    uncounted_ms: int
    notes: tuple[str, ...]


@dataclass(slots=True)
class _Account:
    """One owner's bytes. The sums only grow; what is committed of them is remembered beside."""

    at: Instant
    size_bytes: int
    inodes: int
    byte_ms: int = 0
    counted_ms: int = 0
    uncounted_ms: int = 0
    notes: list[str] = field(default_factory=list)
    committed: Totals = Totals(0, 0, 0, ())
    quality_note: str = ""
    """Of the last measurement: the time until the next one is as good as that."""

    def pass_time(self, now: Instant, expected_ms: int) -> None:
        """Count the time until `now` with the size that was held."""
        if now.boot_id == self.at.boot_id:
            duration = now.boottime_ms - self.at.boottime_ms
            if duration < 0:
                return  # measured before what is known already, as a walk that ended late is
            if expected_ms and duration > 2 * expected_ms + 60_000:
                self.note(f"not measured for {duration // 1000} s")
        else:
            duration = now.unix_ms - self.at.unix_ms
            if duration < 0:
                self.note("the clock went back between two boots: that time is not counted")
                duration = 0
            elif duration > LONGEST_UNKNOWN_MS:
                self.note(f"{duration // 1000} s between two boots are not counted")
                self.uncounted_ms += duration
                duration = 0
            else:
                self.note(f"{duration // 1000} s between two boots by the wall clock")
        self.note(self.quality_note)
        self.byte_ms += self.size_bytes * duration
        self.counted_ms += duration
        self.at = now

    def note(self, text: str) -> None:
        if text and text not in self.notes:
            self.notes.append(text)

    def totals(self) -> Totals:
        return Totals(self.byte_ms, self.counted_ms, self.uncounted_ms, tuple(self.notes))


class Accounts:
    """The accounts of all footprints."""

    def __init__(self, baseline: bytes, *, names: frozenset[str]) -> None:
        """Go on from a baseline; one that is damaged or of another version starts anew."""
        self._accounts: dict[Key, _Account] = {
            (name, owner): account
            for name, owner, account in _from_baseline(baseline)
            if name in names
        }

    def measured(self, name: str, at: Instant, found: Measured, expected_ms: int) -> None:
        """A footprint was measured; owners that are not in it hold nothing any more."""
        for key, account in self._of(name):
            account.pass_time(at, expected_ms)
            account.size_bytes, account.inodes = found.sizes.get(key[1], (0, 0))
            account.quality_note = found.note
        for owner, (size_bytes, inodes) in found.sizes.items():
            if (name, owner) not in self._accounts:
                account = _Account(at, size_bytes, inodes, quality_note=found.note)
                self._accounts[name, owner] = account

    def not_measured(self, name: str, at: Instant, why: str) -> None:
        """It should have been: the last size goes on, estimated."""
        for _, account in self._of(name):
            account.note(why)
            account.pass_time(at, 0)

    def carry_on(self, now: Instant) -> None:
        """Count until `now` with the sizes that were measured last."""
        for account in self._accounts.values():
            account.pass_time(now, 0)

    def held(self, name: str) -> list[tuple[int, int, int, int]]:
        """By owner: the owner, bytes, inodes and when that was measured (unix ms)."""
        return [
            (key[1], account.size_bytes, account.inodes, account.at.unix_ms)
            for key, account in self._of(name)
        ]

    def stretches(self) -> list[Stretch]:
        """What is not committed yet."""
        found = []
        for (name, owner), account in self._accounts.items():
            settled = account.committed
            counted = account.counted_ms - settled.counted_ms
            uncounted = account.uncounted_ms - settled.uncounted_ms
            if not counted and not uncounted:
                continue
            found.append(
                Stretch(
                    name=name,
                    owner=owner,
                    start_unix_ms=account.at.unix_ms - counted,
                    end_unix_ms=account.at.unix_ms,
                    byte_ms=account.byte_ms - settled.byte_ms,
                    size_bytes=account.size_bytes,
                    inodes=account.inodes,
                    why_estimated="; ".join(account.notes[len(settled.notes) :]),
                    uncounted_ms=uncounted,
                )
            )
        return found

    def totals(self) -> dict[Key, Totals]:
        """For `committed`."""
        return {key: account.totals() for key, account in self._accounts.items()}

    def committed(self, totals: Mapping[Key, Totals]) -> None:
        """What stood in the accounts at these totals is on disk."""
        for key, settled in totals.items():
            account = self._accounts.get(key)
            if account is None:
                continue
            account.notes = account.notes[len(settled.notes) :]
            account.committed = Totals(
                settled.byte_ms, settled.counted_ms, settled.uncounted_ms, ()
            )
            # Owners that hold nothing need no account; the footprint itself keeps one.
            if not account.size_bytes and account.totals() == account.committed and key[1] >= 0:
                del self._accounts[key]

    def baseline(self) -> bytes:
        """The sizes and when they were measured; for `__init__` after a restart."""
        boots: list[str] = []
        notes: list[str] = []
        held = []
        for (name, owner), account in self._accounts.items():
            if account.at.boot_id not in boots:
                boots.append(account.at.boot_id)
            if account.quality_note not in notes:
                notes.append(account.quality_note)
            at = (boots.index(account.at.boot_id), account.at.boottime_ms, account.at.unix_ms)
            held.append([name, owner, account.size_bytes, account.inodes, *at])
            held[-1].append(notes.index(account.quality_note))
        content = {"version": _VERSION, "boots": boots, "notes": notes, "held": held}
        return zlib.compress(json.dumps(content, separators=(",", ":")).encode())

    def _of(self, name: str) -> list[tuple[Key, _Account]]:
        return [(key, account) for key, account in self._accounts.items() if key[0] == name]


def _from_baseline(baseline: bytes) -> Iterator[tuple[str, int, _Account]]:
    if not baseline:
        return
    try:
        content: dict[str, Any] = json.loads(zlib.decompress(baseline))
        if content["version"] != _VERSION:
            return
        boots, notes = content["boots"], content["notes"]
        accounts = []
        for name, owner, size, inodes, boot, boottime, unix, note in content["held"]:
            at = Instant(boots[boot], boottime, unix)
            accounts.append((name, owner, _Account(at, size, inodes, quality_note=notes[note])))
    except (zlib.error, ValueError, KeyError, TypeError, IndexError):
        return
    yield from accounts
