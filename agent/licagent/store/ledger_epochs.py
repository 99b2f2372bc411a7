# SPDX-License-Identifier: Apache-2.0
"""The ledger's epochs: which there are, which one commits go to, their keys, whose they are."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Final

from licagent.store.epochkeys import EpochKeys, new_epoch
from licagent.store.frame_heads import ChainEntry
from licagent.store.ledger_recovery import Chain
from licagent.store.ledger_types import Gap
from licagent.store.usagechain import EpochKey

_NOTES: Final = 32


class Findings:
    """What was found since the ledger was opened: gaps, and notes for people."""

    def __init__(self, notes: Iterable[str]) -> None:
        self.notes = deque(notes, maxlen=_NOTES)
        self._gaps: dict[tuple[int, int], Gap] = {}

    @property
    def gaps(self) -> tuple[Gap, ...]:
        """Each once, by where it begins."""
        return tuple(self._gaps.values())

    def add(self, gap: Gap, fate: str = "are lost") -> None:
        """A gap; said once."""
        if (gap.epoch, gap.first) not in self._gaps:
            which = f"records {gap.first} to {gap.last} of epoch {gap.epoch}"
            self.notes.append(f"{which} {fate}: {gap.reason}")
        self._gaps[gap.epoch, gap.first] = gap


class Epochs:
    """In memory what the newest frame and the file of keys say; the caller serializes calls."""

    def __init__(
        self,
        keys_file: EpochKeys,
        chains: dict[int, Chain],
        *,
        used: Iterable[int],
        must_renew: bool,
        now_unix_ms: Callable[[], int],
        findings: Findings,
    ) -> None:
        """Choose the epoch that commits go to. Raises OSError.

        `chains`: oldest first, that of the newest frame last. `used`: epochs of the files that
        are there, which no new epoch may have. `must_renew`: do not go on with the newest one.
        """
        self._file = keys_file
        self._now = now_unix_ms
        self._findings = findings
        self.chains = chains
        self._keys, problem = keys_file.load()
        self._used = {*chains, *self._keys, *used}
        self._is_saved = True
        if problem:
            findings.notes.append(f"the ledger's keys are damaged ({problem})")
        newest = next(reversed(chains.values()), None)
        key = self._keys.get(newest.epoch) if newest is not None else None
        if newest is not None and key is not None and key.public_key == newest.public_key:
            if not must_renew:
                self.current = newest
                return
        elif newest is not None:
            findings.notes.append("the key of the ledger's epoch is lost: a new epoch is begun")
        self.current = self._add()

    def key_of(self, epoch: int) -> EpochKey | None:
        """None where it is lost."""
        return self._keys.get(epoch)

    @property
    def delivering(self) -> Chain:
        """The oldest that has something to deliver, else the current one."""
        return next(self.waiting(), self.current)

    def waiting(self) -> Iterator[Chain]:
        """Those with something to deliver, oldest first."""
        return (chain for chain in tuple(self.chains.values()) if not chain.is_done)

    def entries(self) -> tuple[ChainEntry, ...]:
        """For a frame to remember."""
        return tuple(chain.entry() for chain in self.chains.values())

    def begin(self, reason: str) -> bool:
        """Have a current epoch without records; whether it is a new one. Raises OSError."""
        before = self.current
        if before.next_sequence == 1 and not before.is_closed:
            return False
        self.current = self._add()
        try:
            self.save_keys()
        except OSError:
            del self.chains[self.current.epoch]
            self.current = before
            raise
        self._findings.notes.append(f"a new epoch was begun: {reason}")
        return True

    def save_keys(self) -> None:
        """Keep the keys of what is signed from now on, before it is signed. Raises OSError."""
        if self._is_saved:
            return
        needed = {
            epoch: key
            for epoch, key in self._keys.items()
            if (chain := self.chains.get(epoch)) and (chain is self.current or not chain.is_done)
        }
        self._file.save(needed)
        self._keys = needed
        self._is_saved = True

    def follow_host(self, host_id: str) -> bool:
        """An epoch belongs to one host: after its first signature with a name, to that one.

        Whether a new epoch was begun. Raises OSError.
        """
        if self.current.host_id in ("", host_id):
            return False
        reason = "the host has become another one"
        is_new = self.begin(reason)
        if host_id:  # without one it may come back as what it was
            for chain in list(self.chains.values()):
                if chain.host_id not in ("", host_id):
                    self.close(chain, reason)
        return is_new

    def close(self, chain: Chain, reason: str) -> None:
        """Deliver nothing more of it; what was not delivered is a gap by name."""
        if not chain.is_done:
            first, last = chain.acked + 1, chain.next_sequence - 1
            gap = Gap(chain.epoch, first, last, reason, chain.last_hash)
            self._findings.add(gap, "are not delivered")
        chain.is_closed = True

    def prune(self, held: set[int]) -> None:
        """Forget what is delivered and of which no file is left."""
        for epoch, chain in list(self.chains.items()):
            if chain.is_done and epoch not in held and chain is not self.current:
                del self.chains[epoch]

    def _add(self) -> Chain:
        epoch = new_epoch(self._now(), max(self._used, default=0))
        key = EpochKey.make()
        self._used.add(epoch)
        self._keys[epoch] = key
        self._is_saved = False
        chain = self.chains[epoch] = Chain(epoch, key.public_key)
        return chain
