# SPDX-License-Identifier: Apache-2.0
"""Keeps the kernel's picture of executables and cgroups true to the policy."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Final

from licagent.daemon.exec_times import ExecTimes
from licagent.domain.tables import Scope, ScopeKind, Tables
from licagent.host.cgroup_names import SCOPE_ORDER, matches
from licagent.host.cgroups import CgroupTree
from licagent.host.digests import DigestCache
from licagent.host.executables import DirectoryEntry, FileIdentity
from licagent.host.hostroot import as_host_sees
from licagent.host.lanes import Started
from licagent.host.measurer import Measurer
from licagent.host.path_finder import PATIENCE_S, PathFinder
from licagent.kernel.enforcement_structs import Event
from licagent.kernel.identity import IdentityTables, path_key, scope_key
from licagent.kernel.iterators import Iterators
from licagent.kernel.numbers import MAX_SCOPES

_log: Final = logging.getLogger(__name__)

_FIRST_WAIT_S: Final = 5.0
"""At a start nothing else waits; root's programs take seconds to read at the worst."""
_WAIT_S: Final = 0.5
_SEED_EVERY_S: Final = 0.5
_LOOK_AT_MOST: Final = 1000
"""Paths that are looked at without the other thread, at some 0.1 ms each."""

_LOOK_AGAIN_S: Final = 0.5
"""For paths that were looked up a moment ago: a revocation waits meanwhile."""

_PROBLEMS_MAX: Final = 10

_CONTAINER_NAMES: Final = (
    "{}",
    "docker-{}.scope",
    "libpod-{}.scope",
    "crio-{}.scope",
    "cri-containerd-{}.scope",
    "nerdctl-{}.scope",
)
"""Names that container engines give the cgroup of a container with a full id."""


class IdentityKeeper:
    """Writes paths, contents, scope names and cgroups. Not for several threads at once.

    Files are read by a thread of their own (licagent.host.measurer); what it found is written
    here, by the policy of that moment.
    """

    def __init__(
        self,
        tables: IdentityTables,
        iterators: Iterators,
        tree: CgroupTree,
        digests: DigestCache,
        *,
        exec_times: ExecTimes,
        measured: Callable[[], None],
    ) -> None:
        """`measured` is called on another thread when `take_measured` has something to do."""
        self._tables = tables
        self._iterators = iterators
        self._tree = tree
        self._digests = digests
        self._exec_times = exec_times
        self._policy = Tables()
        self._wanted: dict[str, int] = {}  # digest -> number
        self._written: dict[int, tuple[int, ...]] = {}  # cgroup id -> scopes
        self._measurer = Measurer(digests, measured)
        self._measurer.start()
        self._finder = PathFinder()
        self._entries: dict[bytes, int] = {}  # folder entry -> number, of the policy in force
        self._prepared: dict[bytes, int] = {}  # the same of the one that was prepared last
        self._is_first = True  # no policy was settled yet
        self._is_seed_due = False
        self._next_seed_s = 0.0
        self._path_problems: tuple[str, ...] = ()
        self._scope_problems: tuple[str, ...] = ()

    def prepare(self, tables: Tables) -> None:
        """Add what a new policy needs, before it is in force; nothing is taken away yet."""
        self._prepared = self._path_entries(tables)
        self._tables.set_paths(self._prepared, prune=False)
        union = {scope.number: scope for scope in (*self._policy.scopes, *tables.scopes)}
        self._tables.set_scope_names(self._scope_entries(tuple(union.values())), prune=False)
        self._write_cgroups(tuple(union.values()))
        # The policy in force still needs its own: this one may yet be refused.
        self._wanted |= {digest: number for number, digest in tables.digests}
        if tables.digests:
            self._measure_named(tables)
        self._write_contents()
        self._iterators.seed_processes()

    def settle(self, tables: Tables) -> None:
        """Take away what only the old policy needed, once the new one is in force."""
        self._policy = tables
        self._wanted = {digest: number for number, digest in tables.digests}
        self._entries = self._path_entries(tables, _LOOK_AGAIN_S)
        self._tables.set_paths(self._entries, prune=True)
        if self._entries != self._prepared:  # found only now
            self._iterators.seed_processes()
        self._tables.set_scope_names(self._scope_entries(tables.scopes), prune=True)
        self._write_cgroups(tables.scopes)
        self._is_first = False
        if self._wanted:
            self._measurer.scan()
        else:
            self._measurer.rest()

    def refresh(self) -> None:
        """Look again, every few seconds: folders that were replaced, cgroups seen late."""
        self._exec_times.look()
        if self._policy.paths:
            entries = self._path_entries(self._policy, _LOOK_AGAIN_S)
            self._tables.set_paths(entries, prune=True)
            if entries != self._entries:
                # Who began in a folder before it was known is known from now on, too.
                self._iterators.seed_processes()
            self._entries = entries
        if self._policy.scopes:
            self._write_cgroups(self._policy.scopes)
        for gone in self._digests.forget_unmounted():
            self._tables.forget_content(gone.device, gone.inode, gone.ctime_ns)

    def close(self) -> None:
        """Measure no more."""
        self._measurer.stop()

    @property
    def problems(self) -> tuple[str, ...]:
        """Selectors that match nothing, or not everywhere, on this host, and why."""
        return self._path_problems + self._scope_problems

    def resolved_paths(self) -> dict[str, str]:
        """The paths of the policy in force, without links, as far as they are known."""
        entries = {path: self._finder.last(path) for _number, path in self._policy.paths}
        return {path: entry.path for path, entry in entries.items() if entry is not None}

    @property
    def needs_digests(self) -> bool:
        """Whether some selector is a digest."""
        return bool(self._wanted)

    def ask(self, event: Event) -> None:
        """Have what a process just began to run measured."""
        if self._wanted:
            self._measurer.ask(Started(event.pid, event.exec_ns))

    @property
    def has_measured(self) -> bool:
        """Whether `take_measured` has something to do. For any thread."""
        return self._measurer.has_outcomes or (
            self._is_seed_due and time.monotonic() >= self._next_seed_s
        )

    def check_measurer(self) -> None:
        """Raise what has ended the thread that measures. For any thread."""
        if self._measurer.failure is not None:
            raise RuntimeError("executables are measured no more") from self._measurer.failure

    def take_measured(self) -> None:
        """Tell the kernel what was measured since, a few hundred files at the most."""
        # Their room first. What is evicted from here on is taken out the next time.
        for gone in self._digests.take_evicted():
            self._tables.forget_content(gone.device, gone.inode, gone.ctime_ns)
        taken = self._measurer.take()
        found = [each for each in taken if self._digests.get(each.identity) == each.sha256]
        if not found:
            self._seed()
            return
        self._tables.set_contents(self._entries_of((each.identity, each.sha256) for each in found))
        if self._tables.is_full_of_contents:
            self._tables.drop_contents_but(self._entries_of(self._digests.items()))
            self._write_contents()
        self._is_seed_due |= any(each.is_for_all or each.waiters for each in found)
        self._seed()

    def _seed(self) -> None:
        """Let those who run what was found know; a look at every process of the host.

        The kernel writes it, not the daemon: a process may execute something else between
        reading its entry and writing it back.
        """
        if self._is_seed_due and time.monotonic() >= self._next_seed_s:
            self._is_seed_due = False
            self._iterators.seed_processes()
            self._next_seed_s = time.monotonic() + _SEED_EVERY_S

    def _measure_named(self, tables: Tables) -> None:
        """Executables that some rule names by path are measured before the policy is in force.

        As far as that is quick: a file that others may write holds up no policy, but for the
        first one after a start.
        """
        # Looked up just now: what hangs is known, and would hang here as well.
        paths = [path for _number, path in tables.paths if not self._finder.is_hanging(path)]
        # In the ordinary case all are known, and nobody needs to be waited for.
        if len(paths) <= _LOOK_AT_MOST and all(
            self._digests.is_settled(as_host_sees(path)) for path in paths
        ):
            return
        self._measurer.measure_named(
            paths,
            also_others=self._is_first,
            wait_s=_FIRST_WAIT_S if self._is_first else _WAIT_S,
            meanwhile=self.take_measured,
        )
        self.take_measured()

    def _entries_of(
        self, found: Iterable[tuple[FileIdentity, str]]
    ) -> Iterator[tuple[int, int, int, int, int]]:
        """As the kernel's table has them; all of `found` was measured before this call."""
        instants = self._exec_times.look()
        for identity, digest in found:
            yield (
                identity.device,
                identity.inode,
                identity.ctime_ns,
                self._wanted.get(digest, 0),
                instants.from_ns(identity.ctime_ns),
            )

    def _write_contents(self) -> None:
        if self._wanted:
            self._tables.set_contents(self._entries_of(self._digests.items()))

    def _path_entries(self, tables: Tables, patience_s: float = PATIENCE_S) -> dict[bytes, int]:
        entries: dict[bytes, int] = {}
        problems = []
        named = dict(tables.paths)
        answers = self._finder.find((path for _number, path in tables.paths), patience_s)
        for number, path in tables.paths:
            answer = answers[path]
            try:
                if not isinstance(answer, DirectoryEntry):
                    raise answer
                key = path_key(answer.directory_device, answer.directory_inode, answer.name)
                if key in entries:
                    raise ValueError(
                        f"it is the file of {named[entries[key]]}; name one of them everywhere"
                    )
                entries[key] = number
            except Exception as error:  # noqa: BLE001 - one path costs nothing but itself
                problems.append(f"unix:path:{path} matches nothing: {error}")
        problems += (
            f"{path} is as it was last seen: its filesystem does not answer. Is a file server down?"
            for path in self._finder.hanging
            if isinstance(answers.get(path), DirectoryEntry)
        )
        self._path_problems = tuple(problems)
        return entries

    def _scope_entries(self, scopes: tuple[Scope, ...]) -> dict[bytes, int]:
        entries: dict[bytes, int] = {}
        for scope in scopes:
            if scope.kind is ScopeKind.PATH:
                # The kernel names cgroups from the root of the hierarchy.
                full = Path(f"{self._tree.root}/{scope.name.strip('/')}")
                names = ["/" + str(full.relative_to(self._tree.mount))]
            elif scope.kind is ScopeKind.CONTAINER:
                names = [pattern.format(scope.name) for pattern in _CONTAINER_NAMES]
            else:
                # systemd escapes names that clash with the kernel's files (cg_escape()).
                names = [scope.name, f"_{scope.name}"]
            for name in names:
                try:
                    entries[scope_key(int(scope.kind), name)] = scope.number
                except ValueError as error:
                    _log.warning("%s", error)
        return entries

    def _write_cgroups(self, scopes: tuple[Scope, ...]) -> None:
        """Every cgroup's scopes, parents before children: a cgroup made meanwhile inherits."""
        inherited: dict[str, tuple[int, ...]] = {}
        seen: dict[int, tuple[int, ...]] = {}
        problems = []
        ordered = sorted(scopes, key=lambda scope: SCOPE_ORDER[scope.kind])
        for cgroup in self._tree.walk():
            parent = cgroup.path.rsplit("/", 1)[0] or "/"
            own = tuple(scope.number for scope in ordered if matches(scope, cgroup.path))
            numbers = own + (inherited.get(parent, ()) if cgroup.path != "/" else ())
            if len(numbers) > MAX_SCOPES:
                problems.append(
                    f"{cgroup.path} lies in {len(numbers)} places that selectors name; only the "
                    f"{MAX_SCOPES} deepest count there: name fewer of them, or the deeper ones"
                )
            inherited[cgroup.path] = numbers = numbers[:MAX_SCOPES]
            seen[cgroup.id] = numbers
            held = self._written.get(cgroup.id)
            if held is None:
                held = self._tables.cgroup(cgroup.id)
            if held != numbers:
                self._tables.set_cgroup(cgroup.id, numbers)
        for gone in self._written.keys() - seen.keys():
            self._tables.set_cgroup(gone, ())
        self._written = seen
        self._scope_problems = tuple(problems[:_PROBLEMS_MAX])
