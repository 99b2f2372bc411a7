# SPDX-License-Identifier: Apache-2.0
"""The policy in force: how another one takes its place, in the kernel and beside it.

On the kernel thread only, but for `PolicyInForce.own_texts`.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import time
from typing import TYPE_CHECKING, Final

from licagent.domain.policy import PolicyError
from licagent.domain.rulebook import RuleChange
from licagent.store.errors import StoreError

if TYPE_CHECKING:
    from licagent.daemon.agent import Agent
    from licagent.daemon.policy.compiled import Compiled

_log: Final = logging.getLogger(__name__)

_LARGE_POLICY_RULES: Final = 10_000


class PolicyInForce:
    """What is compiled into the kernel's tables now, and its changes."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent
        self.compiled: Compiled | None = None
        self.loaded_at = 0.0
        self.problem = ""
        """Why the installed policy is not in force."""

    def load(self) -> None:
        """Put the installed policy in force; if it is refused, the last good one stays."""
        agent = self._agent
        try:
            compiled = agent.keeper.compile(agent.keeper.installed(), agent.licenses())
            if self.compiled is None or compiled.tables != self.compiled.tables:
                self.apply(compiled)
            else:
                self.take_over(compiled)
            self.problem = ""
        except PolicyError as error:
            self.problem = str(error)
            _log.error("the installed policy is refused, the last good one stays: %s", error)
            if self.compiled is not None:
                self.renew()  # licenses may have come or gone
                return
            last = agent.keeper.recall(agent.licenses())
            if last is not None:
                self.apply(last)

    def switch(self, compiled: Compiled) -> None:
        """`apply`, or stay with the policy before it where the disk cannot keep this one.

        Raises StoreError or OSError.
        """
        previous = self.compiled
        try:
            self.apply(compiled)
        except (StoreError, OSError):
            self.go_back(compiled, previous)
            raise

    def go_back(self, compiled: Compiled, previous: Compiled | None) -> None:
        """Put `previous` in force again if `compiled` is, which the disk could not keep."""
        if previous is not None and self.compiled is compiled:
            # What the kernel decides by is switched before the disk is asked once more.
            with contextlib.suppress(StoreError):
                self.apply(previous)

    def apply(self, compiled: Compiled) -> int:
        """Switch to a compiled policy, everywhere at once; its generation.

        Raises BpfError where it does not fit the kernel's tables: nothing was switched. Raises
        StoreError where it cannot be kept on the disk: it is in force all the same.
        """
        agent = self._agent
        gc.unfreeze()
        kernel, identity = agent.kernel, agent.identity_keeper()
        covering = kernel.interfaces.begin()
        tables = compiled.tables
        for number in {number for rule in tables.rules for number in rule.licenses}:
            kernel.licenses.slot(number)
        agent.licensing.write(kernel.licenses)
        identity.prepare(tables)
        kernel.interfaces.await_round(covering)
        kernel.control.measure = kernel.control.measure or bool(tables.digests)
        generation = kernel.tables.switch(
            tables,
            kernel.licenses.slot,
            enforce=agent.config.mode == "enforce",
            keep_existing=agent.config.existing_sockets == "keep",
        )
        kernel.control.measure = bool(tables.digests)
        previous, self.compiled = self.compiled, compiled
        agent.metering.policy_changed()
        self.loaded_at = time.time()
        agent.names.take(tables)
        agent.licensing.settle(tables.withheld)
        agent.licensing.write(kernel.licenses)  # what only the new tables leave room for
        identity.settle(tables)
        kernel.adopt()
        agent.cut()
        agent.emit("policy", f"policy generation {generation} is in force", generation=generation)
        if len(tables.rules) > _LARGE_POLICY_RULES:
            # It stays for long, and walking it would stop everything for 0.2 s now and then.
            gc.collect()
            gc.freeze()
        # Last: a disk that refuses must not leave sockets that nobody has decided on.
        self._remember(compiled, previous)
        return generation

    def take_over(self, compiled: Compiled) -> None:
        """Follow a policy whose tables are those in force: what it measures may be another."""
        previous, self.compiled = self.compiled, compiled
        self._agent.metering.policy_changed()
        self._remember(compiled, previous)

    def _remember(self, compiled: Compiled, previous: Compiled | None) -> None:
        """Keep what is in force. StoreError where that is something new, and cannot be kept."""
        last_good = self._agent.keeper.last_good
        try:
            last_good.remember(compiled.texts)
            last_good.remember_resources(compiled.managed)
        except StoreError as error:
            if (
                previous is None
                or previous.texts != compiled.texts
                or previous.managed.resources != compiled.managed.resources
            ):
                raise
            _log.error("%s", error)  # not for the first time: the disk is still full

    def own_texts(self) -> tuple[tuple[str, str], ...]:
        """The host's own policy files: those in force, or those installed before any are."""
        if self.compiled is not None:
            return self.compiled.texts
        try:
            return self._agent.keeper.installed()
        except PolicyError:
            return ()  # told of by `load`

    def put_in_force(self, compiled: Compiled) -> None:
        """Bring the kernel to a policy: single rules where that will do, else all of it."""
        previous = self.compiled
        amendment = compiled.amendment
        if (
            previous is not None
            and amendment is not None
            and amendment.base is previous.tables
            and self._is_amendable(compiled, amendment.change)
        ):
            try:
                self._amend(compiled, amendment.change)
            except (StoreError, OSError):
                self.go_back(compiled, previous)
                raise
        elif previous is None or compiled.tables != previous.tables:
            self.switch(compiled)
        else:
            self._agent.licensing.settle(compiled.tables.withheld)
            self._agent.write_licenses()
            self.take_over(compiled)

    def _is_amendable(self, compiled: Compiled, change: RuleChange) -> bool:
        """Whether the rules can be changed in the generation in force.

        A tag that says "observed" holds for its generation. Where there may be such tags, only
        a new generation has their sockets decided anew.
        """
        config = self._agent.config
        observed = {each.number for each in compiled.tables.resources if not each.enforce}
        return (
            change.fits_in_place
            and config.mode == "enforce"
            and config.existing_sockets == "cut"
            and not change.resources & observed
        )

    def _amend(self, compiled: Compiled, change: RuleChange) -> None:
        """Change single rules in the kernel, at the price of the change."""
        agent = self._agent
        kernel, identity, tables = agent.kernel, agent.identity_keeper(), compiled.tables
        previous = self.compiled
        for rule in (*change.added, *(after for _before, after in change.changed)):
            for number in rule.licenses:
                kernel.licenses.slot(number)
        has_new_names = previous is None or any(
            getattr(tables, part) is not getattr(previous.tables, part)
            for part in ("scopes", "paths", "digests")
        )
        if has_new_names:
            identity.prepare(tables)
            kernel.control.measure = kernel.control.measure or bool(tables.digests)
        kernel.tables.amend(change, kernel.licenses.slot)
        if has_new_names:
            kernel.control.measure = bool(tables.digests)
        for number in change.licenses:
            kernel.licenses.renew(number)
        self.compiled = compiled
        agent.metering.policy_changed()
        self.loaded_at = time.time()
        agent.names.amend(tables, change)
        if has_new_names:
            identity.settle(tables)
        agent.cut()
        generation = kernel.control.generation
        agent.emit(
            "policy",
            f"{len(change)} rules of policy generation {generation} are others",
            generation=generation,
            added=len(change.added),
            changed=len(change.changed),
            removed=len(change.removed),
        )

    def follow_resolvers(self) -> None:
        """Compile the policy in force again if the host's name servers are others now."""
        if self._agent.keeper.resolvers_changed():
            self.renew()

    def renew(self) -> bool:
        """Compile the policy in force again, because something beside its files has changed.

        False, and said in the log, where it does not compile any more; it stays as it is then.
        """
        if self.compiled is None:
            return True
        renewed = self._agent.keeper.again(self.compiled.texts, self._agent.licenses())
        if renewed is None:
            return False
        self.put_in_force(renewed)
        return True
