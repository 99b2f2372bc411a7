# SPDX-License-Identifier: Apache-2.0
"""Keeps the kernel's picture of executables and cgroups true to the policy."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from licagent.domain.tables import Scope, ScopeKind, Tables
from licagent.host.cgroups import CgroupTree, matches
from licagent.host.digests import DigestCache, NotMeasured
from licagent.host.exec_paths import Candidate, candidates
from licagent.host.executables import FileIdentity, NoSuchExecutable, directory_entry
from licagent.host.processes import executable_of
from licagent.kernel.identity import IdentityTables, path_key, scope_key
from licagent.kernel.iterators import Iterators
from licagent.kernel.layout import MAX_SCOPES, Event

_log: Final = logging.getLogger(__name__)

_LOOK_AGAIN_S: Final = 2.0
_FOLDERS_MAX: Final = 256

_PROBLEMS_MAX: Final = 10

_ORDER: Final = {ScopeKind.PATH: 0, ScopeKind.UNIT: 1, ScopeKind.CONTAINER: 2}
"""Which of several names of one cgroup is asked first; cgroup_mkdir has the same order."""

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
    """Writes paths, contents, scope names and cgroups. Not for several threads at once."""

    def __init__(
        self,
        tables: IdentityTables,
        iterators: Iterators,
        tree: CgroupTree,
        digests: DigestCache,
    ) -> None:
        self._tables = tables
        self._iterators = iterators
        self._tree = tree
        self._digests = digests
        self._policy = Tables()
        self._wanted: dict[str, int] = {}  # digest -> number
        self._written: dict[int, tuple[int, ...]] = {}  # cgroup id -> scopes
        self._queue: Iterator[Candidate] = iter(())
        self._folders: dict[str, None] = {}  # where measured programs stood; see `_look_again`
        self._finished = True  # the queue was gone through
        self._missed = False  # a program ended before it was measured
        self._next_look_s = 0.0
        self._path_problems: tuple[str, ...] = ()
        self._scope_problems: tuple[str, ...] = ()

    def prepare(self, tables: Tables) -> None:
        """Add what a new policy needs, before it is in force; nothing is taken away yet."""
        self._tables.set_paths(self._path_entries(tables), prune=False)
        union = {scope.number: scope for scope in (*self._policy.scopes, *tables.scopes)}
        self._tables.set_scope_names(self._scope_entries(tuple(union.values())), prune=False)
        self._write_cgroups(tuple(union.values()))
        self._wanted = {digest: number for number, digest in tables.digests}
        if self._wanted:
            self._measure_named(tables)
        self._write_contents()
        self._iterators.seed_processes()

    def settle(self, tables: Tables) -> None:
        """Take away what only the old policy needed, once the new one is in force."""
        self._policy = tables
        self._tables.set_paths(self._path_entries(tables), prune=True)
        self._tables.set_scope_names(self._scope_entries(tables.scopes), prune=True)
        self._write_cgroups(tables.scopes)
        self._queue = candidates(self._folders) if self._wanted else iter(())
        self._finished = not self._wanted

    def refresh(self) -> None:
        """Look again, every few seconds: folders that were replaced, cgroups seen late."""
        if self._policy.paths:
            self._tables.set_paths(self._path_entries(self._policy), prune=True)
        if self._policy.scopes:
            self._write_cgroups(self._policy.scopes)

    @property
    def problems(self) -> tuple[str, ...]:
        """Selectors that match nothing, or not everywhere, on this host, and why."""
        return self._path_problems + self._scope_problems

    @property
    def needs_digests(self) -> bool:
        """Whether some selector is a digest."""
        return bool(self._wanted)

    def measure_some(self, budget_s: float = 0.05) -> bool:
        """Measure installed executables in the background; False when all are done."""
        end = time.monotonic() + budget_s
        fresh = False
        self._look_again()
        for candidate in self._queue:
            try:
                measured = self._digests.measure(candidate.open_path)
            except (NoSuchExecutable, NotMeasured, OSError):
                continue
            self._note(measured.identity, measured.sha256)
            fresh = True
            if time.monotonic() >= end:
                self._iterators.seed_processes()
                return True
        if fresh:
            self._iterators.seed_processes()
            self._digests.save()
        self._finished = True
        return False

    def _look_again(self) -> None:
        """Programs that run too briefly to be measured as they do are looked for in folders."""
        if self._missed and self._finished and time.monotonic() >= self._next_look_s:
            self._missed = self._finished = False
            self._next_look_s = time.monotonic() + _LOOK_AGAIN_S
            self._queue = candidates(self._folders)

    def measure_process(self, event: Event) -> bool:
        """Measure what a process just began to run, and let its entry know.

        False: its file changed a moment ago, ask again.
        """
        try:
            measured = self._digests.measure(f"/proc/{event.pid}/exe")
        except NotMeasured as error:
            return not error.retry
        except (NoSuchExecutable, OSError):
            self._missed = True
            return True
        self._note_folder(event.pid)
        self._note(measured.identity, measured.sha256)
        identity = measured.identity
        process = self._tables.process(event.pid)
        if (
            process is not None
            and process.exec_ns == event.exec_ns
            and process.device == identity.device
            and process.inode == identity.inode
            and process.ctime_ns == identity.ctime_ns
        ):
            process.digest = self._wanted.get(measured.sha256, 0)
            process.measured = 1
            self._tables.set_process(event.pid, process)
        return True

    def _note_folder(self, pid: int) -> None:
        path, _ = executable_of(pid)
        if path is not None and len(self._folders) < _FOLDERS_MAX:
            self._folders[str(Path(path).parent)] = None

    def _note(self, identity: FileIdentity, digest: str) -> None:
        self._tables.set_content(
            identity.device, identity.inode, identity.ctime_ns, self._wanted.get(digest, 0)
        )

    def _measure_named(self, tables: Tables) -> None:
        """Executables that some rule names by path are measured before the policy is in force."""
        for _number, path in tables.paths:
            try:
                self._digests.measure(path)
            except (NoSuchExecutable, NotMeasured, OSError):
                continue

    def _write_contents(self) -> None:
        if not self._wanted:
            return
        self._tables.set_contents(
            (identity.device, identity.inode, identity.ctime_ns, self._wanted.get(digest, 0))
            for identity, digest in self._digests.items()
        )

    def _path_entries(self, tables: Tables) -> dict[bytes, int]:
        entries: dict[bytes, int] = {}
        problems = []
        for number, path in tables.paths:
            try:
                entry = directory_entry(path)
                key = path_key(entry.directory_device, entry.directory_inode, entry.name)
                entries[key] = number
            except (NoSuchExecutable, ValueError) as error:
                problems.append(f"unix:path:{path} matches nothing: {error}")
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
        ordered = sorted(scopes, key=lambda scope: _ORDER[scope.kind])
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
