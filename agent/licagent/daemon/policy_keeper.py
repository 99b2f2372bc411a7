# SPDX-License-Identifier: Apache-2.0
"""The policy in force: read, judged whole, written to the kernel, kept for the next boot."""

from __future__ import annotations

import contextlib
import gc
import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from licagent.domain.compiler import compile_policy
from licagent.domain.config import FailsafeSetting
from licagent.domain.failsafe import failsafe_entries, read_resolvers
from licagent.domain.policy import FILE_BYTES_MAX, Policy, PolicyError, parse_policy
from licagent.domain.policy_documents import (
    CONTROL_PLANE,
    Document,
    DocumentKind,
    document_of,
    merge,
    parse_documents,
)
from licagent.domain.policy_model import Binding, Resource
from licagent.domain.problem import PolicyProblem
from licagent.domain.selector import parse as parse_selector
from licagent.domain.tables import ResourceEntry, Tables
from licagent.host.users import UnknownName, Users
from licagent.store.errors import DocumentDamaged, StoreError
from licagent.store.numbers import PersistentNumbering
from licagent.store.statedir import StateDir
from lictoken.claims import License
from lictoken.errors import TokenError
from lictoken.limits import read_bounded

_log: Final = logging.getLogger(__name__)

_DOCUMENT: Final = "last-good-policy"
_SPARE: Final = "last-good-policy-spare"
_SCHEMA: Final = "licagent.policy/1"
_RESOURCES: Final = "control-resources"
_RESOURCES_SCHEMA: Final = "licagent.control-resources/1"
_RUN_DOCUMENT: Final = "run-licenses"
_RUN_SCHEMA: Final = "licagent.run/1"

RUN_FOLDER: Final = "licagent.run"
"""Cgroup below the agent's root that holds the scopes of `licagent run`, one folder a license."""

Texts = Sequence[tuple[str, str]]

Tolerated = Callable[[PolicyProblem], bool]

_NONE: Final = Policy()


@dataclass(frozen=True, slots=True)
class Compiled:
    """A policy that passed every check, and its tables."""

    texts: tuple[tuple[str, str], ...]  # of the host's own files
    policy: Policy  # of those files, and of the control plane
    tables: Tables
    managed: Policy = _NONE  # the control plane's part

    def resource(self, number: int) -> ResourceEntry | None:
        """The resource of a number."""
        return next((entry for entry in self.tables.resources if entry.number == number), None)


class PolicyKeeper:
    """Reads and compiles policies; remembers the last good one."""

    def __init__(
        self,
        folder: Path,
        state: StateDir,
        numbering: PersistentNumbering,
        failsafe: Sequence[FailsafeSetting],
    ) -> None:
        self._folder = folder
        self._state = state
        self._numbering = numbering
        self._failsafe = tuple(failsafe)
        self.reachable: tuple[FailsafeSetting, ...] = ()
        """The control plane's own addresses, which no policy may close."""
        self.withheld: Callable[[], AbstractSet[tuple[str, str]]] = frozenset
        """(license id, resource) of entitlements whose conditions do not hold now."""
        self.managed = _NONE
        """What the control plane gave that is in force, or was when the daemon ended."""
        self._resolvers: tuple[str, ...] = ()  # those of the last compilation
        self._remembered: tuple[Resource, ...] | None = None
        self._users = Users()
        self._run_licenses: set[str] = set()
        try:
            body = state.read_document(_RUN_DOCUMENT, _RUN_SCHEMA)
        except DocumentDamaged as error:
            _log.error("%s", error)
            body = None
        if body is not None:
            self._run_licenses.update(str(jti) for jti in body["ids"])

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
        with no_garbage_collection():
            local = parse_policy(texts, known_licenses=licenses.keys())
            policy = merge(local, self.managed)
            return self._compiled(texts, policy, self.managed, licenses, tolerated=_is_managed)

    def compile_managed(
        self, texts: Texts, managed: Policy, licenses: Mapping[str, License]
    ) -> Compiled:
        """Judge what the control plane gives, together with the host's own files.

        It is for a fleet: licenses and resources that this host does not have are no mistake.
        The files were good when they were applied.

        Raises:
            PolicyError: with every problem found; nothing was changed.
        """
        with no_garbage_collection():
            policy = merge(parse_policy(texts), managed)
            return self._compiled(
                texts,
                policy,
                managed,
                licenses,
                tolerated=lambda problem: problem.absent or not _is_managed(problem),
            )

    def _compiled(
        self,
        texts: Texts,
        policy: Policy,
        managed: Policy,
        licenses: Mapping[str, License],
        *,
        tolerated: Tolerated,
    ) -> Compiled:
        self._users.forget()
        self._resolvers = read_resolvers()
        tables = self._tables(policy, licenses, tolerated)
        extra = _run_bindings(policy, licenses, self._run_licenses)
        if extra:
            # Judged without them first: they must not make an unreachable resource look well.
            widened = replace(policy, bindings=policy.bindings + extra)
            tables = self._tables(widened, licenses, tolerated)
        self._numbering.save()
        return Compiled(tuple(texts), policy, tables, managed)

    def _tables(
        self, policy: Policy, licenses: Mapping[str, License], tolerated: Tolerated
    ) -> Tables:
        return compile_policy(
            policy,
            licenses,
            self._numbering,
            self._user,
            failsafe_entries((*self._failsafe, *self.reachable), self._resolvers),
            groups=self._group,
            tolerated=tolerated,
            withheld=self.withheld(),
        )

    def resolvers_changed(self) -> bool:
        """Whether the host has other name servers than when a policy was compiled last."""
        return read_resolvers() != self._resolvers

    def allow_run(self, jti: str) -> bool:
        """From the next compilation on, `licagent run` has a scope for this license.

        Returns False if it had one. Made when first asked for: most licenses never need one.
        """
        if jti in self._run_licenses:
            return False
        self._run_licenses.add(jti)
        self._state.write_document(_RUN_DOCUMENT, _RUN_SCHEMA, {"ids": sorted(self._run_licenses)})
        return True

    def remember(self, texts: Texts) -> None:
        """Keep a policy that is in force, for a boot at which the files are broken."""
        body = {"files": [list(pair) for pair in texts]}
        for name in (_SPARE, _DOCUMENT):
            self._state.write_document(name, _SCHEMA, body)

    def remember_resources(self, managed: Policy) -> None:
        """Keep the names of what the control plane protects.

        Should its catalog be lost on this host, they are enforced all the same, with nobody
        let in, until it has come again.
        """
        if managed.resources == self._remembered:
            return
        body = {"resources": [document_of(resource) for resource in managed.resources]}
        self._state.write_document(_RESOURCES, _RESOURCES_SCHEMA, body)
        self._remembered = managed.resources

    def recall_resources(self) -> Policy:
        """What `remember_resources` kept; nothing where there is nothing, or it is damaged."""
        try:
            body = self._state.read_document(_RESOURCES, _RESOURCES_SCHEMA)
            if body is None:
                return _NONE
            return parse_documents(
                Document(DocumentKind.RESOURCE, str(table["name"]), json.dumps(table).encode())
                for table in body["resources"]
            )
        except (StoreError, PolicyError) as error:
            _log.error("the control plane's resources are not known: %s", error)
            return _NONE

    def recall(self, licenses: Mapping[str, License]) -> Compiled | None:
        """The last good policy, as `again` compiles it; None where there is none.

        Where there was one and both copies are damaged, the installed files stand in for it, as
        far as they can be read: a host must not open because its state was lost.
        """
        was_there = False
        for document in (_DOCUMENT, _SPARE):
            try:
                body = self._state.read_document(document, _SCHEMA)
            except DocumentDamaged as error:
                _log.error("%s", error)
                was_there = True
                continue
            if body is not None:
                texts = tuple((str(name), str(text)) for name, text in body["files"])
                return self.again(texts, licenses)
        try:
            return self.again(self.installed(), licenses) if was_there else None
        except PolicyError as error:
            _log.error("the installed policy cannot stand in for the last good one: %s", error)
            return None

    def again(self, texts: Texts, licenses: Mapping[str, License]) -> Compiled | None:
        """Compile a policy that was good before; None, and said in the log, where it is not now.

        Bindings whose license, user or entitlement is gone grant nothing. All resources are
        enforced all the same: a host must not open because its licenses are lost.
        """
        try:
            with no_garbage_collection():
                policy = merge(parse_policy(texts), self.managed)
                return self._compiled(
                    texts, policy, self.managed, licenses, tolerated=lambda _problem: True
                )
        except PolicyError as error:
            _log.error("the last good policy does not compile any more: %s", error)
            return None

    def install(self, files: Texts) -> None:
        """Write policy files into policy.d, each whole or not at all."""
        from licagent.daemon.licensing import write_durably

        for name, text in files:
            write_durably(self._folder / name, text.encode())

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


def run_cgroup(jti: str) -> str:
    """The cgroup of `licagent run --license JTI`, below the agent's root."""
    safe = "".join(
        c if c.isascii() and (c.isalnum() or c in "-_.") else f"_{ord(c):x}_" for c in jti
    )
    return f"/{RUN_FOLDER}/{safe}"


def _run_bindings(
    policy: Policy, licenses: Mapping[str, License], wanted: AbstractSet[str]
) -> tuple[Binding, ...]:
    """For `licagent run`: whoever root put into a license's own cgroup runs under it."""
    named = {resource.name for resource in policy.resources}
    return tuple(
        Binding(
            name=f"licagent run --license {jti}",
            license=jti,
            selectors=(parse_selector(f"cgroup:path:{run_cgroup(jti)}"),),
            file="licagent run",
        )
        for jti in sorted(wanted & licenses.keys())
        if any(entitlement.resource in named for entitlement in licenses[jti].entitlements)
    )
