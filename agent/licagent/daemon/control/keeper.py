# SPDX-License-Identifier: Apache-2.0
"""The control plane's catalog: what it says becomes what the kernel does.

All changes run on the kernel thread, in the order in which they come, and a reply leaves only
after the kernel has them. What cannot be put in force is refused as a whole, and what was in
force before stays.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from licagent.control.interface import BootCatalog
from licagent.daemon.control.managed import Managed, Step, detail_of, step
from licagent.daemon.control.membership import BY, NAMED_MAX, named
from licagent.daemon.licensing.reports import cut_of
from licagent.domain.catalog import CatalogView, Kind, NackReason, Refused
from licagent.domain.policy import PolicyError
from licagent.kernel.libbpf import BpfError
from licagent.store.errors import StoreError
from lictoken.claims import License
from lictoken.errors import TokenError
from lictoken.trust import TrustStore
from lictoken.verify import verify_license

if TYPE_CHECKING:
    from licagent.daemon.agent import Agent
    from licagent.daemon.policy.compiled import Compiled

_log: Final = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Plan:
    """A view of the catalog, ready to be put in force."""

    view: CatalogView
    base: Compiled | None  # what was in force when it was made
    change: Step
    compiled: Compiled


class ControlKeeper:
    """The catalog that the control plane gave this host, and its changes.

    On the kernel thread only, but for `prepare`.
    """

    def __init__(self, agent: Agent) -> None:
        self._agent = agent
        self.managed = Managed()
        self._enrolled_trust: bytes | None = None
        self._trusted: bytes | None = None  # what the licensing was told
        self.problems: tuple[str, ...] = ()
        """Why what was stored is not in force."""

    # --- at start

    def begin(self, boot: BootCatalog, enrolled_trust: bytes | None) -> None:
        """Take what is in force from before. The policy is compiled after it, by the agent.

        `enrolled_trust`: the issuers' keys (JWKS) until a catalog brings some.
        """
        self._enrolled_trust = enrolled_trust
        self.problems = boot.problems
        for problem in boot.problems:
            _log.error("%s", problem)
        self._agent.membership.begin(boot.assignment, boot.leases)
        found = None
        if boot.catalog is not None:
            try:
                found = step(Managed(), boot.catalog)
            except Refused as refused:  # it was good once: another version of the agent
                self.problems = (*self.problems, f"the stored catalog is refused: {refused}")
                _log.error("the stored catalog is refused: %s", refused)
        if found is not None:
            # Trust first: statements and licenses are verified with it.
            self._trust_in(found.after)
            self._take_statements(found)
            self._take(found.after)
        elif self.problems:
            self._close()
        else:
            self._take(Managed())
        self._agent.membership.apply_leases()

    def begin_without(self, problem: str) -> None:
        """What was stored is lost: what it protected stays closed, and nobody has a license."""
        self.problems = (problem,)
        self._close()

    def _close(self) -> None:
        recalled = self._agent.keeper.last_good.recall_resources()
        names = {each.name: each for each in recalled.resources}
        self._take(Managed(resources=names))

    # --- what the control plane says

    def revoke(self, tokens: Sequence[bytes]) -> None:
        """Put signed statements in force. Raises Refused(SIGNATURE) for those that are none.

        The kernel comes first, then the sockets, then the disk: the reply waits for all three,
        and after a crash in between the control plane says it again.
        """
        agent = self._agent
        refused: list[str] = []
        taken = []
        counts: dict[str, int] = {}
        with agent.records.batch():
            for token in tokens:
                try:
                    found, is_new = agent.licensing.take_statement(token, BY)
                except TokenError as error:
                    refused.append(str(error))
                    continue
                if is_new:
                    taken.append(found)
            if taken:
                agent.last_cut = []
                agent.write_few(found.license for found in taken)
                counts = {found.license: cut_of(agent, found.license) for found in taken}
        for found in taken:
            words = {"revoke": "revoked", "suspend": "suspended"}
            action = words.get(found.action.value, "reinstated")
            agent.emit(
                "license",
                f"license {found.license} {action} by the {BY}: {found.reason}",
                license=found.license,
                by=BY,
                issuer=found.issuer,
                reason_text=found.reason,
                sockets_cut=counts[found.license],
            )
        if refused:
            raise Refused(NackReason.SIGNATURE, "; ".join(refused)[:3500])

    def prepare(self, view: CatalogView) -> Plan:
        """Read, verify and compile a view of the catalog; any thread, one at a time.

        Not on the kernel thread: a revocation must not wait for a policy of 100,000 bindings.
        Raises Refused.
        """
        agent = self._agent
        base = agent.policy.compiled
        change = step(self.managed, view)
        trust = self._trust(change.after.trust)
        try:
            compiled = self._amended(change)
            if compiled is None:
                compiled = agent.keeper.compile_managed(
                    agent.policy.own_texts(), change.after, self._licenses(change, trust)
                )
        except PolicyError as error:
            raise Refused(NackReason.POLICY, detail_of(error)) from error
        return Plan(view, base, change, compiled)

    def _amended(self, change: Step) -> Compiled | None:
        """The policy in force with some bindings exchanged, where nothing else has changed."""
        base = self._agent.policy.compiled
        bindings = change.exchanged_bindings()
        if base is None or base.managed is not change.before or bindings is None:
            return None
        return self._agent.keeper.amend(base, change.after, *bindings)

    def commit(self, plan: Plan) -> None:
        """Bring the kernel to what was prepared. Raises Refused; then nothing has changed."""
        agent = self._agent
        if plan.base is not agent.policy.compiled:  # root changed something meanwhile
            plan = self.prepare(plan.view)
        change = plan.change
        agent.last_cut = []
        held = agent.licensing.managed()
        try:
            self._trust_in(change.after)
            self._take_statements(change)
            self._take(change.after)
            self._agent.membership.apply_leases()
            compiled = plan.compiled
            if agent.licensing.withheld() != compiled.tables.withheld:
                # Conditions of licenses that have just come take some of their entitlements.
                compiled = agent.keeper.compile_managed(
                    compiled.texts, compiled.managed, agent.licenses()
                )
            agent.policy.put_in_force(compiled)
        except (PolicyError, BpfError, StoreError, OSError) as error:
            self._take(change.before)
            agent.licensing.put_back(held)
            self._agent.membership.apply_leases()
            agent.write_licenses()
            raise Refused(_reason_of(error), str(error)[:3500]) from error
        self._tell_of(change)

    # ---

    def _trust(self, data: bytes | None) -> TrustStore:
        try:
            return TrustStore() if data is None else TrustStore.from_bytes(data)
        except TokenError as error:
            detail = f"the issuers' keys cannot be read: {error}"
            raise Refused(NackReason.SIGNATURE, detail) from error

    def _trust_in(self, managed: Managed) -> None:
        data = self._enrolled_trust if managed.trust is None else managed.trust
        if data != self._trusted:
            self._agent.licensing.set_managed_trust(self._trust(data))
            self._trusted = data

    def _licenses(self, change: Step, trust: TrustStore) -> dict[str, License]:
        """The licenses there would be: verified, but not put on record.

        On record a newer generation shuts the older one out, which must stay if this is refused.
        """
        licensing = self._agent.licensing
        keys = licensing.trust
        for key in trust:
            keys = keys.with_key(key) if keys.get(key.kid) is None else keys
        found = dict(self._agent.licenses())
        for name in change.names(Kind.LICENSE):
            if name in found and licensing.held[name].managed:
                del found[name]
            token = change.after.tokens.get(name)
            if token is None:
                continue
            try:
                license_ = verify_license(token, keys)
            except TokenError:
                continue  # told of when it is taken: a bad license costs only itself
            filed = found.get(name)
            if filed is None or filed.generation <= license_.generation:
                found[name] = license_
        return found

    def _take_statements(self, change: Step) -> None:
        with self._agent.records.batch():
            for token in change.statements:
                try:
                    self._agent.licensing.take_statement(token, BY)
                except TokenError as error:
                    # Of a key that is retired by now: the license itself verifies no more either.
                    _log.warning("a statement of the catalog is passed over: %s", error)

    def _take(self, managed: Managed) -> None:
        self._trust_in(managed)
        if managed.tokens != self.managed.tokens or managed.trust != self.managed.trust:
            self._agent.licensing.set_managed(managed.tokens)
        self.managed = managed
        self._agent.keeper.managed = managed

    def _tell_of(self, change: Step) -> None:
        agent = self._agent
        counts: dict[str, Any] = {}
        for kind in (Kind.RESOURCE, Kind.BINDING, Kind.LICENSE, Kind.REVOCATION, Kind.TRUST):
            names = change.names(kind)
            if names:
                counts[kind.name.lower()] = names
        words = "; ".join(f"{kind} {named(names)}" for kind, names in counts.items())
        agent.emit(
            "catalog",
            f"revision {change.after.revision} of the {BY} is in force: {words or 'as before'}",
            by=BY,
            revision=change.after.revision,
            generation=agent.kernel.control.generation,
            changed={kind: names[:NAMED_MAX] for kind, names in counts.items()},
            amounts={kind: len(names) for kind, names in counts.items()},
            sockets_cut=len(agent.last_cut),
        )


def _reason_of(error: Exception) -> NackReason:
    if isinstance(error, PolicyError):
        return NackReason.POLICY
    return NackReason.KERNEL if isinstance(error, BpfError) else NackReason.DISK
