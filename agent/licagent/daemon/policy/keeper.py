# SPDX-License-Identifier: Apache-2.0
"""Policies: the host's own files, judged whole with what the control plane gave, and compiled."""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import replace
from pathlib import Path
from typing import Final

from licagent.daemon.control.managed import Managed
from licagent.daemon.policy.compiled import Amendment, Compiled, Frame, Texts
from licagent.daemon.policy.last_good import LastGoodPolicy
from licagent.daemon.policy.run_licenses import RunLicenses
from licagent.domain.attribution import EMPTY as NO_ATTRIBUTION
from licagent.domain.attribution import MEASURED_KINDS, AttributionTable, attribute
from licagent.domain.compiler import PolicyCompiler
from licagent.domain.config import FailsafeSetting
from licagent.domain.failsafe import failsafe_entries, read_resolvers
from licagent.domain.policy import FILE_BYTES_MAX, Policy, PolicyError, parse_policy
from licagent.domain.policy_documents import CONTROL_PLANE, merge
from licagent.domain.policy_model import Binding
from licagent.domain.problem import PolicyProblem
from licagent.domain.rulebook import RuleBook
from licagent.domain.rules import Folder
from licagent.domain.tables import Tables
from licagent.host.users import UnknownName, Users
from licagent.store.errors import DocumentDamaged
from licagent.store.numbers import PersistentNumbering
from licagent.store.statedir import StateDir
from lictoken.claims import License
from lictoken.errors import TokenError
from lictoken.limits import read_bounded

_log: Final = logging.getLogger(__name__)

Tolerated = Callable[[PolicyProblem], bool]


class PolicyKeeper:
    """Reads and compiles policies."""

    book_rules_min = 2000
    """Policies with fewer rules are compiled and written whole: it is quick, and takes no memory
    for longer."""

    def __init__(
        self,
        folder: Path,
        state: StateDir,
        numbering: PersistentNumbering,
        failsafe: Sequence[FailsafeSetting],
    ) -> None:
        self._folder = folder
        self.last_good = LastGoodPolicy(state)
        self.runs = RunLicenses(state)
        self._numbering = numbering
        self.failsafe = tuple(failsafe)
        self.reachable: tuple[FailsafeSetting, ...] = ()
        """The control plane's own addresses, which no policy may close."""
        self.withheld: Callable[[], AbstractSet[tuple[str, str]]] = frozenset
        """(license id, resource) of entitlements whose conditions do not hold now."""
        self.managed = Managed()
        """What the control plane gave that is in force, or was when the daemon ended."""
        self._resolvers: tuple[str, ...] = ()  # those of the last compilation
        # What the control plane gives is compiled on a thread of its own, what root gives on the
        # kernel's; numbers and accounts are for one of them at a time.
        self._compiling = threading.RLock()
        self._users = Users()

    def installed(self) -> tuple[tuple[str, str], ...]:
        """The policy files of this host, by name.

        Raises:
            PolicyError: naming every file that cannot be read as text.
        """
        found: list[tuple[str, str]] = []
        problems: list[PolicyProblem] = []
        try:
            names = sorted(os.listdir(self._folder))
        except FileNotFoundError:
            return ()
        except OSError as error:
            reason = f"cannot be read: {error.strerror}"
            raise PolicyError([PolicyProblem(str(self._folder), 0, "", reason)]) from error
        for name in names:
            if not name.endswith(".toml") or name.startswith("."):
                continue
            try:
                data = read_bounded(self._folder / name, FILE_BYTES_MAX)
                found.append((name, data.decode("utf-8")))
            except TokenError as error:  # no regular file, too large, not ours to read
                problems.append(PolicyProblem(name, 0, "", error.detail))
            except UnicodeDecodeError as error:
                line = error.object.count(b"\n", 0, error.start) + 1
                problems.append(
                    PolicyProblem(name, line, "", "is no UTF-8 text", "save it as UTF-8")
                )
        if problems:
            raise PolicyError(problems)
        return tuple(found)

    def compile(self, texts: Texts, licenses: Mapping[str, License]) -> Compiled:
        """Judge the host's own files whole, together with what the control plane gave.

        Raises:
            PolicyError: with every problem found; nothing was changed.
        """
        with self._compiling, no_garbage_collection():
            local = parse_policy(texts, known_licenses=licenses.keys())
            return self._compiled(texts, local, self.managed, licenses, tolerated=_is_managed)

    def compile_managed(
        self, texts: Texts, managed: Managed, licenses: Mapping[str, License]
    ) -> Compiled:
        """Judge what the control plane gives, together with the host's own files.

        It is for a fleet: licenses and resources that this host does not have are no mistake.
        The files were good when they were applied.

        Raises:
            PolicyError: with every problem found; nothing was changed.
        """
        with self._compiling, no_garbage_collection():
            local = parse_policy(texts)
            return self._compiled(texts, local, managed, licenses, tolerated=_is_fleets)

    def amend(
        self, base: Compiled, managed: Managed, old: Sequence[Binding], new: Sequence[Binding]
    ) -> Compiled | None:
        """As `compile_managed`, where only these bindings differ from `base`, at their price.

        None where that is not possible: compile instead. Raises PolicyError.
        """
        book = base.book
        if book is None or book.tables is not base.tables or base.frame != self._frame(base.texts):
            return None
        with self._compiling:
            found = book.exchange(old, new)
            if found is None:
                return None
            tables, change = found
            self._numbering.save()
        return replace(
            base, managed=managed, tables=tables, amendment=Amendment(base.tables, change)
        )

    def _frame(self, texts: Texts) -> Frame:
        return Frame(
            tuple(texts),
            read_resolvers(),
            self.reachable,
            self.runs.ids,
            frozenset(self.withheld()),
        )

    def _compiled(
        self,
        texts: Texts,
        local: Policy,
        managed: Managed,
        licenses: Mapping[str, License],
        *,
        tolerated: Tolerated,
    ) -> Compiled:
        self._users.forget()
        frame = self._frame(texts)
        self._resolvers = frame.resolvers
        policy = merge(local, managed.policy)
        compiler, tables = self._tables(policy, licenses, frame, tolerated)
        extra = self.runs.bindings(policy, licenses)
        if extra:
            # Judged without them first: they must not make an unreachable resource look well.
            widened = replace(policy, bindings=policy.bindings + extra)
            compiler, tables = self._tables(widened, licenses, frame, tolerated)
        self._numbering.save()
        book = None
        if tolerated is _is_fleets and len(tables.rules) >= self.book_rules_min:
            book = RuleBook(compiler, tables, tolerated)
        return Compiled(tuple(texts), local, managed, tables, frame, book)

    def _tables(
        self,
        policy: Policy,
        licenses: Mapping[str, License],
        frame: Frame,
        tolerated: Tolerated,
    ) -> tuple[PolicyCompiler, Tables]:
        folder = Folder(self._numbering, self._user, self._group)
        compiler = PolicyCompiler(policy, licenses, folder, frame.withheld)
        failsafe = failsafe_entries((*self.failsafe, *frame.reachable), frame.resolvers)
        return compiler, compiler.compile(failsafe, lenient=False, tolerated=tolerated)

    def attribution(self, compiled: Compiled, licenses: Mapping[str, License]) -> AttributionTable:
        """Who uses the policy's compute and storage resources under which license.

        Free where it has none of them, which is why it is no part of the tables.
        """
        resources = (*compiled.local.resources, *compiled.managed.resources.values())
        if not any(each.kind in MEASURED_KINDS for each in resources):
            return NO_ATTRIBUTION
        policy = compiled.policy
        extra = self.runs.bindings(policy, licenses)
        policy = replace(policy, bindings=policy.bindings + extra)
        with self._compiling, no_garbage_collection():
            folder = Folder(self._numbering, self._user, self._group)
            return attribute(policy, licenses, folder, compiled.frame.withheld)

    def resolvers_changed(self) -> bool:
        """Whether the host has other name servers than when a policy was compiled last."""
        return read_resolvers() != self._resolvers

    def recall(self, licenses: Mapping[str, License]) -> Compiled | None:
        """The last good policy, as `again` compiles it; None where there is none.

        Where there was one and both copies are damaged, the installed files stand in for it, as
        far as they can be read: a host must not open because its state was lost.
        """
        try:
            texts = self.last_good.texts()
        except DocumentDamaged:
            try:
                texts = self.installed()
            except PolicyError as error:
                _log.error("the installed policy cannot stand in for the last good one: %s", error)
                return None
        return None if texts is None else self.again(texts, licenses)

    def again(self, texts: Texts, licenses: Mapping[str, License]) -> Compiled | None:
        """Compile a policy that was good before; None, and said in the log, where it is not now.

        Bindings whose license, user or entitlement is gone grant nothing. All resources are
        enforced all the same: a host must not open because its licenses are lost.
        """
        try:
            with self._compiling, no_garbage_collection():
                return self._compiled(
                    texts,
                    parse_policy(texts),
                    self.managed,
                    licenses,
                    tolerated=lambda _problem: True,
                )
        except PolicyError as error:
            _log.error("the last good policy does not compile any more: %s", error)
            return None

    def install(self, files: Texts, before: Texts) -> None:
        """Write policy files into policy.d, each whole, and all of them or none. OSError.

        `before` are those that were there.
        """
        from licagent.daemon.licensing.files import write_durably

        known = dict(before)
        for count, (name, text) in enumerate(files):
            try:
                write_durably(self._folder / name, text.encode())
            except OSError:
                # This one too: what failed may have been to make it last.
                for written, _text in files[: count + 1]:
                    with contextlib.suppress(OSError):
                        if written in known:
                            write_durably(self._folder / written, known[written].encode())
                        else:
                            (self._folder / written).unlink(missing_ok=True)
                raise

    def _user(self, name: str) -> int | None:
        try:
            return self._users.uid(name)
        except UnknownName:
            return None

    def _group(self, name: str) -> int | None:
        try:
            return self._users.gid(name)
        except UnknownName:
            return None


def _is_fleets(problem: PolicyProblem) -> bool:
    """Whether a problem is none of what the control plane gives just now."""
    return problem.absent or not _is_managed(problem)


def _is_managed(problem: PolicyProblem) -> bool:
    """Whether the control plane is at fault, and not a file of this host."""
    return problem.file.startswith(CONTROL_PLANE)


@contextlib.contextmanager
def no_garbage_collection() -> Iterator[None]:
    """Compile without looking for cycles: there are few, and a third of the time went there."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
