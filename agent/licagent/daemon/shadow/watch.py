# SPDX-License-Identifier: Apache-2.0
"""For how long this host has watched each resource, and since when its rules are as they are.

Time counts while the daemon runs. Without it the kernel goes on deciding and counting, but there
is nobody to write down who it was, so that time says nothing about who would be refused. It is
summed up rather than taken from a date: a clock that is set makes nothing older than it is. A
resource that was gone for a while, or that matches something else now, begins anew. After a kill
or a power cut up to a minute is missing.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import struct
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Final

from licagent.daemon.decisions import rfc3339
from licagent.domain.policy_model import ENFORCED_KINDS, Resource
from licagent.domain.tables import Tables
from licagent.store.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Callable

    from licagent.daemon.agent import Agent
    from licagent.daemon.policy.compiled import Compiled
    from licagent.daemon.service import OnKernel
    from licagent.store.statedir import StateDir

_log: Final = logging.getLogger(__name__)

_DOCUMENT: Final = "shadow-watch"
_SCHEMA: Final = "licagent.shadow-watch/1"
_LOOK_S: Final = 5.0
_SAVE_S: Final = 60.0
_GAP_MAX_S: Final = 30.0
"""A daemon that hung for longer has not watched: records may have been lost meanwhile."""


@dataclass(slots=True)
class Watched:
    """One resource of the policy in force."""

    match: str  # digest of what it covers
    rules: str  # digest of who may use it by which license
    since: str  # RFC 3339; when it began
    rules_since: str
    watched_s: float = 0.0


class WatchBook:
    """What is kept of each resource, in the state folder. Not for several threads at once."""

    def __init__(self, state: StateDir) -> None:
        self._state = state
        self.resources: dict[str, Watched] = {}
        try:
            body = state.read_document(_DOCUMENT, _SCHEMA)
            if body is not None:
                self.resources = {
                    str(name): Watched(**each) for name, each in body["resources"].items()
                }
        except (StoreError, AttributeError, KeyError, TypeError) as error:  # damaged, or another's
            _log.error("every resource is watched anew: %s", error)

    def follow(self, digests: Mapping[str, tuple[str, str]], since: str) -> bool:
        """Take over the resources of a policy, in force since `since`; whether any is another."""
        before, self.resources = self.resources, {}
        is_changed = before.keys() != digests.keys()
        for name, (match, rules) in digests.items():
            held = before.get(name)
            if held is None or held.match != match:
                held = Watched(match, rules, since, since)
                is_changed = True
            elif held.rules != rules:
                held.rules, held.rules_since = rules, since
                is_changed = True
            self.resources[name] = held
        return is_changed

    def add(self, seconds: float) -> None:
        """All of them were watched for so much longer."""
        for each in self.resources.values():
            each.watched_s += seconds

    def save(self) -> None:
        """Make it durable; a disk that refuses costs no more than time that has to be watched.

        Blocks for as long as the disk takes.
        """
        body = {"resources": {name: asdict(each) for name, each in self.resources.items()}}
        try:
            self._state.write_document(_DOCUMENT, _SCHEMA, body)
        except StoreError as error:
            _log.error("%s", error)


class ShadowWatch:
    """Follows the policy in force, on the event loop."""

    def __init__(
        self, agent: Agent, on_kernel: OnKernel, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`clock` must not run while the host sleeps."""
        self._agent = agent
        self._on_kernel = on_kernel
        self._clock = clock
        self._book: WatchBook | None = None
        self._tables: Tables | None = None
        self._looked_s = 0.0
        self._saved_s = 0.0
        self._lock = asyncio.Lock()
        self._changed = asyncio.Event()

    def tell(self) -> None:
        """The policy may be another. On the event loop's thread."""
        self._changed.set()

    async def run(self) -> None:
        """Look every few seconds, and when a policy comes; save what was seen in the end."""
        try:
            while True:
                await self.look()
                self._changed.clear()
                try:
                    async with asyncio.timeout(_LOOK_S):
                        await self._changed.wait()
                except TimeoutError:
                    continue
        finally:
            async with self._lock:  # `shadow` may be looking
                if self._book is not None:
                    self._count_time(self._book)
                    await self._save(self._book)

    async def look(self) -> Mapping[str, Watched]:
        """Bring the book up to now; what it says. Do not change that."""
        async with self._lock:
            book = self._book
            if book is None:
                book = self._book = await asyncio.to_thread(WatchBook, self._agent.state)
                self._looked_s = self._saved_s = self._clock()
            compiled, loaded_at = await self._on_kernel(
                lambda: (self._agent.policy.compiled, self._agent.policy.loaded_at)
            )
            # What was there until now has been watched until now.
            self._count_time(book)
            is_changed = False
            if compiled is not None and compiled.tables is not self._tables:
                digests = await asyncio.to_thread(digests_of, compiled)
                is_changed = book.follow(digests, rfc3339(loaded_at))
                self._tables = compiled.tables
            if is_changed or self._looked_s - self._saved_s >= _SAVE_S:
                await self._save(book)
                self._saved_s = self._looked_s
            return book.resources

    async def _save(self, book: WatchBook) -> None:
        """Save on a thread: a disk that stands still must not hold up the loop. With the lock.

        Nobody may change the book, nor save it once more, before the thread is done with it. So
        whoever is cancelled meanwhile keeps the lock until then.
        """
        saving = asyncio.ensure_future(asyncio.to_thread(book.save))
        try:
            await asyncio.shield(saving)
        except asyncio.CancelledError:
            while not saving.done():
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.wait({saving})
            raise

    def _count_time(self, book: WatchBook) -> None:
        now_s = self._clock()
        passed_s = now_s - self._looked_s
        if self._tables is not None and 0 < passed_s <= _GAP_MAX_S:
            book.add(passed_s)
        self._looked_s = now_s


def digests_of(compiled: Compiled) -> dict[str, tuple[str, str]]:
    """Of each resource that is decided on: of what it covers, and of its rules."""
    resources = (*compiled.local.resources, *compiled.managed.resources.values())
    rules = _rules_by_resource(compiled.tables)
    numbers = {each.name: each.number for each in compiled.tables.resources}
    return {
        each.name: (match_of(each), f"{rules.get(numbers.get(each.name, 0), 0):016x}")
        for each in resources
        if each.kind in ENFORCED_KINDS
    }


def match_of(resource: Resource) -> str:
    """A digest of what a resource covers, in whatever order it is written."""
    places = sorted(
        (
            *(each.family, each.address, each.prefix_length),
            sorted((ports.first, ports.last) for ports in each.ports),
            sorted(map(int, each.protocols)),
        )
        for each in resource.destinations
    )
    ports = sorted((each.first, each.last) for each in resource.ports)
    text = repr((resource.kind.value, places, ports, sorted(map(int, resource.protocols))))
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _rules_by_resource(tables: Tables) -> dict[int, int]:
    """A sum of the rules' digests, so that their order does not count."""
    found: dict[int, int] = {}
    for rule in tables.rules:
        key = rule.key
        who = (key.path, key.digest, key.scope, key.uid, key.gid)
        digest = hashlib.blake2b(_packed((*who, *rule.licenses)), digest_size=8).digest()
        value = int.from_bytes(digest, "little")
        found[key.resource] = (found.get(key.resource, 0) + value) & 0xFFFFFFFFFFFFFFFF
    return found


def _packed(numbers: Iterable[int]) -> bytes:
    words = tuple(numbers)
    return struct.pack(f"={len(words)}Q", *words)
